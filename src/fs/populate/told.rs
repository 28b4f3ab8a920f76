//! Which nodes of a mount the kernel was told of when it listed a folder (READDIRPLUS).
//!
//! It has an inode of each until it sends FORGET, so their content can be stored before they are looked up.
//! What it was told by a server before this one is not known, and left alone until it is listed again.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// A bit for each node, once the first folder was listed.
#[derive(Debug)]
pub(super) struct Told {
    nodes: u32,
    bits: OnceLock<Box<[AtomicU64]>>,
}

impl Told {
    /// For a layer of `nodes` nodes.
    pub(super) const fn new(nodes: u32) -> Self {
        Self {
            nodes,
            bits: OnceLock::new(),
        }
    }

    pub(super) fn add(&self, ino: u64) {
        let bits = self.bits.get_or_init(|| {
            let words = (u64::from(self.nodes) + 1).div_ceil(64);
            (0..words).map(|_| AtomicU64::new(0)).collect()
        });
        if let Some((word, bit)) = place(bits, ino) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    pub(super) fn remove(&self, ino: u64) {
        if let Some((word, bit)) = self.bits.get().and_then(|bits| place(bits, ino)) {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    pub(super) fn has(&self, ino: u64) -> bool {
        let place = self.bits.get().and_then(|bits| place(bits, ino));
        place.is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }
}

fn place(bits: &[AtomicU64], ino: u64) -> Option<(&AtomicU64, u64)> {
    let word = bits.get(usize::try_from(ino / 64).ok()?)?;
    Some((word, 1 << (ino % 64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_knows_what_it_was_told_and_no_more() {
        let told = Told::new(100);
        assert!(!told.has(1));
        for ino in [1, 63, 64, 100, 127, 128, u64::MAX] {
            told.add(ino);
        }
        let known: Vec<_> = (0..200).filter(|ino| told.has(*ino)).collect();
        assert_eq!(known, [1, 63, 64, 100, 127]);
        told.remove(64);
        told.remove(u64::MAX);
        assert!(!told.has(64) && told.has(63));
    }
}
