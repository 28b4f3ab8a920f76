//! Which chunks of a layer are read, in the order of their first read, while somebody wants to know.
//!
//! A recording is a profile's raw material. It is bounded, and a layer that nobody records holds
//! nothing for it: a read then costs one relaxed load.
//!
//! Locking: the log stands behind a read-write lock that a reader of the layer only ever *tries*:
//! where a recording begins or ends at that moment the read is not noted, and never waits. Nothing
//! is allocated by a read.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use crate::blob::map::ChunkId;

/// First reads that are kept of a layer; a cold start is over long before.
const MOST: usize = 8 * 1024;
/// Ticks a second of the times that are kept: 32 bits of them are five days.
const TICK: Duration = Duration::from_micros(100);

/// A chunk, and when it was first read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstRead {
    /// Since some moment, later for later reads of any layer of this process.
    pub at: Instant,
    /// Which.
    pub chunk: ChunkId,
}

/// The first reads of one layer.
pub(super) struct FirstReads {
    chunks: u32,
    active: AtomicBool,
    log: RwLock<Option<Log>>,
}

struct Log {
    /// Recordings that use it.
    users: u32,
    began: Instant,
    /// A bit for each chunk.
    seen: Box<[AtomicU64]>,
    /// Chunk in the lower half, ticks since `began` in the upper; `EMPTY` where nothing was noted.
    order: Box<[AtomicU64]>,
    len: AtomicU32,
}

const EMPTY: u64 = u64::MAX;

impl FirstReads {
    /// For a layer of `chunks` chunks. Records nothing yet.
    pub(super) fn new(chunks: u32) -> Arc<Self> {
        Arc::new(Self {
            chunks,
            active: AtomicBool::new(false),
            log: RwLock::new(None),
        })
    }

    /// Notes a read of `chunk`.
    pub(super) fn note(&self, chunk: ChunkId) {
        if self.active.load(Ordering::Relaxed)
            && let Some(log) = self.log.try_read()
            && let Some(log) = &*log
        {
            log.note(chunk);
        }
    }

    /// Records from now on, until what this yields is dropped. For every recording a chunk's first
    /// read is the first since it began.
    pub(super) fn record(self: &Arc<Self>) -> ReadLog {
        let mut log = self.log.write();
        let since = Instant::now();
        match &mut *log {
            Some(log) => {
                log.users += 1;
                log.seen.iter_mut().for_each(|word| *word.get_mut() = 0);
            }
            None => *log = Some(Log::new(self.chunks, since)),
        }
        self.active.store(true, Ordering::Relaxed);
        drop(log);
        ReadLog {
            reads: Arc::clone(self),
            since,
        }
    }

    fn end(&self) {
        let mut log = self.log.write();
        let is_last = log.as_mut().is_some_and(|log| {
            log.users -= 1;
            log.users == 0
        });
        if is_last {
            self.active.store(false, Ordering::Relaxed);
            *log = None;
        }
    }
}

impl Log {
    fn new(chunks: u32, began: Instant) -> Self {
        let chunks = chunks as usize;
        let words = |count, value| (0..count).map(|_| AtomicU64::new(value)).collect();
        Self {
            users: 1,
            began,
            seen: words(chunks.div_ceil(64), 0),
            order: words(chunks.min(MOST), EMPTY),
            len: AtomicU32::new(0),
        }
    }

    fn note(&self, chunk: ChunkId) {
        let bit = 1 << (chunk.0 % 64);
        let Some(word) = self.seen.get(chunk.0 as usize / 64) else {
            return;
        };
        if word.load(Ordering::Relaxed) & bit != 0
            || word.fetch_or(bit, Ordering::Relaxed) & bit != 0
        {
            return;
        }
        // Each chunk comes here once for each recording, so this cannot wrap.
        let at = self.len.fetch_add(1, Ordering::Relaxed);
        if let Some(slot) = self.order.get(at as usize) {
            let ticks = self.began.elapsed().as_micros() / TICK.as_micros();
            let ticks = u32::try_from(ticks).unwrap_or(u32::MAX - 1);
            let ticks = ticks.min(u32::MAX - 1);
            slot.store(
                u64::from(ticks) << 32 | u64::from(chunk.0),
                Ordering::Relaxed,
            );
        }
    }

    fn list(&self) -> impl Iterator<Item = FirstRead> {
        let noted = self.order.iter().map(|slot| slot.load(Ordering::Relaxed));
        let noted = noted.filter(|noted| *noted != EMPTY);
        noted.map(|noted| FirstRead {
            at: self.began + TICK * u32::try_from(noted >> 32).unwrap_or(0),
            chunk: chunk_of(noted),
        })
    }
}

/// The chunk of a note.
fn chunk_of(noted: u64) -> ChunkId {
    ChunkId(u32::try_from(noted & u64::from(u32::MAX)).unwrap_or(u32::MAX))
}

/// A recording of one layer's first reads. It does not keep the layer itself alive.
pub struct ReadLog {
    reads: Arc<FirstReads>,
    since: Instant,
}

impl ReadLog {
    /// The chunks that were read since it began, in the order of their first read; at most 8192.
    #[must_use]
    pub fn list(&self) -> Vec<FirstRead> {
        let mut seen = HashSet::new();
        let log = self.reads.log.read();
        let noted = log.iter().flat_map(Log::list);
        // What another recording noted before this one began may be read, and noted, once more.
        noted
            .filter(|read| read.at + TICK >= self.since && seen.insert(read.chunk))
            .collect()
    }

    /// The chunks that were noted after the first `seen` of them, which is moved on to now.
    #[must_use]
    pub fn after(&self, seen: &mut u32) -> Vec<ChunkId> {
        let log = self.reads.log.read();
        let Some(log) = &*log else {
            return Vec::new();
        };
        let len = log.len.load(Ordering::Relaxed);
        let noted = log.order.iter().skip(*seen as usize);
        let noted = noted.map(|slot| slot.load(Ordering::Relaxed));
        // One that has its place, and is not in it yet, comes next time, and those behind it.
        let noted: Vec<_> = noted.take_while(|noted| *noted != EMPTY).collect();
        *seen = seen.saturating_add(noted.len() as u32).min(len);
        noted.into_iter().map(chunk_of).collect()
    }

    /// A number that grows with every first read.
    #[must_use]
    pub fn count(&self) -> u32 {
        let log = self.reads.log.read();
        log.as_ref()
            .map_or(0, |log| log.len.load(Ordering::Relaxed))
    }
}

impl Drop for ReadLog {
    fn drop(&mut self) {
        self.reads.end();
    }
}

impl std::fmt::Debug for ReadLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadLog").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(log: &ReadLog) -> Vec<u32> {
        log.list().iter().map(|read| read.chunk.0).collect()
    }

    #[test]
    fn first_reads_are_listed_once_in_order_and_bounded() {
        let reads = FirstReads::new(100_000);
        reads.note(ChunkId(7));
        let log = reads.record();
        for chunk in [5, 99_999, 5, 0, 100_032, u32::MAX, 64] {
            reads.note(ChunkId(chunk));
        }
        assert_eq!(chunks(&log), [5, 99_999, 0, 64]);
        assert_eq!(log.count(), 4);
        let mut seen = 1;
        let later = [99_999, 0, 64].map(ChunkId);
        assert_eq!(log.after(&mut seen), later);
        assert!(log.after(&mut seen).is_empty());
        reads.note(ChunkId(6));
        assert_eq!((log.after(&mut seen), seen), (vec![ChunkId(6)], 5));
        (0..100_000).for_each(|chunk| reads.note(ChunkId(chunk)));
        assert_eq!(log.list().len(), MOST);
        assert!(chunks(&FirstReads::new(0).record()).is_empty());
    }

    #[test]
    fn times_tell_the_order_across_layers() {
        let (one, two) = (FirstReads::new(10), FirstReads::new(10));
        let logs = [one.record(), two.record()];
        for chunk in 0..6 {
            [&one, &two][chunk % 2].note(ChunkId(u32::try_from(chunk).unwrap()));
            std::thread::sleep(3 * TICK);
        }
        let mut all: Vec<_> = logs.iter().flat_map(ReadLog::list).collect();
        all.sort_by_key(|read| read.at);
        let order: Vec<_> = all.iter().map(|read| read.chunk.0).collect();
        assert_eq!(order, [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn each_recording_has_its_own_first_reads_and_the_last_one_frees_them() {
        let reads = FirstReads::new(100);
        let first = reads.record();
        reads.note(ChunkId(1));
        reads.note(ChunkId(2));
        std::thread::sleep(3 * TICK);
        let second = reads.record();
        reads.note(ChunkId(2));
        reads.note(ChunkId(3));
        assert_eq!(chunks(&first), [1, 2, 3]);
        assert_eq!(chunks(&second), [2, 3]);
        drop(first);
        reads.note(ChunkId(4));
        assert_eq!(chunks(&second), [2, 3, 4]);
        drop(second);
        assert!(reads.log.read().is_none() && !reads.active.load(Ordering::Relaxed));
    }
}
