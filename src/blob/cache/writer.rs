//! The one place that appends to the cache.
//!
//! Small contents that come together (the members of many small files) are written with one
//! system call. A failed write cuts the pack back to its last whole record and pauses writing;
//! the pause doubles up to a minute and ends with the first write that works.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::blob::cache::Cache;
use crate::blob::cache::evict;
use crate::blob::cache::index::Place;
use crate::blob::cache::pack::Pack;
use crate::blob::cache::record::{Key, LINE, PACK_HEADER, TRAILER, Verified, record_len};
use crate::blob::cache::store::Store;
use crate::blob::cache::whole::Home;

/// Contents up to this size are copied together before they are written.
const BATCH: usize = 256 << 10;
/// What an empty pack is counted with.
pub(super) const EMPTY: u64 = (PACK_HEADER + TRAILER) as u64;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The pack that is being written, and why not if none is.
#[derive(Default)]
pub(super) struct Writer {
    /// Number of the next pack.
    pub next_id: u32,
    /// Number of the next whole file, without the bit that marks it.
    pub next_whole: u32,
    active: Option<Active>,
    buffer: Vec<u8>,
    /// Contents in `buffer` that the index does not know yet.
    pending: HashMap<Key, u32>,
    /// How long the last pause was, unless a write has worked since.
    pause: Option<Duration>,
}

struct Active {
    pack: Arc<Pack>,
    /// Where the next record goes.
    end: u64,
}

impl Writer {
    /// Writes those of `contents` that are not held; yields the bytes of content written.
    pub(super) fn append(&mut self, cache: &Cache, contents: &[Verified<'_>]) -> u64 {
        if cache.is_paused() {
            return 0;
        }
        match self.try_append(cache, contents) {
            Ok(written) => {
                if written > 0 {
                    self.pause = None;
                    *cache.paused.lock() = None;
                }
                written
            }
            Err(error) => {
                self.pause(cache, &error);
                0
            }
        }
    }

    /// Evicts until `need` more bytes fit below the bound; false if they do not, because whole
    /// files that are open fill it.
    pub(super) fn make_room(&mut self, cache: &Cache, need: u64) -> bool {
        while cache.counters.held.load(Ordering::Relaxed) + need > cache.max_size {
            let active = self.active.as_ref().map(|active| active.pack.id());
            let Some(plan) = evict::plan(cache, active) else {
                // Only the pack being written is left: give it up too, if it is the excess.
                match self.active.take() {
                    Some(active) => seal(&active),
                    None => return false,
                }
                continue;
            };
            evict::remove(cache, plan.store.id());
            for (short, row) in &plan.survivors {
                self.rescue(cache, &plan.store, *short, *row);
            }
        }
        true
    }

    /// Goes on writing a pack that a previous process left open, or closes it if it is too full.
    pub(super) fn adopt(&mut self, cache: &Cache, pack: Arc<Pack>, end: u64) {
        // Cuts a torn tail off. Were that to fail, the next record overwrites it.
        let _ = pack.truncate(end);
        let next = Active { pack, end };
        let full = if end < cache.pack_size / 2 {
            self.active.replace(next)
        } else {
            Some(next)
        };
        if let Some(full) = full {
            seal(&full);
        }
    }

    /// Writes no more to pack `id`, which is about to go.
    pub(super) fn retire(&mut self, id: u32) {
        self.active.take_if(|active| active.pack.id() == id);
    }

    fn try_append(&mut self, cache: &Cache, contents: &[Verified<'_>]) -> io::Result<u64> {
        let mut written = 0;
        for content in contents {
            let key = content.key();
            let held = cache.contains(key) || self.pending.contains_key(key);
            if held || cost(key) + EMPTY > cache.max_size {
                continue;
            }
            if let Some(home) = content.home()
                && self.put_home(cache, content, home)?
            {
                written += u64::from(key.size());
                continue;
            }
            if !self.open_pack(cache, key)? {
                continue;
            }
            self.push(cache, content)?;
            written += u64::from(key.size());
            if self.buffer.len() >= BATCH {
                self.flush(cache, cache.clock.now())?;
            }
        }
        self.flush(cache, cache.clock.now())?;
        Ok(written)
    }

    /// Writes a content to its place in a whole file; false if that is gone or there is no room.
    pub(super) fn put_home(
        &mut self,
        cache: &Cache,
        content: &Verified<'_>,
        home: &Home,
    ) -> io::Result<bool> {
        let (key, whole) = (content.key(), &home.whole);
        self.flush(cache, cache.clock.now())?;
        // May evict that very file.
        let room = self.make_room(cache, key.size().into());
        if !room || !cache.packs.read().contains_key(&whole.id()) {
            return Ok(false);
        }
        let taken = whole.write(home.number, home.at, key, content.bytes())?;
        cache.charge(&Store::Whole(Arc::clone(whole)), taken);
        let place = Place {
            pack: whole.id(),
            offset: home.number,
            size: key.size(),
        };
        cache.index.put(key.short(), place, cache.clock.now());
        Ok(true)
    }

    /// Sees to it that a pack is open and has room for `key`, below the bound; false if there is
    /// none to be had.
    fn open_pack(&mut self, cache: &Cache, key: &Key) -> io::Result<bool> {
        let buffered = self.buffer.len() as u64;
        let full = |active: &Active| {
            active.end > PACK_HEADER as u64
                && active.end + buffered + key.record_len() > cache.pack_size
        };
        if self.active.as_ref().is_some_and(full) {
            self.flush(cache, cache.clock.now())?;
            if let Some(active) = self.active.take() {
                seal(&active);
            }
        }
        let pending = self.buffer.len() as u64 + (self.pending.len() * LINE) as u64;
        let need = pending + cost(key) + EMPTY;
        if cache.counters.held.load(Ordering::Relaxed) + need > cache.max_size {
            self.flush(cache, cache.clock.now())?;
            if !self.make_room(cache, cost(key) + EMPTY) {
                return Ok(false);
            }
        }
        if self.active.is_none() {
            let id = self.next_id;
            self.next_id = id.checked_add(1).ok_or(io::ErrorKind::FileTooLarge)?;
            let pack = Pack::create(id, cache.folder.create(id)?)
                .inspect_err(|_| _ = cache.folder.remove(id))?;
            let pack = Arc::new(pack);
            let store = Store::Pack(Arc::clone(&pack));
            cache.packs.write().insert(id, store.clone());
            cache.charge(&store, EMPTY);
            self.active = Some(Active {
                pack,
                end: PACK_HEADER as u64,
            });
        }
        Ok(true)
    }

    /// Adds a record to the buffer; of a large one only the head, and writes both at once.
    fn push(&mut self, cache: &Cache, content: &Verified<'_>) -> io::Result<()> {
        let (key, bytes) = (content.key(), content.bytes());
        let large = bytes.len() >= BATCH;
        if large {
            self.flush(cache, cache.clock.now())?;
        }
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let offset = u32::try_from(active.end + self.buffer.len() as u64)
            .map_err(|_| io::ErrorKind::FileTooLarge)?;
        key.write_head(active.pack.id(), offset, bytes, &mut self.buffer);
        if large {
            // The content first: a head is only ever found before content that was written.
            active
                .pack
                .write(active.end + self.buffer.len() as u64, bytes)?;
            active.pack.write(active.end, &self.buffer)?;
            self.buffer.clear();
            active.end += key.record_len();
            settle(cache, &active.pack, key, offset, cache.clock.now());
        } else {
            self.buffer.extend_from_slice(bytes);
            self.pending.insert(*key, offset);
        }
        Ok(())
    }

    /// Writes the buffer, then tells the index; `used` is when its contents were last used.
    fn flush(&mut self, cache: &Cache, used: u32) -> io::Result<()> {
        if let Some(active) = self.active.as_mut().filter(|_| !self.buffer.is_empty()) {
            active.pack.write(active.end, &self.buffer)?;
            active.end += self.buffer.len() as u64;
            for (key, offset) in self.pending.drain() {
                settle(cache, &active.pack, &key, offset, used);
            }
        }
        self.buffer.clear();
        Ok(())
    }

    /// Copies a content that deserves to stay from what goes.
    pub(super) fn rescue(
        &mut self,
        cache: &Cache,
        from: &Store,
        short: u128,
        row: evict::Survivor,
    ) {
        let offset = row.place.offset;
        let same = |key: &Key| key.short() == short && key.size() == row.place.size;
        let Some(key) = from.key_at(offset).filter(same) else {
            return;
        };
        // What is rescued is less than what was freed, so this only refuses after a failure.
        if cache.counters.held.load(Ordering::Relaxed) + cost(&key) + EMPTY > cache.max_size {
            return;
        }
        let mut content = vec![0; key.size() as usize];
        if from.read(offset, &key, 0, &mut content).is_err() {
            return;
        }
        let copied = self
            .open_pack(cache, &key)
            .and_then(|open| match open {
                true => self.push(cache, &Verified::from_cache(key, &content)),
                false => Ok(()),
            })
            .and_then(|()| self.flush(cache, row.used));
        if let Err(error) = copied {
            self.pause(cache, &error);
        }
    }

    pub(super) fn pause(&mut self, cache: &Cache, error: &io::Error) {
        self.pending.clear();
        self.buffer = Vec::new();
        if let Some(active) = &self.active {
            // Best effort: what lies beyond `end` is overwritten by the next record anyway.
            let _ = active.pack.truncate(active.end);
        }
        let last = self.pause.unwrap_or(FIRST_PAUSE / 2);
        let pause = (last * 2).min(LONGEST_PAUSE);
        self.pause = Some(pause);
        *cache.paused.lock() = Some(Instant::now() + pause);
        cache.counters.write_errors.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%error, ?pause, "cannot write to the cache, serving without it for a while");
        if matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ) {
            self.shrink(cache);
        }
    }

    /// The disk is full below the bound: gives the coldest pack back.
    fn shrink(&self, cache: &Cache) {
        let active = self.active.as_ref().map(|active| active.pack.id());
        if let Some(plan) = evict::plan(cache, active) {
            evict::remove(cache, plan.store.id());
        }
    }
}

/// What a content adds to the bytes held: its record and its line in the closing list.
const fn cost(key: &Key) -> u64 {
    cost_of(key.size())
}

/// The same for a content of `size` bytes.
pub(super) const fn cost_of(size: u32) -> u64 {
    record_len(size) + LINE as u64
}

/// Makes a record that was written known.
fn settle(cache: &Cache, pack: &Arc<Pack>, key: &Key, offset: u32, used: u32) {
    cache.charge(&Store::Pack(Arc::clone(pack)), cost(key));
    cache.index.put(
        key.short(),
        Place {
            pack: pack.id(),
            offset,
            size: key.size(),
        },
        used,
    );
}

/// Closes a pack with its list. Without one it is walked at the next start: no harm.
fn seal(active: &Active) {
    if let Err(error) = active.pack.seal(active.end) {
        tracing::debug!(pack = active.pack.id(), %error, "cannot close a cache file");
        let _ = active.pack.truncate(active.end);
    }
}
