//! Giving back the content of layers that are gone.
//!
//! The bound and the eviction keep a cache from growing; this makes it shrink when images are
//! removed. A [`Sweep`] is told of each content that stays; what is left is forgotten, and packs
//! of which much is dead are written anew without it. What is left is marked in the index itself: a
//! sweep takes no memory.
//!
//! Locking: one sweep at a time. The writer's lock is held for a batch of records at a time, so that reads and
//! new content go on.
//!
//! Crash behaviour: a pack goes only after its live records were copied. A crash in between leaves
//! them twice: the newer counts, the older is dead to the next sweep.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use crate::blob::cache::Cache;
use crate::blob::cache::evict::{self, Survivor};
use crate::blob::cache::record::Key;
use crate::blob::cache::store::Store;
use crate::blob::cache::writer::{self, EMPTY};

/// Records copied before others may write.
const BATCH: usize = 64;
/// A pack is written anew when at least one part in so many of it is dead.
const DEAD_SHARE: u64 = 8;

/// A sweep that is being told what stays.
pub struct Sweep<'a> {
    cache: &'a Cache,
    _only: MutexGuard<'a, ()>,
}

/// What a sweep gave back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Contents that were forgotten.
    pub contents: u64,
    /// Bytes of disk.
    pub bytes: u64,
    /// Whether some stay for now that could go: the disk cannot be written.
    pub is_partial: bool,
}

impl Cache {
    /// Begins a sweep of what is held now; what comes later or is used meanwhile stays anyway. Waits for the end of
    /// another.
    #[must_use]
    pub fn sweep(&self) -> Sweep<'_> {
        let only = self.sweeping.lock();
        self.index.begin_sweep();
        Sweep {
            cache: self,
            _only: only,
        }
    }
}

impl Sweep<'_> {
    /// Somebody may still read this content.
    pub fn keep(&mut self, key: &Key) {
        self.cache.index.keep(key.short());
    }

    /// Forgets all the rest and gives its disk space back. Blocks while it copies records. On a
    /// disk that cannot be written a pack with live records stays as it is.
    #[must_use]
    pub fn finish(self) -> Swept {
        let cache = self.cache;
        let before = cache.counters.held.load(Ordering::Relaxed);
        let contents = cache.index.end_sweep();
        // Those without live records come first: they take no writing.
        let is_partial = !dying(cache).iter().all(|pack| compact(cache, pack));
        let after = cache.counters.held.load(Ordering::Relaxed);
        Swept {
            contents: contents as u64,
            bytes: before.saturating_sub(after),
            is_partial,
        }
    }
}

/// Packs that are worth writing anew, or hold nothing live at all: the emptiest first.
fn dying(cache: &Cache) -> Vec<Store> {
    let mut live: BTreeMap<u32, u64> = BTreeMap::new();
    cache.index.for_each(&mut |row| {
        *live.entry(row.place.pack).or_default() += writer::cost_of(row.place.size);
    });
    let packs: Vec<_> = cache.packs.read().values().cloned().collect();
    let live = |pack: &Store| live.get(&pack.id()).copied().unwrap_or(0);
    let is_dying = |pack: &Store| {
        let charged = pack.charged().load(Ordering::Relaxed);
        let live = live(pack);
        let dead = charged.saturating_sub(live + EMPTY);
        // What the kernel reads by itself goes when it is closed, by a later sweep or the bound.
        !pack.is_pinned() && (live == 0 || dead >= (charged / DEAD_SHARE).max(1))
    };
    let mut dying: Vec<_> = packs.into_iter().filter(is_dying).collect();
    dying.sort_by_key(live);
    dying
}

/// Moves the live records of `pack` elsewhere and removes it; false if they cannot be written.
///
/// The pack is not counted meanwhile, so a full cache makes room for what it holds anyway; its
/// files are beyond the bound by one pack at most.
fn compact(cache: &Cache, pack: &Store) -> bool {
    let charged = {
        let mut writer = cache.writer.lock();
        if !cache.packs.read().contains_key(&pack.id()) {
            return true;
        }
        writer.retire(pack.id());
        cache.uncharge(pack)
    };
    let mut rows = Vec::new();
    cache.index.for_each(&mut |row| {
        if row.place.pack == pack.id() {
            rows.push(row);
        }
    });
    rows.sort_unstable_by_key(|row| row.place.offset);
    for batch in rows.chunks(BATCH) {
        let mut writer = cache.writer.lock();
        for row in batch {
            // An eviction or a damaged read may have come between.
            if cache.index.peek(row.short) == Some(row.place) {
                let (place, used) = (row.place, row.used);
                writer.rescue(cache, pack, row.short, Survivor { place, used });
            }
        }
        if cache.is_paused() {
            // What went wrong may have had it evicted.
            if cache.packs.read().contains_key(&pack.id()) {
                cache.charge(pack, charged);
            }
            return false;
        }
    }
    let _writer = cache.writer.lock();
    evict::remove(cache, pack.id());
    true
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::super::tests::{content, disk_bytes, insert, key, open};
    use super::*;

    /// Contents of a hundred kilobytes, even ones of one layer and odd ones of another.
    fn filled(cache: &Cache) -> Vec<Vec<u8>> {
        let all: Vec<_> = (0..60).map(|seed| content(seed, 100_000)).collect();
        for bytes in &all {
            assert_eq!(insert(cache, bytes), 100_000);
        }
        all
    }

    fn sweep(cache: &Cache, kept: &[&Vec<u8>]) -> Swept {
        let mut sweep = cache.sweep();
        for bytes in kept {
            sweep.keep(&key(bytes));
        }
        sweep.finish()
    }

    #[test]
    fn what_nobody_keeps_goes_and_its_disk_space_with_it() {
        let dir = TempDir::new().unwrap();
        let cache = open(&dir, 64 << 20);
        let all = filled(&cache);
        let (kept, gone): (Vec<_>, Vec<_>) =
            (0_u32..).zip(&all).partition(|(number, _)| number % 2 == 0);
        let kept: Vec<_> = kept.into_iter().map(|(_, bytes)| bytes).collect();
        let swept = sweep(&cache, &kept);
        assert_eq!(swept.contents, 30);
        assert!(disk_bytes(&dir) < 3_300_000, "{}", disk_bytes(&dir));
        for bytes in &kept {
            assert_eq!(cache.load(&key(bytes)).as_deref(), Some(&bytes[..]));
        }
        for (_, bytes) in gone {
            assert!(!cache.contains(&key(bytes)));
            assert_eq!(insert(&cache, bytes), 100_000, "it can come back");
        }
        assert_eq!(
            sweep(&cache, &all.iter().collect::<Vec<_>>()),
            Swept::default()
        );
        drop(cache);
        let cache = open(&dir, 64 << 20);
        for bytes in &all {
            assert_eq!(cache.load(&key(bytes)).as_deref(), Some(&bytes[..]));
        }
    }

    #[test]
    fn nothing_kept_leaves_nothing_on_disk() {
        let dir = TempDir::new().unwrap();
        let cache = open(&dir, 64 << 20);
        let all = filled(&cache);
        assert_eq!(sweep(&cache, &[]).contents, 60);
        assert_eq!((disk_bytes(&dir), cache.stats().held), (0, 0));
        insert(&cache, &all[0]);
        assert_eq!(cache.load(&key(&all[0])).as_deref(), Some(&all[0][..]));
    }

    #[test]
    fn a_full_cache_keeps_what_is_kept() {
        let dir = TempDir::new().unwrap();
        let cache = open(&dir, 4 << 20);
        filled(&cache);
        let all: Vec<_> = (0..60).map(|seed| content(seed, 100_000)).collect();
        let held: Vec<_> = all
            .iter()
            .filter(|bytes| cache.contains(&key(bytes)))
            .collect();
        let kept: Vec<_> = held.iter().copied().step_by(2).collect();
        assert!(
            held.len() > 20 && disk_bytes(&dir) > 3 << 20,
            "it is nearly full"
        );
        assert_eq!(
            sweep(&cache, &kept).contents,
            (held.len() - kept.len()) as u64
        );
        for bytes in &kept {
            assert_eq!(cache.load(&key(bytes)).as_deref(), Some(&bytes[..]));
        }
        assert!(disk_bytes(&dir) < 3 << 20, "{}", disk_bytes(&dir));
    }

    #[test]
    fn a_disk_that_cannot_be_written_keeps_nothing_that_is_only_to_be_unlinked() {
        let dir = TempDir::new().unwrap();
        let cache = open(&dir, 64 << 20);
        let all = filled(&cache);
        let before = disk_bytes(&dir);
        let kept: Vec<_> = all.iter().take(20).step_by(2).collect();
        cache.fail_once();
        let swept = sweep(&cache, &kept);
        assert!(swept.is_partial && swept.contents == 50);
        assert!(disk_bytes(&dir) < before / 2, "{}", disk_bytes(&dir));
        let counted = cache.stats().held;
        assert!(counted.abs_diff(disk_bytes(&dir)) < 1000, "{counted}");
        std::thread::sleep(std::time::Duration::from_millis(1100));
        let swept = sweep(&cache, &kept);
        assert!(!swept.is_partial && swept.bytes > 500_000, "{swept:?}");
        for bytes in &kept {
            assert_eq!(cache.load(&key(bytes)).as_deref(), Some(&bytes[..]));
        }
    }
}
