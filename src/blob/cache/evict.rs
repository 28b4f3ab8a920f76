//! Which pack goes when the cache is full.
//!
//! Packs are evicted whole, because a file can be unlinked at once while single records would
//! leave holes that the file system tracks. The pack whose bytes were on average used longest ago
//! goes (bytes of dropped contents count as never used); of its records, those used more recently
//! than the cache's average are copied to the pack being written, the most recent first, up to
//! half of the pack, so that every eviction frees at least the other half. So a hot file in a
//! cold pack survives, and one pass over the index (32 bytes a content) per pack is all it costs.
//! A whole file goes like a pack, unless it is open, and without survivors.
//! After a restart what is on the disk counts as unused, packs in the order they were written.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use crate::blob::cache::Cache;
use crate::blob::cache::index::Place;
use crate::blob::cache::store::Store;

/// A record that stays though its pack goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Survivor {
    /// Where it lies in the old pack.
    pub place: Place,
    /// When it was last used, in ticks.
    pub used: u32,
}

/// What to evict.
pub(super) struct Plan {
    /// The pack or whole file that goes.
    pub store: Store,
    /// Its records that stay, by short key.
    pub survivors: Vec<(u128, Survivor)>,
}

#[derive(Default)]
struct Sum {
    bytes: u64,
    /// Last use weighted with bytes.
    used: u128,
}

impl Sum {
    fn add(&mut self, size: u32, used: u32) {
        self.bytes += u64::from(size);
        self.used += u128::from(size) * u128::from(used);
    }

    /// Average last use when spread over `bytes`.
    fn average(&self, bytes: u64) -> u64 {
        let average = self.used / u128::from(bytes.max(self.bytes).max(1));
        u64::try_from(average).unwrap_or(u64::MAX)
    }
}

/// Chooses among all packs but `active`; `None` if there is no other.
pub(super) fn plan(cache: &Cache, active: Option<u32>) -> Option<Plan> {
    let mut sums: BTreeMap<u32, Sum> = BTreeMap::new();
    let mut all = Sum::default();
    cache.index.for_each(&mut |row| {
        sums.entry(row.place.pack)
            .or_default()
            .add(row.place.size, row.used);
        all.add(row.place.size, row.used);
    });
    let packs = cache.packs.read().clone();
    let empty = Sum::default();
    let (_, store) = packs
        .into_iter()
        .filter(|(id, store)| Some(*id) != active && !store.is_pinned())
        .min_by_key(|(id, store)| {
            let len = store.charged().load(Ordering::Relaxed);
            let average = sums.get(id).unwrap_or(&empty).average(len);
            (average.max(store.used().into()), *id)
        })?;
    let survivors = match &store {
        Store::Pack(_) => survivors(cache, &store, all.average(0)),
        // Its chunks in packs would have to be copied back to it.
        Store::Whole(_) => Vec::new(),
    };
    Some(Plan { store, survivors })
}

/// Forgets a pack or whole file and unlinks it; a read that has it open goes on.
pub(super) fn remove(cache: &Cache, id: u32) {
    // First of all the index: what it has, a reader takes for held.
    cache.index.remove_pack(id);
    let removed = cache.packs.write().remove(&id);
    let Some(store) = removed else {
        return;
    };
    if let Store::Whole(whole) = &store {
        cache.wholes.lock().remove(whole.name());
    }
    let len = cache.uncharge(&store);
    if let Err(error) = cache.folder.remove(id) {
        tracing::warn!(pack = id, %error, "cannot remove an evicted cache file");
    }
    cache.counters.evicted.fetch_add(len, Ordering::Relaxed);
}

fn survivors(cache: &Cache, pack: &Store, average: u64) -> Vec<(u128, Survivor)> {
    let mut warm = Vec::new();
    cache.index.for_each(&mut |row| {
        if row.place.pack == pack.id() && u64::from(row.used) > average {
            warm.push((
                row.short,
                Survivor {
                    place: row.place,
                    used: row.used,
                },
            ));
        }
    });
    warm.sort_unstable_by_key(|(short, row)| (std::cmp::Reverse(row.used), *short));
    let mut room = pack.charged().load(Ordering::Relaxed) / 2;
    warm.retain(|(_, row)| {
        let fits = u64::from(row.place.size) < room;
        room = room.saturating_sub(u64::from(row.place.size));
        fits
    });
    warm
}
