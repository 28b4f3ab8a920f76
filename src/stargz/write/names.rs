//! Which names a layer has had so far, and whether a list of entries can still say what an
//! unpacker would make of them.
//!
//! A tar is a program: later entries act on what earlier ones left. A TOC is a list, in which each
//! name counts once. Where the two could differ, the layer is refused here. Per name this keeps a
//! 64-bit hash and 8 bytes, not the name, so a layer of a million files takes some 20 MB.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hasher as _};

use super::error::Unsuitable;
use super::scan::{Entry, Kind};

/// The longest part of a name, in bytes: Linux's `NAME_MAX`.
const MAX_COMPONENT: usize = 255;
/// The longest name and link target, in bytes: Linux's `PATH_MAX`, less the NUL.
const MAX_PATH: usize = 4095;
/// The largest value of an extended attribute, in bytes: Linux's `XATTR_SIZE_MAX`.
const MAX_XATTR: usize = 64 << 10;

/// The names of one layer.
#[derive(Default)]
pub(super) struct Names {
    seen: HashMap<u64, Seen>,
    /// Every hard link and its target.
    links: HashMap<u64, u64>,
    /// Every target of a hard link.
    targets: HashSet<u64>,
    /// Hard links whose target had not been seen when they came.
    forward: Vec<(u64, Entry)>,
    /// Entries that a later one of the same name replaced.
    replaced: Vec<u32>,
    entries: u32,
}

#[derive(Clone, Copy)]
struct Seen {
    /// Its number in the order of the layer; meaningless for a folder.
    entry: u32,
    dir: bool,
}

impl Names {
    /// Takes note of the next entry that goes into the TOC.
    pub(super) fn add(&mut self, entry: &Entry) -> Result<(), Unsuitable> {
        check_text(entry)?;
        let name = self.check_parents(entry)?;
        let dir = entry.kind == Kind::Dir;
        if let Some(old) = self.seen.get(&name) {
            let what = match (old.dir, dir) {
                (true, false) => Some("a folder"),
                (false, _) if self.targets.contains(&name) => Some("a file that has a hard link"),
                _ => None,
            };
            if let Some(what) = what {
                return Err(Unsuitable::Replaces {
                    name: shown(&entry.name),
                    what,
                });
            }
            if !old.dir {
                self.replaced.push(old.entry);
                self.links.remove(&name);
            }
        }
        if entry.kind == Kind::HardLink {
            self.add_link(name, entry)?;
        }
        let seen = Seen {
            entry: self.entries,
            dir,
        };
        self.seen.insert(name, seen);
        self.entries = self.entries.saturating_add(1);
        Ok(())
    }

    /// Checks that every hard link leads to something, and returns the numbers of the entries that
    /// were replaced, ascending.
    pub(super) fn finish(mut self) -> Result<Vec<u32>, Unsuitable> {
        let mut sound = HashSet::new();
        for (name, entry) in &self.forward {
            let mut at = *name;
            let mut path = HashSet::new();
            while let Some(target) = self.links.get(&at) {
                if sound.contains(&at) {
                    break;
                }
                if !path.insert(at) {
                    return Err(bad_link(entry, "and the link leads back to itself"));
                }
                at = *target;
            }
            match self.seen.get(&at) {
                None => return Err(bad_link(entry, "which the layer does not have")),
                Some(seen) if seen.dir => return Err(bad_link(entry, "which is a folder")),
                Some(_) => sound.extend(path),
            }
        }
        self.replaced.sort_unstable();
        Ok(self.replaced)
    }

    fn add_link(&mut self, name: u64, entry: &Entry) -> Result<(), Unsuitable> {
        let target = hash_of(&entry.link, |_| {}).map_err(|why| bad_link(entry, why))?;
        if target == name {
            return Err(bad_link(entry, "which is itself"));
        }
        match self.seen.get(&target) {
            Some(seen) if seen.dir => return Err(bad_link(entry, "which is a folder")),
            Some(_) => {}
            None => self.forward.push((name, entry.clone())),
        }
        self.links.insert(name, target);
        self.targets.insert(target);
        Ok(())
    }

    /// Every folder above the entry is one, or becomes one now. An unpacker would follow a
    /// symlink there, which one layer by itself cannot.
    fn check_parents(&mut self, entry: &Entry) -> Result<u64, Unsuitable> {
        let mut blocked = false;
        let seen = &mut self.seen;
        let name = hash_of(&entry.name, |parent| {
            let folder = Seen {
                entry: 0,
                dir: true,
            };
            blocked |= !seen.entry(parent).or_insert(folder).dir;
        });
        let refuse = |why| Unsuitable::Name {
            name: shown(&entry.name),
            why,
        };
        let name = name.map_err(refuse)?;
        match blocked {
            true => Err(refuse("lies below something that is not a folder")),
            false if name == root() && entry.kind != Kind::Dir => {
                Err(refuse("is the root, which has to be a folder"))
            }
            false => Ok(name),
        }
    }
}

/// The parts of a name that are left when `/` and `.` mean nothing.
pub(super) fn components(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    name.split(|&b| b == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
}

/// The hash of a name, after those of its parents, of which the root is not one.
fn hash_of(name: &[u8], mut parent: impl FnMut(u64)) -> Result<u64, &'static str> {
    if name.len() > MAX_PATH {
        return Err("is longer than 4095 bytes");
    }
    let mut hasher = DefaultHasher::new();
    let mut below_root = false;
    for part in components(name) {
        match part {
            b".." => return Err("leaves its folder by .."),
            long if long.len() > MAX_COMPONENT => return Err("has a part longer than 255 bytes"),
            nul if nul.contains(&0) => return Err("holds a NUL"),
            _ => {}
        }
        if below_root {
            parent(hasher.finish());
        }
        below_root = true;
        hasher.write_u8(b'/');
        hasher.write(part);
    }
    Ok(hasher.finish())
}

fn root() -> u64 {
    DefaultHasher::new().finish()
}

/// A TOC is JSON, which holds text only; what the kernel would not take, no reader would.
fn check_text(entry: &Entry) -> Result<(), Unsuitable> {
    let strings = [("name", &entry.name), ("link target", &entry.link)];
    let xattrs = entry.xattrs.iter().map(|(name, _)| ("xattr name", name));
    for (what, bytes) in strings.into_iter().chain(xattrs) {
        if std::str::from_utf8(bytes).is_err() {
            return Err(Unsuitable::NotUtf8 {
                what,
                text: shown(bytes),
            });
        }
    }
    let bad_xattr = |(name, value): &(Vec<u8>, Vec<u8>)| {
        name.is_empty() || name.len() > MAX_COMPONENT || value.len() > MAX_XATTR
    };
    match entry.kind {
        _ if entry.xattrs.iter().any(bad_xattr) => Err("has an over-long extended attribute"),
        Kind::Symlink if entry.link.is_empty() => Err("is a symlink to nothing"),
        Kind::Symlink if entry.link.len() > MAX_PATH => Err("is a symlink of over 4095 bytes"),
        _ => Ok(()),
    }
    .map_err(|why| Unsuitable::Name {
        name: shown(&entry.name),
        why,
    })
}

fn bad_link(entry: &Entry, why: &'static str) -> Unsuitable {
    Unsuitable::HardLink {
        name: shown(&entry.name),
        target: shown(&entry.link),
        why,
    }
}

pub(super) fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: Kind, name: &str, link: &str) -> Entry {
        Entry {
            kind,
            name: name.into(),
            link: link.into(),
            size: 0,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            device: (0, 0),
            xattrs: Vec::new(),
        }
    }

    /// `d NAME`, `f NAME`, `s NAME`, `h NAME TARGET`.
    fn run(list: &[&str]) -> Result<Vec<u32>, String> {
        let mut names = Names::default();
        for line in list {
            let mut words = line.split(' ');
            let kind = match words.next().unwrap() {
                "d" => Kind::Dir,
                "f" => Kind::File,
                "s" => Kind::Symlink,
                _ => Kind::HardLink,
            };
            let name = words.next().unwrap();
            let entry = entry(kind, name, words.next().unwrap_or("target"));
            names.add(&entry).map_err(|e| e.to_string())?;
        }
        names.finish().map_err(|e| e.to_string())
    }

    #[test]
    fn the_last_of_one_name_wins_however_it_is_spelled() {
        assert_eq!(run(&["f a", "f ./a", "f b", "f /a"]), Ok(vec![0, 1]));
        assert_eq!(run(&["d a", "f a/b", "d a/", "f a/b"]), Ok(vec![1]));
        assert_eq!(run(&["f a", "d a", "f a/b"]), Ok(vec![0]));
        assert_eq!(run(&["d ./", "d /", "f ab", "f a"]), Ok(vec![]));
    }

    #[test]
    fn hard_links_may_be_forward_and_chained() {
        assert_eq!(run(&["h c b", "h b ./a", "f a", "h d c"]), Ok(vec![]));
        assert_eq!(run(&["f a", "h b a", "h b a"]), Ok(vec![1]));
    }

    #[test]
    fn what_a_list_cannot_say_is_refused() {
        for (list, why) in [
            (&["h a b"][..], "does not have"),
            (&["h a ./a"], "itself"),
            (&["h a b", "h b a"], "back to itself"),
            (&["h a b", "h b c", "h c b"], "back to itself"),
            (&["d d", "h a d"], "a folder"),
            (&["h a d", "d d"], "a folder"),
            (&["f a", "h b a", "f a"], "has a hard link"),
            (&["d a", "f a"], "replaces a folder"),
            (&["f a/b", "s a"], "replaces a folder"),
            (&["s a", "f a/b"], "not a folder"),
            (&["f a", "f a/b/c"], "not a folder"),
            (&["f a/../b"], "leaves its folder"),
            (&["f ."], "is the root"),
            (&["s a "], "symlink to nothing"),
        ] {
            let refused = run(list).unwrap_err();
            assert!(refused.contains(why), "{list:?}: {refused}");
        }
        let long = format!("f {}", "x".repeat(256));
        assert!(run(&[&long]).unwrap_err().contains("255"));
        assert!(run(&[&long[..257]]).is_ok());
        let bad = Entry {
            name: vec![0xff],
            ..entry(Kind::File, "", "")
        };
        assert!(matches!(
            Names::default().add(&bad),
            Err(Unsuitable::NotUtf8 { .. })
        ));
    }
}
