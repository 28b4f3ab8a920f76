//! A large file kept as a file of its own, which the kernel can read by itself (passthrough).
//!
//! Its chunks are written where they belong in it and lie nowhere else; their names and checksums
//! lie beside it, so that a chunk of an unfinished file is read and checked like one in a pack.
//!
//! Promises: what [`WholeFile`] gives out has every byte, each verified when it was written or
//! since the machine was started, and has not been written to by anybody since (size, times and
//! inode number are compared at each open). What the disk itself garbles meanwhile is not seen: the
//! kernel reads such a file without asking.
//!
//! Crash behaviour: a chunk's name is written after its content and checksums, so a chunk without
//! one is not held. Nothing is synced: the *seal* names the boot it was made in, and after another
//! boot every block is compared once more before the file is passed through.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::blob::cache::blocks::{Blocks, Damage};
use crate::blob::cache::record::{BLOCK, HEADER, Key};
use crate::blob::cache::sums::{SEAL, SUMS_HEADER, Seal, SumsHeader};
use crate::oci::Digest;

/// Set in the number of every whole file, never in that of a pack.
pub(super) const WHOLE: u32 = 1 << 31;

/// The file and its checksums, open.
pub(super) struct Whole {
    id: u32,
    header: SumsHeader,
    data: File,
    sums: File,
    /// Bytes it is counted with.
    pub charged: AtomicU64,
    /// When it was last opened or closed, in ticks: what is passed through is not seen being read.
    pub used: AtomicU32,
    /// How many have it open.
    pub pins: AtomicU32,
    chunks: Mutex<Chunks>,
    /// Whether places that were not written are known to be holes.
    fresh: AtomicBool,
}

/// One bit for each chunk.
#[derive(Default)]
struct Chunks {
    /// Its name, checksums and content were written.
    present: Bits,
    /// And they were verified since this boot.
    checked: Bits,
    /// Its place takes room on the disk, whatever is there.
    counted: Bits,
    /// The file as it was when all were.
    seal: Option<Seal>,
}

#[derive(Default)]
struct Bits {
    words: Vec<u64>,
    set: u32,
}

impl Bits {
    fn new(len: u32) -> Self {
        let words = vec![0; (len as usize).div_ceil(64)];
        Self { words, set: 0 }
    }

    fn get(&self, bit: u32) -> bool {
        let word = self.words.get(bit as usize / 64).copied();
        word.unwrap_or(0) >> (bit % 64) & 1 == 1
    }

    fn put(&mut self, bit: u32, value: bool) {
        let old = self.get(bit);
        if let Some(word) = self
            .words
            .get_mut(bit as usize / 64)
            .filter(|_| old != value)
        {
            *word ^= 1 << (bit % 64);
            self.set = if value { self.set + 1 } else { self.set - 1 };
        }
    }
}

impl Whole {
    /// Starts whole file `id` in two new, empty files.
    pub(super) fn create(header: SumsHeader, data: File, sums: File) -> io::Result<Self> {
        data.set_len(header.size)?;
        sums.write_all_at(&header.write(), 0)?;
        Ok(Self::new(header, data, sums, true))
    }

    /// Opens whole file `id`, calling `each` with every chunk that is there; `None` if the files
    /// are not of this version.
    pub(super) fn open(
        id: u32,
        data: File,
        sums: File,
        boot: Option<[u8; 16]>,
        each: &mut dyn FnMut(Key, u32),
    ) -> io::Result<Option<Self>> {
        let mut start = [0; SUMS_HEADER + SEAL];
        let len = sums.metadata()?.len();
        if len < start.len() as u64 {
            return Ok(None);
        }
        sums.read_exact_at(&mut start, 0)?;
        let header = SumsHeader::read(id, &start);
        let Some(header) = header.filter(|header| table(header, 0, 0) <= len) else {
            return Ok(None);
        };
        let seal = Seal::read(&start).filter(|seal| Some(seal.boot) == boot);
        let meta = data.metadata()?;
        let whole = Self::new(header, data, sums, false);
        let (heads, mut at) = (whole.header.chunks, 0);
        let mut chunks = whole.chunks.lock();
        let mut held = 0;
        // A few at a time: the number of chunks is what the file says.
        while at < heads {
            let count = (heads - at).min(1024);
            let mut some = vec![0; HEADER * count as usize];
            whole.sums.read_exact_at(&mut some, head(at))?;
            for (number, bytes) in (at..).zip(some.as_chunks::<HEADER>().0) {
                let key = Key::read_header(id, number, bytes);
                let end = |key: &Key| Key::read_at(bytes).checked_add(key.size().into());
                if let Some(key) = key.filter(|key| end(key).is_some_and(|end| end <= meta.len())) {
                    chunks.present.put(number, true);
                    chunks.counted.put(number, true);
                    held += u64::from(key.size());
                    each(key, number);
                }
            }
            at += count;
        }
        if seal.is_some_and(|seal| seal == Seal::of(&meta, seal.boot)) {
            (0..heads).for_each(|number| chunks.checked.put(number, true));
            chunks.seal = seal;
        }
        drop(chunks);
        let held = held.min(meta.blocks().saturating_mul(512));
        whole
            .charged
            .store(held + whole.sums_len(), Ordering::Relaxed);
        Ok(Some(whole))
    }

    fn new(header: SumsHeader, data: File, sums: File, fresh: bool) -> Self {
        Self {
            id: header.id,
            data,
            sums,
            charged: AtomicU64::new(0),
            used: AtomicU32::new(0),
            pins: AtomicU32::new(0),
            chunks: Mutex::new(Chunks {
                present: Bits::new(header.chunks),
                checked: Bits::new(header.chunks),
                counted: Bits::new(header.chunks),
                seal: None,
            }),
            fresh: AtomicBool::new(fresh),
            header,
        }
    }

    /// Its number.
    pub(super) const fn id(&self) -> u32 {
        self.id
    }

    /// The name of its content.
    pub(super) const fn name(&self) -> &Digest {
        &self.header.name
    }

    /// Most bytes that names and checksums take.
    pub(super) fn sums_len(&self) -> u64 {
        sums_len(&self.header)
    }

    /// Chunks that are there.
    pub(super) fn present(&self) -> u32 {
        self.chunks.lock().present.set
    }

    /// Whether chunk `number` is there.
    pub(super) fn has(&self, number: u32) -> bool {
        self.chunks.lock().present.get(number)
    }

    /// Whether chunk `number` is there and was verified since this boot.
    pub(super) fn has_checked(&self, number: u32) -> bool {
        self.chunks.lock().checked.get(number)
    }

    /// Writes chunk `number`, which is `bytes` at `at` of the file; yields the bytes of disk taken.
    /// One at a time.
    pub(super) fn write(&self, number: u32, at: u64, key: &Key, bytes: &[u8]) -> io::Result<u64> {
        let end = at.checked_add(bytes.len() as u64);
        if number >= self.header.chunks || end.is_none_or(|end| end > self.header.size) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.forget_seal();
        // Zeros are what a hole reads as, and images are full of them.
        let untouched = self.fresh.load(Ordering::Relaxed) && !self.has(number);
        let hole = untouched && bytes.iter().all(|b| *b == 0);
        if !hole {
            self.data.write_all_at(bytes, at)?;
        }
        let mut out = Vec::with_capacity(HEADER + 4 * key.blocks() as usize);
        key.write_head_at(self.id, number, at, bytes, &mut out);
        let (header, sums) = out.split_at(HEADER);
        self.sums
            .write_all_at(sums, table(&self.header, number, at))?;
        self.sums.write_all_at(header, head(number))?;
        let mut chunks = self.chunks.lock();
        chunks.present.put(number, true);
        chunks.checked.put(number, true);
        let counts = !hole && !chunks.counted.get(number);
        if counts {
            chunks.counted.put(number, true);
        }
        Ok(if counts { bytes.len() as u64 } else { 0 })
    }

    /// Copies `out.len()` bytes from `at` of the chunk `key`, number `number`, each touched block
    /// checked. The caller has checked that the range lies within the content.
    pub(super) fn read(
        &self,
        number: u32,
        key: &Key,
        at: u32,
        out: &mut [u8],
    ) -> Result<(), Damage> {
        let mut header = [0; HEADER];
        self.sums.read_exact_at(&mut header, head(number))?;
        if Key::read_header(self.id, number, &header) != Some(*key) {
            return Err(Damage::Header);
        }
        let start = Key::read_at(&header);
        let blocks = Blocks {
            key,
            content: &self.data,
            start,
            sums: &self.sums,
            table: table(&self.header, number, start),
        };
        blocks.read(at, out, None)
    }

    /// The name of chunk `number`, if its header is sound.
    pub(super) fn key_at(&self, number: u32) -> Option<Key> {
        let mut header = [0; HEADER];
        self.sums.read_exact_at(&mut header, head(number)).ok()?;
        Key::read_header(self.id, number, &header)
    }

    /// Compares chunk `number`, which is to be `key` at `at` of the file, with its checksums. One
    /// that does not fit is no longer there.
    pub(super) fn check(&self, number: u32, at: u64, key: &Key, buffer: &mut Vec<u8>) -> bool {
        buffer.resize(key.size() as usize, 0);
        let mut header = [0; HEADER];
        let placed = self.sums.read_exact_at(&mut header, head(number)).is_ok()
            && Key::read_at(&header) == at;
        if placed && self.read(number, key, 0, buffer).is_ok() {
            self.chunks.lock().checked.put(number, true);
            return true;
        }
        self.damaged(number);
        false
    }

    /// Chunk `number` turned out to be damaged: it is to be written again.
    pub(super) fn damaged(&self, number: u32) {
        self.fresh.store(false, Ordering::Relaxed);
        self.forget_seal();
        let mut chunks = self.chunks.lock();
        chunks.present.put(number, false);
        chunks.checked.put(number, false);
    }

    /// Makes it ready to be passed through, if every chunk is there and verified. What was verified
    /// must not have changed since `before`.
    pub(super) fn seal(&self, before: &Seal) -> io::Result<bool> {
        let now = Seal::of(&self.data.metadata()?, before.boot);
        let mut chunks = self.chunks.lock();
        if chunks.checked.set != self.header.chunks || now != *before {
            return Ok(false);
        }
        self.sums.write_all_at(&now.write(), SUMS_HEADER as u64)?;
        chunks.seal = Some(now);
        Ok(true)
    }

    /// What a seal would say now.
    pub(super) fn stamp(&self, boot: [u8; 16]) -> io::Result<Seal> {
        Ok(Seal::of(&self.data.metadata()?, boot))
    }

    /// Whether it can be passed through. One that was touched since it was sealed cannot be, and
    /// all of it is in doubt.
    pub(super) fn is_sealed(&self) -> bool {
        let Some(seal) = self.chunks.lock().seal else {
            return false;
        };
        let now = self.data.metadata().map(|meta| Seal::of(&meta, seal.boot));
        if now.is_ok_and(|now| now == seal) {
            return true;
        }
        tracing::warn!(
            file = self.id,
            "a cached file was changed, it is verified again"
        );
        self.forget_seal();
        let mut chunks = self.chunks.lock();
        chunks.checked = Bits::new(self.header.chunks);
        false
    }

    fn forget_seal(&self) {
        self.chunks.lock().seal = None;
    }
}

/// Where the name of chunk `number` lies.
const fn head(number: u32) -> u64 {
    (SUMS_HEADER + SEAL) as u64 + HEADER as u64 * number as u64
}

/// Where the checksums of chunk `number` lie, which begins at `at` of the file: room for those of
/// all chunks before it, whatever their sizes are.
fn table(header: &SumsHeader, number: u32, at: u64) -> u64 {
    head(header.chunks) + 4 * (at / u64::from(BLOCK) + u64::from(number))
}

/// Most bytes that names and checksums take.
pub(super) fn sums_len(header: &SumsHeader) -> u64 {
    table(header, header.chunks, header.size) + 4
}

/// Where in a large file a chunk belongs.
#[derive(Debug, Clone)]
pub struct Home {
    /// The file.
    pub(super) whole: Arc<Whole>,
    /// The chunk's number in the file.
    pub(super) number: u32,
    /// Where it starts in the file, in bytes.
    pub(super) at: u64,
}

/// A large file that is complete and verified, and stays on disk as long as this lives.
pub struct WholeFile {
    whole: Arc<Whole>,
    cache: Arc<super::Cache>,
}

impl WholeFile {
    pub(super) fn pin(cache: &Arc<super::Cache>, whole: Arc<Whole>) -> Self {
        whole.pins.fetch_add(1, Ordering::Relaxed);
        whole.used.store(cache.clock.now(), Ordering::Relaxed);
        let cache = Arc::clone(cache);
        Self { whole, cache }
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        let now = self.cache.clock.now();
        self.whole.used.store(now, Ordering::Relaxed);
        self.whole.pins.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AsFd for WholeFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.whole.data.as_fd()
    }
}

impl std::fmt::Debug for WholeFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("WholeFile").field(&self.whole.id).finish()
    }
}

impl std::fmt::Debug for Whole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Whole").field(&self.id).finish()
    }
}
