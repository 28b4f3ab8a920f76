//! How one more start changes what is known.
//!
//! The first start is believed as it is, up to the bound. Later ones reorder and add:
//!
//! 1. what this start read and was known comes first, in this start's order;
//! 2. then what was known and not read this time, and is forgotten after [`FORGET`] cold starts in
//!    a row that did without;
//! 3. then what this start read for the first time, at most half of the bound.
//!
//! So a start that reads everything there is delays nothing that others need, and is forgotten
//! again. Where parts of the image were running before, the kernel has pages that crfs is not asked
//! for: such a start only adds.

use std::collections::{HashMap, HashSet};

use crate::layer::profile::{File, Order, Piece};

/// Cold starts in a row that do not read a piece until it is forgotten.
const FORGET: u8 = 3;
/// Most pieces of a profile.
const MOST_PIECES: usize = 16 * 1024;
/// A start that reads fewer bytes was not cold, whatever it seems: the kernel had the rest.
const LEAST: u64 = 1 << 20;

/// A piece's name, whichever table of files it is numbered by.
type Name<'a> = (&'a File, u64);

/// What is known after a start that read `new`. `cold`: nothing of the image ran on this node since
/// its layers were mounted. `max_size` bounds the bytes of content.
pub(super) fn merge(old: &Order, new: &Order, cold: bool, max_size: u64) -> Order {
    if old.pieces.is_empty() {
        let mut merged = Merged::new(max_size);
        merged.add_all(named(new), max_size);
        return merged.order;
    }
    let cold = cold && new.bytes() >= LEAST;
    let known: HashMap<Name<'_>, Piece> = named(old).collect();
    let read: HashSet<Name<'_>> = named(new).map(|(name, _)| name).collect();
    let added = || named(new).filter(|(name, _)| !known.contains_key(name));
    let mut merged = Merged::new(max_size);
    if cold {
        let confirmed = named(new).filter(|(name, _)| known.contains_key(name));
        merged.add_all(confirmed, max_size);
        let missed = named(old)
            .filter(|(name, _)| !read.contains(name))
            .map(|(name, piece)| {
                let missed = piece.missed.saturating_add(1);
                (name, Piece { missed, ..piece })
            });
        // Otherwise a full profile would learn nothing until it has forgotten something.
        let room: u64 = added().map(|(_, piece)| u64::from(piece.size)).sum();
        let most = merged.left.saturating_sub(room.min(max_size / 2));
        merged.add_all(missed.filter(|(_, piece)| piece.missed < FORGET), most);
    } else {
        merged.add_all(named(old), max_size);
    }
    merged.add_all(added(), max_size / 2);
    merged.order
}

fn named(order: &Order) -> impl Iterator<Item = (Name<'_>, Piece)> {
    order.pieces.iter().filter_map(|piece| {
        let file = order.files.get(piece.file as usize)?;
        Some(((file, piece.at), *piece))
    })
}

/// An order being put together.
struct Merged<'a> {
    order: Order,
    files: HashMap<&'a File, u32>,
    left: u64,
}

impl<'a> Merged<'a> {
    fn new(left: u64) -> Self {
        Self {
            order: Order::default(),
            files: HashMap::new(),
            left,
        }
    }

    /// Adds pieces until they are `most` bytes or there is no room.
    fn add_all(&mut self, pieces: impl Iterator<Item = (Name<'a>, Piece)>, most: u64) {
        let mut most = most;
        for ((file, _), piece) in pieces {
            let size = u64::from(piece.size);
            if size > self.left || size > most || self.order.pieces.len() >= MOST_PIECES {
                return;
            }
            self.left -= size;
            most -= size;
            let next = u32::try_from(self.order.files.len()).unwrap_or(u32::MAX);
            let number = *self.files.entry(file).or_insert(next);
            if number == next {
                self.order.files.push(file.clone());
            }
            let file = number;
            self.order.pieces.push(Piece { file, ..piece });
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const PIECE: u32 = 1 << 20;
    const MIB: u64 = 1 << 20;

    /// Pieces of 1 MiB: layer, path, chunk.
    pub(in crate::layer::profile) fn order(pieces: &[(u16, &str, u32)]) -> Order {
        let mut order = Order::default();
        for (layer, path, chunk) in pieces {
            let (layer, path) = (*layer, (*path).to_owned());
            let file = File { layer, path };
            let at = order.files.iter().position(|known| *known == file);
            let at = at.unwrap_or_else(|| {
                order.files.push(file);
                order.files.len() - 1
            });
            order.pieces.push(Piece {
                file: u32::try_from(at).unwrap(),
                at: u64::from(*chunk) * MIB,
                size: PIECE,
                missed: 0,
            });
        }
        order
    }

    fn files(names: &str) -> Order {
        let names: Vec<_> = names.split_whitespace().collect();
        order(&names.iter().map(|name| (0, *name, 0)).collect::<Vec<_>>())
    }

    fn list(order: &Order) -> String {
        let names = named(order).map(|((file, _), _)| file.path.as_str());
        names.collect::<Vec<_>>().join(" ")
    }

    const MAX: u64 = 1 << 40;

    #[test]
    fn the_first_start_is_taken_as_it_is_up_to_the_bound() {
        let new = files("c a b");
        assert_eq!(merge(&Order::default(), &new, true, MAX), new);
        assert_eq!(merge(&Order::default(), &new, false, MAX), new);
        assert_eq!(
            list(&merge(&Order::default(), &new, true, 5 * MIB / 2)),
            "c a"
        );
        let many: Vec<_> = (0..20_000).map(|chunk| (0, "big", chunk)).collect();
        let merged = merge(&Order::default(), &order(&many), true, 1 << 40);
        assert_eq!(merged.pieces.len(), MOST_PIECES);
    }

    #[test]
    fn a_cold_start_orders_what_is_known_and_adds_behind_it() {
        let old = files("a b c d");
        let merged = merge(&old, &files("x c b"), true, MAX);
        assert_eq!(list(&merged), "c b a d x");
    }

    #[test]
    fn what_three_cold_starts_did_not_read_is_forgotten() {
        let mut known = files("a b odd");
        for round in 0..FORGET {
            assert!(list(&known).contains("odd"), "{round}");
            known = merge(&known, &files("b a"), true, MAX);
        }
        assert_eq!(list(&known), "b a");
        let mut known = files("a b now-and-then");
        for round in 0..10 {
            let new = if round % 3 == 2 {
                "a b now-and-then"
            } else {
                "a b"
            };
            known = merge(&known, &files(new), true, MAX);
        }
        assert!(list(&known).contains("now-and-then"));
    }

    #[test]
    fn a_start_that_is_not_cold_only_adds() {
        let mut known = files("a b c");
        for _ in 0..10 {
            known = merge(&known, &files("x b"), false, MAX);
        }
        assert_eq!(list(&known), "a b c x");
    }

    #[test]
    fn a_start_that_reads_next_to_nothing_says_nothing_of_the_rest() {
        let mut known = files("a b c");
        let mut new = files("c");
        new.pieces[0].size -= 1;
        for _ in 0..10 {
            known = merge(&known, &new, true, MAX);
        }
        assert_eq!(list(&known), "a b c");
    }

    #[test]
    fn one_odd_start_delays_nothing_and_stays_bounded() {
        let python = files("ld libc python");
        let everything: Vec<_> = (0..1000).map(|name| format!("usr/{name}")).collect();
        let odd = files(&format!("{} libc ld python", everything.join(" ")));
        let after = merge(&python, &odd, true, 100 * MIB);
        assert!(list(&after).starts_with("libc ld python usr/0 usr/1 "));
        assert_eq!(
            after.bytes(),
            53 * MIB,
            "half of the bound is for what is new"
        );
        let mut known = after;
        for _ in 0..FORGET {
            known = merge(&known, &python, true, 100 * MIB);
        }
        assert_eq!(known, python);
        // Also where it was the first of all.
        let usual = "ld libc python also this that and another one";
        let mut known = merge(&Order::default(), &odd, true, 100 * MIB);
        for round in 0..FORGET {
            known = merge(&known, &files(usual), true, 100 * MIB);
            assert_eq!(list(&known).starts_with(usual), round > 0);
            assert!(list(&known).contains(usual));
        }
        assert_eq!(list(&known), usual);
    }
}
