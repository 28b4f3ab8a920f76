//! Which chunks of a layer belong to large files, and when such a file is complete.
//!
//! Only for layers whose mounts can pass files through to the kernel
//! ([`crate::blob::Blob::pass_through`]); in all others every chunk goes to a pack.
//!
//! Locking: `known` is held for a look-up. A file is completed without it, by one thread at a time.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use crate::blob::cache::{Cache, Home, Key, Large, WholeFile};
use crate::blob::map::{ChunkId, LayerMap, Proof};
use crate::oci::{Digest, Hasher};

/// Smallest file that is kept as a file of its own, in bytes. Below it the request that opens a
/// file by itself costs more than reading it through this process.
pub const SMALLEST: u64 = 1 << 20;
/// How long an open does not look again whether a file has become complete.
const PATIENCE: Duration = Duration::from_secs(1);

/// The large files of one layer.
pub(in crate::blob) struct WholeFiles {
    cache: Arc<Cache>,
    map: Arc<dyn LayerMap>,
    enabled: AtomicBool,
    /// By their first chunk, those that were read or fetched so far.
    known: RwLock<BTreeMap<u32, Arc<Known>>>,
}

/// A large file.
struct Known {
    chunks: Range<u32>,
    size: u64,
    name: Digest,
    /// Its chunks that have to be written to their places until the rest is held elsewhere.
    needed: u32,
    /// Whether a thread completes it.
    busy: AtomicBool,
    /// When it was last found incomplete.
    looked: Mutex<Option<Instant>>,
}

impl WholeFiles {
    pub(in crate::blob) fn new(cache: Arc<Cache>, map: Arc<dyn LayerMap>) -> Self {
        Self {
            cache,
            map,
            enabled: AtomicBool::new(false),
            known: RwLock::default(),
        }
    }

    /// From now on large files are kept as files.
    pub(in crate::blob) fn enable(&self) {
        self.enabled.store(true, Ordering::Relaxed);
    }

    /// Where in a large file this chunk belongs, if it does.
    pub(in crate::blob) fn home(&self, chunk: ChunkId) -> Option<Home> {
        if !self.enabled.load(Ordering::Relaxed) {
            return None;
        }
        let at = self.map.place(chunk)?;
        let known = self.known(chunk.0)?;
        let count = known.count();
        let large = self.cache.begin_large(known.name, known.size, count)?;
        Some(large.home(chunk.0 - known.chunks.start, at))
    }

    /// Completes the file of this chunk, which was just written, if it was the last. Blocks.
    pub(in crate::blob) fn written(&self, chunk: ChunkId) {
        if let Some(known) = self.known(chunk.0)
            && let Some(large) = self.cache.find_large(&known.name)
            && large.present() >= known.needed
        {
            self.complete(&known, &large);
        }
    }

    /// The file with these chunks, for the kernel to read by itself, if it is complete. Waits for
    /// nothing; one that may have become complete unseen is looked at by `later`.
    pub(in crate::blob) fn open(
        self: &Arc<Self>,
        file: &Range<u32>,
        later: &dyn Fn(Box<dyn FnOnce() + Send>),
    ) -> Option<WholeFile> {
        if !self.enabled.load(Ordering::Relaxed) || file.is_empty() {
            return None;
        }
        let known = self.known(file.start).filter(|k| k.chunks == *file)?;
        let large = self.cache.find_large(&known.name);
        let opened = large.and_then(|large| self.cache.open_large(&large));
        if opened.is_none() && known.is_to_be_looked_at() {
            let files = Arc::clone(self);
            later(Box::new(move || files.look(&known)));
        }
        opened
    }

    /// Completes a file whose chunks may all be held, some of them elsewhere.
    fn look(&self, known: &Arc<Known>) {
        let held = |number| {
            self.key(known, number)
                .is_some_and(|(key, _)| self.cache.contains(&key))
        };
        if !(0..known.count()).all(held) {
            return;
        }
        let large = self
            .cache
            .begin_large(known.name, known.size, known.count());
        if let Some(large) = large {
            self.complete(known, &large);
        }
    }

    fn complete(&self, known: &Known, large: &Large) {
        if known.busy.swap(true, Ordering::Acquire) {
            return;
        }
        let chunk = |number| self.key(known, number);
        let done = self.cache.complete_large(large, &chunk, known.count());
        known.busy.store(false, Ordering::Release);
        tracing::debug!(file = %known.name, size = known.size, done, "completing a large file");
    }

    fn key(&self, known: &Known, number: u32) -> Option<(Key, u64)> {
        let chunk = ChunkId(known.chunks.start.checked_add(number)?);
        let info = self.map.chunk(chunk)?;
        Some((Key::new(&info.proof, info.size), self.map.place(chunk)?))
    }

    /// The large file that `chunk` is of.
    fn known(&self, chunk: u32) -> Option<Arc<Known>> {
        let found = {
            let known = self.known.read();
            let before = known.range(..=chunk).next_back();
            before.map(|(_, known)| Arc::clone(known))
        };
        if let Some(known) = found.filter(|known| known.chunks.contains(&chunk)) {
            return Some(known);
        }
        let known = Arc::new(self.learn(chunk)?);
        let mut all = self.known.write();
        Some(Arc::clone(all.entry(known.chunks.start).or_insert(known)))
    }

    /// Goes over the chunks of a file: once for a large one, and few for a small one.
    fn learn(&self, chunk: u32) -> Option<Known> {
        let place = |chunk| self.map.place(ChunkId(chunk));
        let mut start = chunk;
        while place(start)? > 0 {
            start = start.checked_sub(1)?;
        }
        let (mut end, mut size) = (start, 0);
        let mut name = Hasher::new();
        let (mut keys, mut needed) = (HashSet::new(), 0);
        while place(end) == Some(size) {
            let info = self.map.chunk(ChunkId(end))?;
            let key = Key::new(&info.proof, info.size);
            name.update(&[u8::from(matches!(info.proof, Proof::Sha256(_)))]);
            name.update(&info.size.to_le_bytes());
            name.update(info.proof.key().as_bytes());
            if !self.cache.contains(&key) && keys.insert(key) {
                needed += 1;
            }
            size += u64::from(info.size);
            end += 1;
        }
        let name = name.finish();
        // What lies in the file already is not written again.
        let present = self
            .cache
            .find_large(&name)
            .map_or(0, |large| large.present());
        (size >= SMALLEST).then(|| Known {
            chunks: start..end,
            size,
            name,
            needed: needed + present,
            busy: AtomicBool::new(false),
            looked: Mutex::new(None),
        })
    }
}

impl Known {
    fn count(&self) -> u32 {
        self.chunks.end - self.chunks.start
    }

    fn is_to_be_looked_at(&self) -> bool {
        let mut looked = self.looked.lock();
        let now = Instant::now();
        let fresh = looked.is_some_and(|then| now.duration_since(then) < PATIENCE);
        if !fresh {
            *looked = Some(now);
        }
        !fresh && !self.busy.load(Ordering::Relaxed)
    }
}
