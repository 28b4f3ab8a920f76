//! Whole files in the cache: begun, found by name, completed, opened.
//!
//! Locking: `wholes` after `writer`, never together with `packs`; a file is verified without any
//! lock, and written under `writer`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::blob::cache::Cache;
use crate::blob::cache::index::Place;
use crate::blob::cache::record::{Key, Verified};
use crate::blob::cache::store::Store;
use crate::blob::cache::sums::SumsHeader;
use crate::blob::cache::whole::{self, Home, WHOLE, Whole, WholeFile};
use crate::blob::cache::writer::Writer;
use crate::oci::Digest;

/// Most whole files: each keeps two files open. What is beyond lies in packs.
const MOST: usize = 400;
/// A file larger than this part of the cache would drive out too much at once: it lies in packs.
const SHARE: u64 = 4;

/// A large file that the cache has, complete or not.
#[derive(Debug, Clone)]
pub struct Large(Arc<Whole>);

impl Large {
    /// The place of chunk `number` of it, which starts at `at`.
    #[must_use]
    pub fn home(&self, number: u32, at: u64) -> Home {
        let whole = Arc::clone(&self.0);
        Home { whole, number, at }
    }

    /// How many of its chunks are there.
    #[must_use]
    pub fn present(&self) -> u32 {
        self.0.present()
    }
}

impl Cache {
    /// The large file of that name, if it is there, complete or not.
    #[must_use]
    pub fn find_large(&self, name: &Digest) -> Option<Large> {
        self.wholes.lock().get(name).cloned().map(Large)
    }

    /// The same, begun if it is not there. `None` if it cannot be: there are too many, it is too
    /// large for this cache, or the disk cannot be written now.
    pub fn begin_large(&self, name: Digest, size: u64, chunks: u32) -> Option<Large> {
        if let Some(found) = self.find_large(&name) {
            return Some(found);
        }
        let mut writer = self.writer.lock();
        if let Some(found) = self.find_large(&name) {
            return Some(found);
        }
        let id = writer.next_whole | WHOLE;
        let header = SumsHeader {
            id,
            chunks,
            size,
            name,
        };
        let cost = whole::sums_len(&header);
        let fits = size.saturating_add(cost) <= self.max_size / SHARE;
        if !fits || self.is_paused() || self.wholes.lock().len() >= MOST {
            return None;
        }
        if !writer.make_room(self, cost) {
            return None;
        }
        let created = self.folder.create_whole(id);
        let created = created.and_then(|(data, sums)| Whole::create(header, data, sums));
        let whole = match created {
            Ok(whole) => Arc::new(whole),
            Err(error) => {
                let _ = self.folder.remove(id);
                writer.pause(self, &error);
                return None;
            }
        };
        writer.next_whole = (id & !WHOLE).saturating_add(1);
        whole.used.store(self.clock.now(), Ordering::Relaxed);
        self.add_large(&whole, cost);
        Some(Large(whole))
    }

    /// Makes a large file ready to be opened, if all of it is held: what lies elsewhere is copied
    /// to its place, what was not verified since this boot is. `chunk` is each chunk's name and
    /// where it starts. Blocks; true if it is ready now.
    pub fn complete_large(
        &self,
        large: &Large,
        chunk: &dyn Fn(u32) -> Option<(Key, u64)>,
        chunks: u32,
    ) -> bool {
        let Some(boot) = self.boot else { return false };
        let whole = &large.0;
        if whole.is_sealed() {
            return true;
        }
        let mut buffer = Vec::new();
        let mut stamp = whole.stamp(boot);
        for number in 0..chunks {
            if whole.has_checked(number) {
                continue;
            }
            let Some((key, at)) = chunk(number) else {
                return false;
            };
            if whole.has(number) && whole.check(number, at, &key, &mut buffer) {
                continue;
            }
            let home = large.home(number, at);
            match self.load(&key) {
                Some(content) if self.bring_home(&key, &content, &home) => {}
                _ => return false,
            }
            stamp = whole.stamp(boot);
        }
        let sealed = stamp.and_then(|stamp| whole.seal(&stamp));
        sealed.unwrap_or_else(|error| {
            tracing::debug!(?whole, %error, "cannot seal a cached file");
            false
        })
    }

    /// A large file, for the kernel to read by itself; `None` if it is not complete and verified.
    #[must_use]
    pub fn open_large(self: &Arc<Self>, large: &Large) -> Option<WholeFile> {
        if !large.0.is_sealed() {
            return None;
        }
        // An eviction that chose it a moment ago only takes its name: what is open stays readable.
        let pinned = WholeFile::pin(self, Arc::clone(&large.0));
        let there = self.packs.read().contains_key(&large.0.id());
        there.then_some(pinned)
    }

    /// Takes a large file that was made or found into the tables.
    pub(super) fn add_large(&self, whole: &Arc<Whole>, bytes: u64) {
        let store = Store::Whole(Arc::clone(whole));
        self.charge(&store, bytes);
        self.packs.write().insert(whole.id(), store);
        self.wholes.lock().insert(*whole.name(), Arc::clone(whole));
    }

    /// Finds the whole files of earlier processes.
    pub(super) fn scan_whole(&self, writer: &mut Writer, id: u32) -> io::Result<()> {
        writer.next_whole = (id & !WHOLE).saturating_add(1);
        let found = self.folder.open_whole(id).and_then(|(data, sums)| {
            Whole::open(id, data, sums, self.boot, &mut |key, number| {
                let place = Place {
                    pack: id,
                    offset: number,
                    size: key.size(),
                };
                self.index.put(key.short(), place, 0);
            })
        });
        match found {
            Ok(Some(whole)) if self.wholes.lock().len() < MOST => {
                let bytes = whole.charged.swap(0, Ordering::Relaxed);
                self.add_large(&Arc::new(whole), bytes);
                Ok(())
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                self.index.remove_pack(id);
                Err(error)
            }
            _ => {
                tracing::info!(file = id, "removing a cached file of another version");
                self.index.remove_pack(id);
                self.folder.remove(id)
            }
        }
    }

    fn bring_home(&self, key: &Key, content: &[u8], home: &Home) -> bool {
        let mut writer = self.writer.lock();
        let content = Verified::from_cache(*key, content);
        match writer.put_home(self, &content, home) {
            Ok(written) => written,
            Err(error) => {
                writer.pause(self, &error);
                false
            }
        }
    }
}
