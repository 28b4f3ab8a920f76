//! Directory entries under construction: found by folder and name, kept in the order they came.
//!
//! 16 bytes for each entry, its name, and 4 to 8 bytes of an open-addressing table: a layer of a
//! million files has to fit into the memory of a small daemon. Entries are never removed, they are
//! pointed at something else; those of a folder that was replaced are no longer reachable.

use std::hash::{BuildHasher as _, RandomState};

use crate::fs::index::error::TreeError;

/// Most directory entries and nodes of one layer: twice what a TOC may list, as folders that it
/// does not list count too. Below 2^31, so that [`PENDING`] is free.
pub const MAX_NODES: u32 = 4_000_000;

/// In a slot's target: not a node yet, but the hard link of the number in the other bits.
pub const PENDING: u32 = 1 << 31;

/// A directory entry under construction.
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    /// Node of the folder.
    pub folder: u32,
    /// Where its name starts in the names.
    name: u32,
    /// The node it names, or a link that is [`PENDING`].
    pub target: u32,
    /// Length of its name.
    name_len: u8,
}

/// All directory entries under construction.
#[derive(Default)]
pub struct Slots {
    slots: Vec<Slot>,
    names: Vec<u8>,
    /// 1 + number of a slot, 0 where free; its length is a power of two.
    table: Vec<u32>,
    /// Keyed at random: nobody can make a layer whose names all collide.
    hasher: RandomState,
}

impl Slots {
    /// Number of entries.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// All entries in the order they came.
    pub fn all(&self) -> &[Slot] {
        &self.slots
    }

    /// An entry's name.
    pub fn name(&self, slot: Slot) -> &[u8] {
        let start = slot.name as usize;
        self.names
            .get(start..start + usize::from(slot.name_len))
            .unwrap_or_default()
    }

    /// The number of the entry `name` in `folder`.
    pub fn find(&self, folder: u32, name: &[u8]) -> Option<usize> {
        let mask = self.table.len().checked_sub(1)?;
        let mut at = self.hash(folder, name) & mask;
        loop {
            let number = self.table.get(at)?.checked_sub(1)? as usize;
            let slot = *self.slots.get(number)?;
            if slot.folder == folder && self.name(slot) == name {
                return Some(number);
            }
            at = (at + 1) & mask;
        }
    }

    /// What the entry of this number names.
    pub fn target(&self, number: usize) -> Option<u32> {
        self.slots.get(number).map(|slot| slot.target)
    }

    /// Points an entry at something else.
    pub fn point(&mut self, number: usize, target: u32) {
        if let Some(slot) = self.slots.get_mut(number) {
            slot.target = target;
        }
    }

    /// Adds an entry that is not there yet.
    ///
    /// # Errors
    /// [`TreeError::TooMany`], [`TreeError::TooLarge`], [`TreeError::Name`].
    pub fn add(&mut self, folder: u32, name: &[u8], target: u32) -> Result<usize, TreeError> {
        let number = self.slots.len();
        if number >= MAX_NODES as usize {
            return Err(TreeError::TooMany(MAX_NODES));
        }
        let slot = Slot {
            folder,
            name: u32::try_from(self.names.len()).map_err(|_| TreeError::TooLarge)?,
            target,
            name_len: u8::try_from(name.len()).map_err(|_| TreeError::Name)?,
        };
        self.names.extend_from_slice(name);
        self.slots.push(slot);
        if self.slots.len() * 2 > self.table.len() {
            self.grow();
        } else {
            self.enter(number, slot);
        }
        Ok(number)
    }

    /// Gives back what only [`Self::find`] needs: nothing is found any more.
    pub fn close(&mut self) {
        self.table = Vec::new();
    }

    fn grow(&mut self) {
        let size = (self.slots.len() * 4).next_power_of_two().max(1024);
        self.table = vec![0; size];
        for number in 0..self.slots.len() {
            if let Some(slot) = self.slots.get(number) {
                self.enter(number, *slot);
            }
        }
    }

    fn enter(&mut self, number: usize, slot: Slot) {
        let mask = self.table.len() - 1;
        let mut at = self.hash(slot.folder, self.name(slot)) & mask;
        while self.table.get(at).is_some_and(|taken| *taken != 0) {
            at = (at + 1) & mask;
        }
        if let Some(free) = self.table.get_mut(at) {
            // Fits: there are at most MAX_NODES slots.
            *free = u32::try_from(number + 1).unwrap_or(0);
        }
    }

    fn hash(&self, folder: u32, name: &[u8]) -> usize {
        // Only the low bits are used, so cutting the hash on a 32-bit machine does no harm.
        #[expect(
            clippy::cast_possible_truncation,
            reason = "any bits of a hash will do"
        )]
        let hash = self.hasher.hash_one((folder, name)) as usize;
        hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_found_by_folder_and_name_after_growing() {
        let mut slots = Slots::default();
        assert_eq!(slots.find(0, b"a"), None);
        for i in 0..5000_u32 {
            let name = format!("n{}", i / 2);
            slots.add(i % 2, name.as_bytes(), i).unwrap();
        }
        for i in 0..5000_u32 {
            let name = format!("n{}", i / 2);
            let number = slots.find(i % 2, name.as_bytes()).unwrap();
            assert_eq!(slots.target(number), Some(i));
            assert_eq!(slots.name(slots.all()[number]), name.as_bytes());
        }
        assert_eq!(slots.find(2, b"n1"), None);
        assert_eq!(slots.find(0, b"n2500"), None);
        slots.point(7, 99);
        assert_eq!(slots.target(7), Some(99));
    }
}
