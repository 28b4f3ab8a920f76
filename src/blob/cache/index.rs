//! Which content lies where: the cache's index in memory.
//!
//! 32 bytes of key and place per content (with the table's slack about 50), in shards so that
//! readers and the writer rarely meet. Only half a digest is kept: the header of the record it
//! leads to has all of it and is compared on every read.
//!
//! Locking: one shard at a time, never while anything else is locked from here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::RwLock;

const SHARDS: usize = 16;

/// Bytes of key and entry.
#[cfg(test)]
pub(super) const ENTRY: usize = size_of::<(u128, Entry)>();

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Number of its pack.
    pub pack: u32,
    /// Offset in the pack.
    pub offset: u32,
    /// Length of its content.
    pub size: u32,
}

struct Entry {
    place: Place,
    /// When it was last used, in ticks. Relaxed: it only ranks.
    used: AtomicU32,
}

/// One entry as the eviction sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// Short key.
    pub short: u128,
    /// Where it lies.
    pub place: Place,
    /// When it was last used, in ticks.
    pub used: u32,
}

/// The index.
pub(super) struct Index {
    shards: [RwLock<HashMap<u128, Entry>>; SHARDS],
}

impl Index {
    pub(super) fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| RwLock::default()),
        }
    }

    /// The place of a content, marked as used at `now`.
    pub(super) fn find(&self, short: u128, now: u32) -> Option<Place> {
        let shard = self.shard(short).read();
        let entry = shard.get(&short)?;
        // A store only when it changes: readers of one chunk do not fight for the cache line.
        if entry.used.load(Ordering::Relaxed) != now {
            entry.used.store(now, Ordering::Relaxed);
        }
        Some(entry.place)
    }

    /// The place of a content, not marked as used.
    pub(super) fn peek(&self, short: u128) -> Option<Place> {
        self.shard(short)
            .read()
            .get(&short)
            .map(|entry| entry.place)
    }

    /// Adds or moves a content.
    pub(super) fn put(&self, short: u128, place: Place, used: u32) {
        let entry = Entry {
            place,
            used: AtomicU32::new(used),
        };
        self.shard(short).write().insert(short, entry);
    }

    /// Forgets a content if it still lies at `place`.
    pub(super) fn remove(&self, short: u128, place: Place) -> bool {
        let mut shard = self.shard(short).write();
        let there = shard.get(&short).is_some_and(|entry| entry.place == place);
        if there {
            shard.remove(&short);
        }
        there
    }

    /// Forgets a content, wherever it lies; whether it was there.
    pub(super) fn forget(&self, short: u128) -> bool {
        self.shard(short).write().remove(&short).is_some()
    }

    /// Forgets all that lies in `pack`.
    pub(super) fn remove_pack(&self, pack: u32) {
        for shard in &self.shards {
            shard.write().retain(|_, entry| entry.place.pack != pack);
        }
    }

    /// Calls `each` with every entry.
    pub(super) fn for_each(&self, each: &mut dyn FnMut(Row)) {
        for shard in &self.shards {
            for (short, entry) in shard.read().iter() {
                let used = entry.used.load(Ordering::Relaxed);
                each(Row {
                    short: *short,
                    place: entry.place,
                    used,
                });
            }
        }
    }

    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    fn shard(&self, short: u128) -> &RwLock<HashMap<u128, Entry>> {
        // The keys are digests: any of their bits spread evenly.
        &self.shards[(short >> 124) as usize % SHARDS]
    }
}
