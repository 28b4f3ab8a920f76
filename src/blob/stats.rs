//! Counters of one layer, and the order in which its content was first read.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::blob::map::ChunkId;

/// First reads that are recorded per layer; a cold start is over long before.
const PROFILE: usize = 8 * 1024;

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

/// Chunks in the order of their first read. Recording takes no lock and no memory: one bit per
/// chunk says whether it was read, and the list has its room from the start.
pub(super) struct FirstReads {
    seen: Box<[AtomicU64]>,
    order: Box<[AtomicU32]>,
    len: AtomicU32,
}

impl FirstReads {
    /// For a layer of `chunks` chunks.
    pub(super) fn new(chunks: u32) -> Self {
        let chunks = chunks as usize;
        Self {
            seen: (0..chunks.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
            order: (0..chunks.min(PROFILE))
                .map(|_| AtomicU32::new(u32::MAX))
                .collect(),
            len: AtomicU32::new(0),
        }
    }

    /// Notes a read of `chunk`.
    pub(super) fn note(&self, chunk: ChunkId) {
        let bit = 1 << (chunk.0 % 64);
        let Some(word) = self.seen.get(chunk.0 as usize / 64) else {
            return;
        };
        if word.load(Ordering::Relaxed) & bit != 0
            || word.fetch_or(bit, Ordering::Relaxed) & bit != 0
        {
            return;
        }
        // Each chunk comes here once, so this cannot wrap.
        let at = self.len.fetch_add(1, Ordering::Relaxed);
        if let Some(slot) = self.order.get(at as usize) {
            slot.store(chunk.0, Ordering::Relaxed);
        }
    }

    /// The chunks in order of their first read.
    pub(super) fn list(&self) -> Vec<ChunkId> {
        let chunks = self.order.iter().map(|slot| slot.load(Ordering::Relaxed));
        chunks
            .filter(|chunk| *chunk != u32::MAX)
            .map(ChunkId)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_reads_are_listed_once_in_order_and_bounded() {
        let reads = FirstReads::new(100_000);
        for chunk in [5, 99_999, 5, 0, 100_032, u32::MAX, 64] {
            reads.note(ChunkId(chunk));
        }
        assert_eq!(reads.list(), [5, 99_999, 0, 64].map(ChunkId));
        (0..100_000).for_each(|chunk| reads.note(ChunkId(chunk)));
        assert_eq!(reads.list().len(), PROFILE);
        assert!(FirstReads::new(0).list().is_empty());
    }
}
