//! An index file in memory, checked as it is touched.
//!
//! Opening reads the header and the table of checksums: 4 bytes for every 16 KiB of the file. A
//! block is compared with its checksum when it is first touched, so that a damaged index is
//! noticed before it is believed, and mounting a known layer reads no more of it than is used.
//!
//! What is touched stays resident until the kernel wants it back. So that going through a large index once does
//! not leave all of it in this process's memory, the pages are given back each time so many blocks were touched
//! for the first time; they stay in the page cache, and are mapped again without reading. *Measured* with
//! 500,000 files, listed while all of them are fetched: at most 16 MB of the index resident for 36.
//!
//! Locking: none. Two threads that touch a block at the same time both check it.
//!
//! Crash behaviour: an index file is complete when it gets its name, and nothing writes to it
//! afterwards. Whoever shortens it while it is mapped kills the process (SIGBUS), as with any
//! mapped file: it lies in a folder that only root can enter.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use memmap2::{Mmap, UncheckedAdvice};

use crate::fs::index::error::{Damaged, Error, io_error};
use crate::fs::index::format::{BLOCK, HEADER_LEN, Header, SECTIONS, Section, VERSION};
use crate::oci::Digest;

/// Blocks touched for the first time after which the pages are given back. A touch maps 64 KiB, so at most 4 MiB.
const GIVE_BACK: u32 = 64;

/// A mapped index file whose header has been checked.
#[derive(Debug)]
pub struct Mapped {
    map: Mmap,
    header: Header,
    /// One bit for each block: set when its checksum has been found right.
    checked: Box<[AtomicU64]>,
    /// How often a block was found right.
    touched: AtomicU32,
}

impl Mapped {
    /// Maps the file and checks header, table of checksums and the bounds of all sections.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Version`], [`Error::Damaged`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(io_error("opening", path))?;
        // SAFETY: the file is only ever written under another name, before it gets this one (see
        // the module header), so the bytes do not change under the map.
        let map = unsafe { Mmap::map(&file) }.map_err(io_error("mapping", path))?;
        match Header::version(&map) {
            Some(VERSION) => {}
            Some(found) => {
                let expected = VERSION;
                return Err(Error::Version { found, expected });
            }
            None => {
                let what = "its first bytes";
                return Err(Damaged { what, at: 0 }.into());
            }
        }
        let header = Header::decode(&map)?;
        check_spans(&header, map.len() as u64)?;
        let sums = header.sections[Section::Checksums as usize];
        let words = (sums.len / 4).div_ceil(64);
        let mapped = Self {
            checked: (0..words).map(|_| AtomicU64::new(0)).collect(),
            touched: AtomicU32::new(0),
            map,
            header,
        };
        let table = mapped.raw(sums.start, sums.len)?;
        if crc32fast::hash(table) != mapped.header.sums_crc {
            let what = "its table of checksums";
            let at = sums.start;
            return Err(Damaged { what, at }.into());
        }
        Ok(mapped)
    }

    /// The header.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// Whether the file belongs to this TOC.
    ///
    /// # Errors
    /// [`Error::OtherToc`].
    pub fn expect_toc(&self, expected: &Digest) -> Result<(), Error> {
        let found = self.header.toc;
        if found == *expected {
            return Ok(());
        }
        let expected = *expected;
        Err(Error::OtherToc { found, expected })
    }

    /// How many records of `record_len` bytes the section holds.
    pub fn count(&self, section: Section, record_len: usize) -> u32 {
        let records = self.header.sections[section as usize].len / record_len as u64;
        u32::try_from(records).unwrap_or(u32::MAX)
    }

    /// `len` bytes from `offset` of a section, checked.
    pub fn bytes(&self, section: Section, offset: u64, len: u64) -> Result<&[u8], Damaged> {
        let span = self.header.sections[section as usize];
        let end = offset.checked_add(len).filter(|end| *end <= span.len);
        if end.is_none() {
            let what = "a reference out of bounds";
            return Err(Damaged { what, at: offset });
        }
        let start = span.start + offset;
        if len > 0 && section != Section::Checksums {
            let first = (start - HEADER_LEN) / BLOCK;
            let last = (start - HEADER_LEN + len - 1) / BLOCK;
            for block in first..=last {
                self.check(block)?;
            }
        }
        self.raw(start, len)
    }

    /// Record number `record` of a section, checked.
    pub fn record(&self, section: Section, record: u32, len: usize) -> Result<&[u8], Damaged> {
        self.bytes(section, u64::from(record) * len as u64, len as u64)
    }

    /// Checks every block.
    ///
    /// # Errors
    /// [`Damaged`]: the first that is wrong.
    pub fn verify(&self) -> Result<(), Damaged> {
        (0..self.header.sections[Section::Checksums as usize].len / 4)
            .try_for_each(|block| self.check(block))
    }

    fn check(&self, block: u64) -> Result<(), Damaged> {
        let damaged = Damaged {
            what: "a block with a wrong checksum",
            at: HEADER_LEN + block * BLOCK,
        };
        let word = usize::try_from(block / 64).map_err(|_| damaged)?;
        let word = self.checked.get(word).ok_or(damaged)?;
        let bit = 1 << (block % 64);
        // Relaxed: the bit guards nothing but the work of checking again.
        if word.load(Ordering::Relaxed) & bit != 0 {
            return Ok(());
        }
        let sums = self.header.sections[Section::Checksums as usize];
        let start = HEADER_LEN + block * BLOCK;
        let len = sums.start.saturating_sub(start).min(BLOCK);
        let sum = self.raw(sums.start + block * 4, 4)?;
        if sum != crc32fast::hash(self.raw(start, len)?).to_le_bytes() {
            return Err(damaged);
        }
        word.fetch_or(bit, Ordering::Relaxed);
        if self.touched.fetch_add(1, Ordering::Relaxed) % GIVE_BACK == GIVE_BACK - 1 {
            self.give_back();
        }
        Ok(())
    }

    /// Takes the pages out of this process's memory.
    pub fn give_back(&self) {
        // SAFETY: a shared mapping of a file that nobody writes to (see the module header): what is touched next
        // is read from the same file. Nothing depends on its being done.
        let _ = unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) };
    }

    fn raw(&self, start: u64, len: u64) -> Result<&[u8], Damaged> {
        let end = start.checked_add(len).and_then(|end| end.try_into().ok());
        usize::try_from(start)
            .ok()
            .zip(end)
            .and_then(|(start, end)| self.map.get(start..end))
            .ok_or(Damaged {
                what: "a reference beyond its end",
                at: start,
            })
    }
}

/// Sections lie one after the other, inside the file, the checksums last; there is a checksum for
/// every block.
fn check_spans(header: &Header, file_len: u64) -> Result<(), Damaged> {
    if header.file_len != file_len {
        let what = "its length";
        return Err(Damaged { what, at: file_len });
    }
    let mut free = HEADER_LEN;
    for span in header.sections {
        let end = span.start.checked_add(span.len);
        match end.filter(|end| span.start >= free && *end <= file_len) {
            Some(end) => free = end,
            None => {
                let what = "the bounds of a section";
                return Err(Damaged {
                    what,
                    at: span.start,
                });
            }
        }
    }
    let sums = header.sections[SECTIONS - 1];
    if sums.len != (sums.start - HEADER_LEN).div_ceil(BLOCK) * 4 {
        let what = "the size of its table of checksums";
        return Err(Damaged { what, at: sums.len });
    }
    Ok(())
}
