//! Counters of one layer.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one layer since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerStats {
    /// Compressed bytes that came from the registry.
    pub fetched: u64,
    /// Requests to the registry.
    pub requests: u64,
    /// Bytes of content that were put into the cache.
    pub cached: u64,
    /// Reads answered from the cache.
    pub hits: u64,
    /// Reads that had to wait.
    pub misses: u64,
    /// Members that did not hold what was promised.
    pub corrupt: u64,
    /// Members the background has still to go through.
    pub background_left: u64,
    /// Members in all.
    pub members: u64,
}

/// [`LayerStats`] while they change.
#[derive(Default)]
pub(super) struct Counters {
    pub fetched: AtomicU64,
    pub requests: AtomicU64,
    pub cached: AtomicU64,
    pub hits: AtomicU64,
    pub misses: AtomicU64,
    pub corrupt: AtomicU64,
}

impl Counters {
    /// Adds to one of them.
    pub(super) fn add(counter: &AtomicU64, more: u64) {
        counter.fetch_add(more, Ordering::Relaxed);
    }

    /// Their values, without what the plan knows.
    pub(super) fn snapshot(&self) -> LayerStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LayerStats {
            fetched: get(&self.fetched),
            requests: get(&self.requests),
            cached: get(&self.cached),
            hits: get(&self.hits),
            misses: get(&self.misses),
            corrupt: get(&self.corrupt),
            ..LayerStats::default()
        }
    }
}
