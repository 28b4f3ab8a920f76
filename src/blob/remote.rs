//! One layer's content: [`ReadAt`] over the cache and the registry.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::blob::cache::{Key, WholeFile};
use crate::blob::fetch::{Class, Fetcher, Layer};
use crate::blob::first_reads::{FirstReads, ReadLog};
use crate::blob::map::{ChunkId, ChunkInfo, LayerMap, MemberId, before_landmark};
use crate::blob::read::{ReadAt, ReadError, Space};
use crate::blob::stats::{Counters, LayerStats};
use crate::registry::RangeSource;

/// How long a sum over all chunks of the layer is good enough for `statfs`.
const FRESH: Duration = Duration::from_secs(10);

/// A lazily read layer. Dropping it ends all of its requests; who still waits gets
/// [`ReadError::Closed`].
pub struct Blob {
    layer: Arc<Layer>,
    reads: Arc<FirstReads>,
    /// The same for who only watches: it must not take the room of recordings.
    watched: Arc<FirstReads>,
    held: Mutex<Option<(Instant, u64)>>,
}

impl Blob {
    /// A layer of `source`, laid out as `map` says. Asks for nothing yet.
    #[must_use]
    pub fn new(
        fetcher: &Arc<Fetcher>,
        source: Arc<dyn RangeSource>,
        map: Arc<dyn LayerMap>,
    ) -> Self {
        let reads = || FirstReads::new(map.chunk_count());
        let (reads, watched) = (reads(), reads());
        Self {
            layer: Layer::new(fetcher, source, map),
            reads,
            watched,
            held: Mutex::new(None),
        }
    }

    /// Starts the background, if the configuration says so. Call it when the layer is mounted;
    /// layers are worked on in that order.
    pub fn start(&self) {
        self.layer.start_background();
    }

    /// Whether the cache holds all of it, as far as memory knows. Ends at the first chunk that is
    /// missing.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.layer.map.all_chunks(&mut |info| self.has(info))
    }

    /// Keeps large files as files from now on, for mounts that pass them through to the kernel.
    pub fn pass_through(&self) {
        self.layer.whole.enable();
    }

    /// Starts fetching the layer's beginning, up to its landmark, if it has one and the
    /// configuration says so.
    pub fn prefetch_landmark(&self) {
        let chunks = self.before_landmark();
        let chunks: Vec<_> = chunks.into_iter().map(|(chunk, _)| chunk).collect();
        self.prefetch(&chunks);
    }

    /// The chunks before the landmark that are read at a start, and their sizes; none if there is no
    /// landmark or the configuration says that it does not count.
    #[must_use]
    pub fn before_landmark(&self) -> Vec<(ChunkId, u32)> {
        let (mut chunks, map) = (Vec::new(), &*self.layer.map);
        if !self.layer.fetcher().prefetches() {
            return chunks;
        }
        for member in before_landmark(map) {
            map.chunks_of(MemberId(member), &mut |chunk| {
                let info = map.chunk(chunk).filter(|_| !map.is_unread(chunk));
                chunks.extend(info.map(|info| (chunk, info.size)));
            });
        }
        chunks
    }

    /// Fetches `chunks`, which are known to be needed soon, before the background and after what
    /// readers wait for; all of them together, so in the order in which they lie.
    pub fn prefetch(&self, chunks: &[ChunkId]) {
        let mut sorted: Vec<_> = chunks.iter().map(|chunk| chunk.0).collect();
        sorted.sort_by_key(|chunk| {
            let info = self.layer.map.chunk(ChunkId(*chunk));
            info.map(|info| info.member)
        });
        self.layer.queue_chunks(sorted.into_iter(), Class::List);
        self.layer.work();
    }

    /// Whether the cache holds a chunk; also true of one that there is not.
    #[must_use]
    pub fn holds(&self, chunk: ChunkId) -> bool {
        let info = self.layer.map.chunk(chunk);
        info.is_none_or(|info| self.has(&info))
    }

    /// Copies `out.len()` bytes from `at` of a chunk, if the cache holds it; nobody has read it by that.
    #[must_use]
    pub fn look(&self, chunk: ChunkId, at: u32, out: &mut [u8]) -> bool {
        let info = self.info(chunk, at, out.len());
        info.is_ok_and(|info| self.copy(&info, at, out))
    }

    /// Records which chunks are read from now on, until what this yields is dropped. What is only
    /// prefetched is not read.
    #[must_use]
    pub fn record_reads(&self) -> ReadLog {
        self.reads.record()
    }

    /// The same for a look at what is going on: where many watch, not every chunk is told to all.
    #[must_use]
    pub fn watch_reads(&self) -> ReadLog {
        self.watched.record()
    }

    fn note(&self, chunk: ChunkId) {
        self.reads.note(chunk);
        self.watched.note(chunk);
    }

    /// Counters since it was opened.
    #[must_use]
    pub fn stats(&self) -> LayerStats {
        self.layer.stats()
    }

    /// Bytes of this layer's content that the cache holds now. What layers share counts for each.
    /// Goes over all chunks: about 5 ms for 100,000.
    #[must_use]
    pub fn held(&self) -> u64 {
        let mut held = 0;
        self.layer.map.all_chunks(&mut |info| {
            if self.has(info) {
                held += u64::from(info.size);
            }
            true
        });
        held
    }

    fn has(&self, info: &ChunkInfo) -> bool {
        let cache = self.layer.fetcher().cache();
        cache.contains(&Key::new(&info.proof, info.size))
    }

    fn copy(&self, info: &ChunkInfo, at: u32, out: &mut [u8]) -> bool {
        let cache = self.layer.fetcher().cache();
        cache.read(&Key::new(&info.proof, info.size), at, out)
    }

    fn info(&self, chunk: ChunkId, at: u32, len: usize) -> Result<ChunkInfo, ReadError> {
        self.layer
            .map
            .chunk(chunk)
            .filter(|info| at as usize + len <= info.size as usize)
            .ok_or(ReadError::OutOfRange { chunk, at, len })
    }

    fn read_ahead(&self, ask: impl FnOnce(&dyn Fn(u32) -> u64) -> Range<u32>) {
        let size = |chunk| {
            self.layer
                .map
                .chunk(ChunkId(chunk))
                .map_or(0, |c| u64::from(c.size))
        };
        let chunks = ask(&size);
        if !chunks.is_empty() {
            self.layer.queue_chunks(chunks, Class::Ahead);
        }
    }
}

impl ReadAt for Blob {
    fn try_read(&self, chunk: ChunkId, at: u32, out: &mut [u8]) -> Result<bool, ReadError> {
        let hit = self.peek(chunk, at, out)?;
        if hit {
            Counters::add(&self.layer.counters.hits, 1);
            self.note(chunk);
        }
        Ok(hit)
    }

    fn peek(&self, chunk: ChunkId, at: u32, out: &mut [u8]) -> Result<bool, ReadError> {
        let info = self.info(chunk, at, out.len())?;
        if !self.copy(&info, at, out) {
            return Ok(false);
        }
        if self.layer.ahead.is_trigger(chunk.0) {
            self.read_ahead(|size| self.layer.ahead.on_trigger(chunk.0, size));
            self.layer.work();
        }
        Ok(true)
    }

    fn was_read(&self, chunks: Range<u32>) {
        chunks.for_each(|chunk| self.note(ChunkId(chunk)));
    }

    fn fetch(
        &self,
        chunk: ChunkId,
        file: Range<u32>,
    ) -> BoxFuture<'static, Result<Bytes, ReadError>> {
        let info = match self.info(chunk, 0, 0) {
            Ok(info) => info,
            Err(error) => return std::future::ready(Err(error)).boxed(),
        };
        Counters::add(&self.layer.counters.misses, 1);
        self.note(chunk);
        // The window is queued first and `join` sets to work, so that one request brings both.
        self.read_ahead(|size| {
            self.layer
                .ahead
                .on_miss(&(chunk.0..chunk.0 + 1), &file, size)
        });
        let ticket = self.layer.join(&info);
        Arc::clone(&self.layer).wait(ticket, info).boxed()
    }

    fn will_read(&self, chunks: Range<u32>, file: Range<u32>) {
        self.read_ahead(|size| self.layer.ahead.on_miss(&chunks, &file, size));
        self.layer.begin(chunks);
    }

    fn whole_file(&self, file: &Range<u32>) -> Option<WholeFile> {
        let fetcher = self.layer.fetcher();
        let later = |work: Box<dyn FnOnce() + Send>| fetcher.on_blocking_thread(work);
        self.layer.whole.open(file, &later)
    }

    fn space(&self) -> Space {
        let layer = {
            let mut held = self.held.lock();
            match *held {
                Some((when, bytes)) if when.elapsed() < FRESH => bytes,
                _ => {
                    let bytes = self.held();
                    *held = Some((Instant::now(), bytes));
                    bytes
                }
            }
        };
        let disk = self.layer.fetcher().cache().disk();
        let (disk_total, disk_free, disk_available) = disk.unwrap_or_default();
        Space {
            disk_total,
            disk_free,
            disk_available,
            layer,
        }
    }
}

impl Drop for Blob {
    fn drop(&mut self) {
        self.layer.close();
    }
}

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blob")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
