//! Random layers of an image, as entries: every feature, in orders that unpackers accept.
//!
//! Left out, as crfs does not do what containerd does: folders that a later layer has without an
//! entry keep the extended attributes that lower layers give them, and below a setgid folder they
//! belong to its group.

use std::collections::{BTreeMap, BTreeSet};

use crate::tars::Item;

/// A small generator of numbers, the same for a seed everywhere (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let wide = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        wide as usize % below
    }

    fn one_in(&mut self, chance: usize) -> bool {
        self.next(chance) == 0
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.next(all.len())].clone()
    }
}

/// Parts of names: few, so that layers meet.
const PARTS: [&str; 10] = [
    "a",
    "b",
    "c",
    "etc",
    "new\nline",
    "\u{1}",
    "ä \u{1f980}",
    "x.y",
    "-",
    "%20",
];
/// Sizes around the edges of chunks and blocks.
const SIZES: [usize; 10] = [
    0,
    1,
    511,
    512,
    513,
    4096,
    70_000,
    1 << 20,
    (1 << 22) + 1,
    9_000_000,
];

/// What a layer being made has of a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Is {
    Folder,
    File,
    Other,
}

/// The layers of an image, lowest first.
pub fn layers(seed: u64, count: usize) -> Vec<Vec<Item>> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut below = Below::default();
    let mut layers = Vec::new();
    for _ in 0..count {
        let mut layer = Layer::default();
        for _ in 0..60 {
            layer.add(&mut random, &below);
        }
        let others = layer.has.iter().filter(|(_, is)| **is != Is::Folder);
        below.others.extend(others.map(|(name, _)| name.clone()));
        below.others.extend(layer.hidden);
        below.names.extend(layer.has.into_keys());
        layers.push(layer.items);
    }
    layers
}

/// What the lower layers have.
#[derive(Default)]
struct Below {
    names: BTreeSet<String>,
    /// What in any of them is or was no folder.
    others: BTreeSet<String>,
}

#[derive(Default)]
struct Layer {
    items: Vec<Item>,
    has: BTreeMap<String, Is>,
    /// Hard links and their targets, which may not be replaced.
    linked: BTreeSet<String>,
    hidden: BTreeSet<String>,
}

impl Layer {
    fn add(&mut self, random: &mut Random, below: &Below) {
        let name = match below.names.iter().nth(random.next(below.names.len() + 20)) {
            // A name of a lower layer, or below one.
            Some(known) if random.one_in(2) => known.clone(),
            Some(known) => format!("{known}/{}", random.of(&PARTS)),
            None => {
                let depth = 1 + random.next(3);
                let parts: Vec<_> = (0..depth).map(|_| random.of(&PARTS)).collect();
                parts.join("/")
            }
        };
        if !self.has_room(&name, below) {
            return;
        }
        match random.next(12) {
            // A lowest layer has nothing to hide; in it containerd removes what the layer itself has.
            0 | 1 if !below.names.is_empty() => self.whiteout(random, &name),
            2..=4 => self.folder(random, &name),
            5 => self.hard_link(random, &name),
            _ => self.file(random, &name),
        }
    }

    /// Whether something can have this name: every folder above it is one, or is not there yet.
    fn has_room(&self, name: &str, below: &Below) -> bool {
        let above = name.match_indices('/').map(|(at, _)| &name[..at]);
        let fits = |above: &str| match self.has.get(above) {
            Some(is) => *is == Is::Folder,
            // To an unpacker a whiteout is a device until something else has its name.
            None => !self.hidden.contains(above),
        };
        // Looking for what a folder without an entry was in lower layers, containerd fails at a file.
        let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
        let known =
            self.has.contains_key(parent) || !above.clone().any(|at| below.others.contains(at));
        name.len() < 200 && known && above.into_iter().all(fits)
    }

    /// Notes the folders above a name, which are made up where they have no entry.
    fn note(&mut self, name: &str, is: Is) {
        for (at, _) in name.match_indices('/') {
            self.has.insert(name[..at].to_owned(), Is::Folder);
        }
        self.has.insert(name.to_owned(), is);
    }

    fn whiteout(&mut self, random: &mut Random, name: &str) {
        let (folder, base) = name.rsplit_once('/').unwrap_or(("", name));
        let opaque = random.one_in(3) && !folder.is_empty();
        if opaque {
            self.items
                .push(Item::file(format!("{folder}/.wh..wh..opq"), ""));
            self.note(folder, Is::Folder);
            return;
        }
        if self.has.contains_key(name) || !self.hidden.insert(name.to_owned()) {
            return;
        }
        let whiteout = format!("{folder}/.wh.{base}");
        self.items
            .push(Item::file(whiteout.trim_start_matches('/'), ""));
        for (at, _) in name.match_indices('/') {
            self.has.insert(name[..at].to_owned(), Is::Folder);
        }
    }

    fn folder(&mut self, random: &mut Random, name: &str) {
        if self.has.get(name).is_some_and(|is| *is != Is::Folder) {
            return;
        }
        let folder = Item::folder(format!("{name}/"))
            .mode(random.of(&[0o755, 0o700, 0o1777, 0o750, 0]))
            .at(
                random.next(1 << 31) as i64 + 1,
                random.next(1_000_000_000) as u32,
            );
        self.items.push(owned(random, folder));
        self.note(name, Is::Folder);
    }

    fn hard_link(&mut self, random: &mut Random, name: &str) {
        let targets: Vec<_> = self
            .has
            .iter()
            .filter(|(_, is)| **is == Is::File)
            .map(|(name, _)| name.clone())
            .collect();
        if targets.is_empty() || self.has.contains_key(name) {
            return;
        }
        let target = random.of(&targets);
        self.items.push(Item::hard_link(name, &target));
        self.linked.extend([target, name.to_owned()]);
        self.note(name, Is::File);
    }

    fn file(&mut self, random: &mut Random, name: &str) {
        if self.linked.contains(name) || self.has.get(name) == Some(&Is::Folder) {
            return;
        }
        let kind = random.next(12);
        let mut item = match kind {
            0 | 1 => Item::symlink(name, random.of(&["a", "/etc", "../b", "none\n", "."])),
            2 => Item::fifo(name),
            3 => Item::device(random.of(b"34"), name, 1 + random.next(300) as u32, 5),
            _ => {
                let size = match random.one_in(6) {
                    true => random.of(&SIZES),
                    false => random.next(3000),
                };
                let start = random.next(256);
                let data: Vec<u8> = (0..size).map(|at| ((at + start) / 7) as u8).collect();
                Item::file(name, data)
            }
        };
        if kind > 3 {
            item = item.mode(random.of(&[0o644, 0o4755, 0o6711, 0o400, 0]));
            if random.one_in(5) {
                item = item.xattr("user.x", vec![0, 1, 2]).xattr("user.y", "");
            }
        }
        let (seconds, nanos) = (random.next(1 << 33) as i64, random.next(1_000_000_000));
        item = item.at(seconds, if random.one_in(2) { nanos as u32 } else { 0 });
        self.items.push(owned(random, item));
        let is = if kind > 3 { Is::File } else { Is::Other };
        self.note(name, is);
    }
}

fn owned(random: &mut Random, item: Item) -> Item {
    let ids = [0, 0, 1, 1000, 65_535, 65_536, 2_097_152, 4_000_000_000];
    let (uid, gid) = (random.of(&ids), random.of(&ids));
    item.owner(uid, gid)
}
