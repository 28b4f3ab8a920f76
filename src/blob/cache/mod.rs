//! The cache on disk: verified content of all layers, found by its digest.
//!
//! Layout: a folder of append-only *pack* files and a lock; `CACHE_FORMAT.md` beside this folder
//! draws every byte. Small contents share a pack, so none costs a file of its own; a large file can
//! be kept as a file ([`whole`]), for the kernel to read by itself.
//!
//! Promises: what a read returns has the promised digest or none was promised; the files together
//! stay within `max_size`, apart from packs that were evicted while a read had them open and one
//! that a sweep writes anew; the
//! least recently used content goes first; whatever a disk does (full, failing, garbled) becomes
//! a miss, and writing is tried again by itself.
//!
//! Locking: `sweeping` before all others; `writer` (one appends at a time) before `packs` (a read
//! holds it for one look-up), `wholes` or a shard of the index (likewise); the inner ones are never held together. A read
//! takes neither `writer` nor any lock during I/O.
//!
//! Crash behaviour: see [`pack`]; nothing is lost but the records that were being written.

mod blocks;
mod evict;
mod files;
mod folder;
mod index;
mod pack;
mod record;
mod store;
mod sums;
mod sweep;
mod whole;
mod writer;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod whole_tests;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};

use crate::blob::size::ByteSize;
use crate::oci::Digest;

use folder::Folder;
use index::{Index, Place};
use pack::{MAX_PACK, Pack};
use record::{LINE, TRAILER};
use store::Store;
use whole::{WHOLE, Whole};
use writer::Writer;

pub use files::Large;
pub use record::{Key, Verified};
pub use sweep::{Sweep, Swept};
pub use whole::{Home, WholeFile};

/// Why a cache cannot be opened. Later trouble is a miss, never an error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another process has it.
    #[error(
        "cache {} is in use by another process (a daemon on the same root?); give this one a \
         folder of its own",
        .0.display()
    )]
    Locked(PathBuf),
    /// The folder cannot be made, read or written.
    #[error("opening cache {}: {source}", path.display())]
    Open {
        /// The folder.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

/// The section `[cache]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How much disk the cache may use; the least recently used content goes first. Default
    /// `20GiB`. `0` keeps nothing, so every read comes from the registry.
    pub max_size: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_size: ByteSize(20 << 30),
        }
    }
}

/// Counters since the start, and what is held now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Bytes of disk in use.
    pub held: u64,
    /// The bound, in bytes.
    pub max_size: u64,
    /// Contents held.
    pub entries: u64,
    /// Bytes of content that were written.
    pub written: u64,
    /// Bytes of packs that were evicted.
    pub evicted: u64,
    /// Contents that were found damaged and dropped.
    pub damaged: u64,
    /// Writes that failed; each pauses writing for a while.
    pub write_errors: u64,
}

#[derive(Default)]
struct Counters {
    held: AtomicU64,
    written: AtomicU64,
    evicted: AtomicU64,
    damaged: AtomicU64,
    write_errors: AtomicU64,
}

/// The cache. Shared by all layers of a process.
pub struct Cache {
    folder: Folder,
    index: Index,
    /// Packs and whole files, by number.
    packs: RwLock<BTreeMap<u32, Store>>,
    /// Whole files by the name of their content.
    wholes: Mutex<HashMap<Digest, Arc<Whole>>>,
    boot: Option<[u8; 16]>,
    writer: Mutex<Writer>,
    /// Until when nothing is written, because that has failed.
    paused: Mutex<Option<Instant>>,
    /// Held by the one sweep that there can be.
    sweeping: Mutex<()>,
    counters: Counters,
    clock: Clock,
    max_size: u64,
    pack_size: u64,
}

impl Cache {
    /// Opens the cache in `path`, making it if need be, and finds what it holds.
    ///
    /// # Errors
    /// Another process uses it, or the folder cannot be made or read.
    pub fn open(path: &Path, config: &Config) -> Result<Self, Error> {
        let max_size = config.max_size.0;
        let cache = Self {
            folder: Folder::open(path)?,
            index: Index::new(),
            packs: RwLock::default(),
            wholes: Mutex::default(),
            boot: sums::boot(),
            writer: Mutex::new(Writer::default()),
            paused: Mutex::default(),
            sweeping: Mutex::default(),
            counters: Counters::default(),
            clock: Clock::new(),
            max_size,
            // About 128 packs keep both the loss per eviction and the open files few.
            pack_size: (max_size / 128).clamp((max_size / 16).min(1 << 20), MAX_PACK / 2),
        };
        cache.scan().map_err(|source| Error::Open {
            path: path.to_owned(),
            source,
        })?;
        Ok(cache)
    }

    /// Whether `key` is held, as far as memory knows. Does not count as use.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        self.index
            .peek(key.short())
            .is_some_and(|place| place.size == key.size())
    }

    /// Copies `out.len()` bytes from `at` of `key`, verified; false if they are not held, lie
    /// outside of it, or turned out to be damaged. Allocates nothing.
    #[must_use]
    pub fn read(&self, key: &Key, at: u32, out: &mut [u8]) -> bool {
        if at as usize + out.len() > key.size() as usize {
            return false;
        }
        let Some(place) = self.index.find(key.short(), self.clock.now()) else {
            return false;
        };
        if place.size != key.size() {
            return false;
        }
        let store = self.packs.read().get(&place.pack).cloned();
        // Evicted between the two look-ups.
        let Some(store) = store else { return false };
        match store.read(place.offset, key, at, out) {
            Ok(()) => true,
            Err(damage) => {
                self.drop_damaged(key, place, &store, &damage);
                false
            }
        }
    }

    /// All of `key`, verified, if it is held.
    #[must_use]
    pub fn load(&self, key: &Key) -> Option<Bytes> {
        if !self.contains(key) {
            return None;
        }
        let mut content = vec![0; key.size() as usize];
        self.read(key, 0, &mut content).then(|| content.into())
    }

    /// Takes in those of `contents` that it does not hold yet; yields how many bytes of content
    /// were written. A disk that fails or is full is not the caller's concern: the contents are
    /// then not held, and after a pause the next are tried.
    pub fn insert(&self, contents: &[Verified<'_>]) -> u64 {
        let written = self.writer.lock().append(self, contents);
        self.counters.written.fetch_add(written, Ordering::Relaxed);
        written
    }

    /// Whether what comes now is not kept, because writing failed a short while ago.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
            .lock()
            .is_some_and(|until| Instant::now() < until)
    }

    /// As if writing had failed just now.
    #[cfg(test)]
    pub(in crate::blob) fn fail_once(&self) {
        let error = io::Error::other("it is a test");
        self.writer.lock().pause(self, &error);
    }

    /// The bound on what it holds, in bytes.
    #[must_use]
    pub const fn max_size(&self) -> u64 {
        self.max_size
    }

    /// What it holds and has done.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheStats {
            held: get(&self.counters.held),
            max_size: self.max_size,
            entries: self.index.len() as u64,
            written: get(&self.counters.written),
            evicted: get(&self.counters.evicted),
            damaged: get(&self.counters.damaged),
            write_errors: get(&self.counters.write_errors),
        }
    }

    /// Total, free and available bytes of the cache's disk.
    ///
    /// # Errors
    /// The system call fails.
    pub fn disk(&self) -> io::Result<(u64, u64, u64)> {
        self.folder.disk()
    }

    /// Finds what the packs hold. Older packs first, so that of a content that was written twice
    /// (it was damaged in between) the newer stays.
    fn scan(&self) -> io::Result<()> {
        let ids = self.folder.packs()?;
        let mut writer = self.writer.lock();
        for id in ids {
            let loaded = if id & WHOLE == 0 {
                writer.next_id = id.checked_add(1).ok_or(io::ErrorKind::FileTooLarge)?;
                self.load_pack(&mut writer, id)
            } else {
                self.scan_whole(&mut writer, id)
            };
            if let Err(error) = loaded {
                // One bad file must not cost the others; a later start may read it again.
                tracing::warn!(pack = id, %error, "cache file cannot be read, leaving it aside");
            }
        }
        let _ = writer.make_room(self, 0);
        Ok(())
    }

    fn load_pack(&self, writer: &mut Writer, id: u32) -> io::Result<()> {
        let Some(pack) = Pack::open(id, self.folder.open_pack(id)?)? else {
            tracing::info!(pack = id, "removing a cache file of another version");
            return self.folder.remove(id);
        };
        let pack = Arc::new(pack);
        let mut records = 0;
        let listed = pack.list(&mut |key, offset| {
            records += 1;
            let size = key.size();
            let place = Place {
                pack: id,
                offset,
                size,
            };
            self.index.put(key.short(), place, 0);
        });
        // Nothing of what cannot be read may be taken for held.
        let (end, sealed) = listed.inspect_err(|_| self.index.remove_pack(id))?;
        let store = Store::Pack(Arc::clone(&pack));
        self.packs.write().insert(id, store.clone());
        if sealed {
            self.charge(&store, pack.len()?);
        } else {
            self.charge(&store, end + records * LINE as u64 + TRAILER as u64);
            writer.adopt(self, pack, end);
        }
        Ok(())
    }

    /// Counts bytes that `store` takes or will have taken when it is sealed. Only under `writer`.
    fn charge(&self, store: &Store, bytes: u64) {
        store.charged().fetch_add(bytes, Ordering::Relaxed);
        self.counters.held.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The inverse of [`Self::charge`], for all of `store`; yields what it was counted with. Only
    /// under `writer`.
    fn uncharge(&self, store: &Store) -> u64 {
        let bytes = store.charged().swap(0, Ordering::Relaxed);
        let held = self.counters.held.load(Ordering::Relaxed);
        let rest = held.saturating_sub(bytes);
        self.counters.held.store(rest, Ordering::Relaxed);
        bytes
    }

    fn drop_damaged(&self, key: &Key, place: Place, store: &Store, damage: &blocks::Damage) {
        if let Store::Whole(whole) = store {
            whole.damaged(place.offset);
        }
        if self.index.remove(key.short(), place) {
            self.counters.damaged.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                pack = place.pack,
                offset = place.offset,
                %damage,
                "cached content is damaged, it will be fetched again"
            );
        }
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// Coarse time: one tick is 64 ms, so 32 bits last eight years of uptime.
struct Clock {
    start: std::time::Instant,
    /// Ticks that tests let pass.
    #[cfg(test)]
    skipped: std::sync::atomic::AtomicU32,
}

impl Clock {
    fn new() -> Self {
        Self {
            start: std::time::Instant::now(),
            #[cfg(test)]
            skipped: 0.into(),
        }
    }

    /// Ticks since the start, at least 1: what was found on the disk is older than any use.
    fn now(&self) -> u32 {
        let ticks = u32::try_from(self.start.elapsed().as_millis() >> 6).unwrap_or(u32::MAX);
        #[cfg(test)]
        let ticks = ticks + self.skipped.load(Ordering::Relaxed);
        ticks.saturating_add(1).min(index::LATEST)
    }
}
