//! Which content lies where: the cache's index in memory.
//!
//! 32 bytes of key and place per content, and an eighth of slack at most. Only half a digest is kept: the
//! header of the record it leads to has all of it and is compared on every read.
//!
//! Rows lie in many short lists ([`Shard`]). A hash table doubles when it is full, so it takes up to twice what
//! is in it, and all shards of one do so together. *Measured* with 500,000 contents: 20.6 MB for 34.3, added in
//! 120 ns for 98, found in 71 ns for 95; with 2,000,000: 85 MB for 136, 274 ns for 119 and 177 ns for 127.
//! Which list a row lies in is nobody's to choose: it depends on a secret of this process, so that a layer whose
//! digests begin alike does not make one of them long.
//!
//! Locking: one shard at a time, never while anything else is locked from here.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::RwLock;

/// Shards: few enough that they weigh nothing while they are empty.
const SHARDS: usize = 4096;
/// Most rows of a shard that are in no order. They are looked through one by one.
const UNSORTED: usize = 32;

/// Set in the time of last use of what a sweep has found and nobody wants so far. Whoever uses it clears it.
const SWEPT: u32 = 1 << 31;
/// The latest time of use, in ticks.
pub(super) const LATEST: u32 = SWEPT - 1;

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
    short: u128,
    place: Place,
    /// When it was last used, in ticks, and [`SWEPT`]. Relaxed: it only ranks, and a sweep ends under the shard's lock for
    /// writing.
    used: AtomicU32,
}

impl Entry {
    fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed) & LATEST
    }
}

/// Some of the rows: sorted, but for the last few.
#[derive(Default)]
struct Shard {
    rows: Vec<Entry>,
    /// How many are sorted.
    sorted: usize,
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
    shards: Box<[RwLock<Shard>]>,
    /// Secret and odd: what a key is multiplied with, so that its shard is not known beforehand.
    spread: u64,
}

impl Shard {
    fn at(&self, short: u128) -> Option<usize> {
        let (sorted, rest) = self.rows.split_at_checked(self.sorted)?;
        if let Ok(at) = sorted.binary_search_by_key(&short, |row| row.short) {
            return Some(at);
        }
        let at = rest.iter().position(|row| row.short == short)?;
        Some(self.sorted + at)
    }

    fn get(&self, short: u128) -> Option<&Entry> {
        self.rows.get(self.at(short)?)
    }

    fn put(&mut self, entry: Entry) {
        let known = self.at(entry.short).and_then(|at| self.rows.get_mut(at));
        if let Some(known) = known {
            *known = entry;
            return;
        }
        if self.rows.len() - self.sorted == UNSORTED {
            self.sort();
        }
        if self.rows.len() == self.rows.capacity() {
            self.rows.reserve_exact(self.rows.len() / 8 + 2);
        }
        self.rows.push(entry);
    }

    fn remove(&mut self, at: usize) {
        self.rows.remove(at);
        self.sorted -= usize::from(at < self.sorted);
    }

    fn retain(&mut self, stays: impl Fn(&Entry) -> bool) {
        self.rows.retain(stays);
        self.sort();
        self.rows.shrink_to(self.sorted + self.sorted / 8);
    }

    fn sort(&mut self) {
        // Stable, because that takes what is sorted already for one run.
        self.rows.sort_by_key(|row| row.short);
        self.sorted = self.rows.len();
    }
}

impl Index {
    pub(super) fn new() -> Self {
        Self::with_shards(SHARDS)
    }

    fn with_shards(shards: usize) -> Self {
        Self {
            shards: (0..shards).map(|_| RwLock::default()).collect(),
            spread: RandomState::new().hash_one(0) | 1,
        }
    }

    /// The place of a content, marked as used at `now`.
    pub(super) fn find(&self, short: u128, now: u32) -> Option<Place> {
        let shard = self.shard(short).read();
        let entry = shard.get(short)?;
        // A store only when it changes: readers of one chunk do not fight for the cache line.
        if entry.used.load(Ordering::Relaxed) != now {
            entry.used.store(now, Ordering::Relaxed);
        }
        Some(entry.place)
    }

    /// The place of a content, not marked as used.
    pub(super) fn peek(&self, short: u128) -> Option<Place> {
        let shard = self.shard(short).read();
        shard.get(short).map(|entry| entry.place)
    }

    /// Adds or moves a content.
    pub(super) fn put(&self, short: u128, place: Place, used: u32) {
        let used = AtomicU32::new(used);
        self.shard(short).write().put(Entry { short, place, used });
    }

    /// Forgets a content if it still lies at `place`.
    pub(super) fn remove(&self, short: u128, place: Place) -> bool {
        let mut shard = self.shard(short).write();
        let at = shard.at(short);
        let there = |at: &usize| shard.rows.get(*at).is_some_and(|row| row.place == place);
        let at = at.filter(there);
        if let Some(at) = at {
            shard.remove(at);
        }
        at.is_some()
    }

    /// Forgets all that lies in `pack`.
    pub(super) fn remove_pack(&self, pack: u32) {
        for shard in &self.shards {
            shard.write().retain(|entry| entry.place.pack != pack);
        }
    }

    /// Begins a sweep: all that is here goes at its end, but what is [kept](Self::keep) or used before that.
    pub(super) fn begin_sweep(&self) {
        for shard in &self.shards {
            for entry in &shard.read().rows {
                entry.used.fetch_or(SWEPT, Ordering::Relaxed);
            }
        }
    }

    /// Says that a content stays.
    pub(super) fn keep(&self, short: u128) {
        if let Some(entry) = self.shard(short).read().get(short) {
            entry.used.fetch_and(LATEST, Ordering::Relaxed);
        }
    }

    /// Ends a sweep; how many contents were forgotten.
    pub(super) fn end_sweep(&self) -> usize {
        let gone = |shard: &RwLock<Shard>| {
            let mut shard = shard.write();
            let before = shard.rows.len();
            shard.retain(|entry| entry.used.load(Ordering::Relaxed) & SWEPT == 0);
            before - shard.rows.len()
        };
        self.shards.iter().map(gone).sum()
    }

    /// Calls `each` with every entry.
    pub(super) fn for_each(&self, each: &mut dyn FnMut(Row)) {
        for shard in &self.shards {
            for entry in &shard.read().rows {
                each(Row {
                    short: entry.short,
                    place: entry.place,
                    used: entry.used(),
                });
            }
        }
    }

    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        let len = |shard: &RwLock<Shard>| shard.read().rows.len();
        self.shards.iter().map(len).sum()
    }

    fn shard(&self, short: u128) -> &RwLock<Shard> {
        let folded = (short >> 64) as u64 ^ short as u64;
        // The upper half of a product depends on all bits of its factors.
        let spread = folded.wrapping_mul(self.spread) >> 32;
        &self.shards[spread as usize % self.shards.len()]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::oci::Digest;

    const ENTRY: usize = size_of::<Entry>();

    #[derive(Debug, Clone)]
    enum Step {
        Put(u128, u32),
        Remove(u128, u32),
        Sweep(Vec<u128>),
        RemovePack(u32),
    }

    const fn place(pack: u32) -> Place {
        Place {
            pack,
            offset: 7,
            size: 9,
        }
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let key = prop_oneof![9 => 0..200_u128, 1 => (0..9_u128).prop_map(|key| key << 120)];
        let step = prop_oneof![
            20 => (key.clone(), 0..4_u32).prop_map(|(key, pack)| Step::Put(key, pack)),
            4 => (key.clone(), 0..4_u32).prop_map(|(key, pack)| Step::Remove(key, pack)),
            1 => proptest::collection::vec(key, 0..200).prop_map(Step::Sweep),
            1 => (0..4_u32).prop_map(Step::RemovePack),
        ];
        proptest::collection::vec(step, 0..400)
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_would(steps in steps()) {
            // Few shards, so that they are sorted now and then.
            let (index, mut map) = (Index::with_shards(2), BTreeMap::new());
            for step in steps {
                match step {
                    Step::Put(key, pack) => {
                        index.put(key, place(pack), 1);
                        map.insert(key, pack);
                    }
                    Step::Remove(key, pack) => {
                        let goes = map.get(&key) == Some(&pack);
                        prop_assert_eq!(index.remove(key, place(pack)), goes);
                        if goes {
                            map.remove(&key);
                        }
                    }
                    Step::Sweep(kept) => {
                        index.begin_sweep();
                        kept.iter().for_each(|key| index.keep(*key));
                        let before = map.len();
                        map.retain(|key, _| kept.contains(key));
                        prop_assert_eq!(index.end_sweep(), before - map.len());
                    }
                    Step::RemovePack(pack) => {
                        index.remove_pack(pack);
                        map.retain(|_, of| *of != pack);
                    }
                }
                prop_assert_eq!(index.len(), map.len());
            }
            let mut rows = BTreeMap::new();
            index.for_each(&mut |row| _ = rows.insert(row.short, row.place.pack));
            prop_assert_eq!(&rows, &map);
            for key in (0..200).chain((0..9).map(|key| key << 120)) {
                prop_assert_eq!(index.find(key, 2).map(|place| place.pack), map.get(&key).copied());
            }
        }
    }

    #[test]
    fn what_is_used_or_added_during_a_sweep_stays() {
        let index = Index::new();
        for key in [1, 2, 3] {
            index.put(key, place(1), LATEST);
        }
        index.begin_sweep();
        let mut rows = Vec::new();
        index.for_each(&mut |row| rows.push(row.used));
        assert_eq!(rows, [LATEST; 3], "a sweep changes no rank");
        assert_eq!(index.find(1, LATEST), Some(place(1)));
        index.put(2, place(2), 5);
        index.put(4, place(2), 5);
        assert_eq!(index.end_sweep(), 1);
        let stay = [1, 2, 3, 4].map(|key| index.peek(key).is_some());
        assert_eq!(stay, [true, true, false, true]);
    }

    #[test]
    fn it_takes_no_more_memory_than_said() {
        let index = Index::new();
        // Digests that begin alike spread as others do.
        for number in 0..200_000_u32 {
            let digest = Digest::of(&number.to_le_bytes());
            let rest = digest.as_bytes().first_chunk().copied();
            index.put(u64::from_le_bytes(rest.unwrap()).into(), place(1), 0);
        }
        let longest = index.shards.iter().map(|shard| shard.read().rows.len());
        assert!(longest.max() < Some(120), "49 on average");
        let capacity = |shard: &RwLock<Shard>| shard.read().rows.capacity();
        let taken = index.shards.iter().map(capacity).sum::<usize>() * ENTRY;
        assert!(taken < 200_000 * 36 + SHARDS * 2 * ENTRY, "{taken}");
        assert_eq!(ENTRY, 32);

        index.remove_pack(1);
        assert_eq!(index.shards.iter().map(capacity).sum::<usize>(), 0);
    }
}
