//! One pack file: append, read and check, list.
//!
//! Layout: a header, then records one after the other; a pack that is full is *sealed* with a list
//! of its records, so that start-up reads the list and not the records.
//!
//! Crash behaviour: only the writer appends, and the index learns of a record after it was written
//! in full. A crash leaves a tail that is cut off at the next start; nothing is ever synced,
//! because every read checks the record's name and the checksum of each block it returns, so data
//! that never reached the disk reads as damage and is fetched again.

use std::fs::File;
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::AtomicU64;

use crate::blob::cache::record::{
    BLOCK, HEADER, Key, LINE, PACK_HEADER, TRAILER, Trailer, pack_header,
};

/// Blocks whose checksums are read together with the header: 1 MiB of content.
const GROUP: usize = 64;
/// A pack's offsets are 32 bits; this leaves room for the closing list.
pub(super) const MAX_PACK: u64 = 2 << 30;

/// Why a record cannot be served. Either way it is dropped and fetched again.
#[derive(Debug, thiserror::Error)]
pub(super) enum Damage {
    #[error("reading: {0}")]
    Io(#[from] io::Error),
    #[error("the record's header is damaged or another's")]
    Header,
    #[error("checksum of block {0} is wrong")]
    Block(u32),
}

/// An open pack file. Readers hold it by `Arc`, so an evicted pack stays readable to them.
pub(super) struct Pack {
    id: u32,
    file: File,
    /// Bytes it is counted with: its length, and until it is sealed its closing list as well.
    pub charged: AtomicU64,
}

impl Pack {
    /// Starts pack `id` in the new, empty `file`.
    pub(super) fn create(id: u32, file: File) -> io::Result<Self> {
        file.write_all_at(&pack_header(id), 0)?;
        Ok(Self {
            id,
            file,
            charged: AtomicU64::new(0),
        })
    }

    /// Opens pack `id`; `None` if the file is not one of this version.
    pub(super) fn open(id: u32, file: File) -> io::Result<Option<Self>> {
        let mut header = [0; PACK_HEADER];
        match file.read_exact_at(&mut header, 0) {
            Ok(()) => {
                let pack = Self {
                    id,
                    file,
                    charged: AtomicU64::new(0),
                };
                Ok((header == pack_header(id)).then_some(pack))
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Its number.
    pub(super) const fn id(&self) -> u32 {
        self.id
    }

    /// Length of the file in bytes.
    pub(super) fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Writes `bytes` at `offset`; on an error nothing may be there or a part.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// Cuts the file off at `len`.
    pub(super) fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    /// Copies `out.len()` bytes from `at` of the content `key` whose record is at `offset`, each
    /// touched block checked. The caller has checked that the range lies within the content.
    pub(super) fn read(
        &self,
        offset: u32,
        key: &Key,
        at: u32,
        out: &mut [u8],
    ) -> Result<(), Damage> {
        let mut head = [0; HEADER + 4 * GROUP];
        let blocks = key.blocks() as usize;
        let head_len = HEADER + 4 * blocks.min(GROUP);
        self.file
            .read_exact_at(&mut head[..head_len], u64::from(offset))?;
        let (header, table) = head.split_at_mut(HEADER);
        let header: &[u8; HEADER] = (&*header).try_into().map_err(|_| Damage::Header)?;
        if Key::read_header(self.id, offset, header) != Some(*key) {
            return Err(Damage::Header);
        }
        let mut from = at as usize;
        let mut rest = out;
        let mut loaded = 0;
        while !rest.is_empty() {
            let group = from / (GROUP * BLOCK as usize);
            if group != loaded {
                let table_at = u64::from(offset) + (HEADER + 4 * GROUP * group) as u64;
                let len = 4 * (blocks - GROUP * group).min(GROUP);
                self.file.read_exact_at(&mut table[..len], table_at)?;
                loaded = group;
            }
            let group_end = (group + 1) * GROUP * BLOCK as usize;
            let (now, later) = rest.split_at_mut(rest.len().min(group_end - from));
            Group {
                pack: self,
                offset,
                key,
                table,
                first: group * GROUP,
            }
            .read(from, now)?;
            from += now.len();
            rest = later;
        }
        Ok(())
    }

    /// The name of the record at `offset`, if its header is sound.
    pub(super) fn key_at(&self, offset: u32) -> Option<Key> {
        let mut header = [0; HEADER];
        self.file
            .read_exact_at(&mut header, u64::from(offset))
            .ok()?;
        Key::read_header(self.id, offset, &header)
    }

    /// Calls `each` with every record, from the closing list if there is a sound one, else by
    /// walking from header to header. Yields where the records end, and whether a list follows.
    pub(super) fn list(&self, each: &mut dyn FnMut(Key, u32)) -> io::Result<(u64, bool)> {
        let len = self.len()?;
        match self.read_list(len)? {
            Some((trailer, lines)) => {
                for line in lines.as_chunks::<LINE>().0 {
                    if let Some((key, offset)) = Key::read_line(line) {
                        each(key, offset);
                    }
                }
                Ok((u64::from(trailer.list), true))
            }
            None => Ok((self.walk(len, each)?, false)),
        }
    }

    /// Appends the closing list at `end`, where the records end; the file ends with it.
    pub(super) fn seal(&self, end: u64) -> io::Result<()> {
        let mut at = end;
        let mut lines = 0_u32;
        let mut crc = crc32fast::Hasher::new();
        let mut buffer = Vec::with_capacity(LINE * 1024);
        let mut failed = Ok(());
        self.walk(end, &mut |key, offset| {
            buffer.extend_from_slice(&key.write_line(offset));
            lines += 1;
            if buffer.len() == buffer.capacity() && failed.is_ok() {
                crc.update(&buffer);
                failed = self.write(at, &buffer);
                at += buffer.len() as u64;
                buffer.clear();
            }
        })?;
        failed?;
        crc.update(&buffer);
        let list = u32::try_from(end).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let trailer = Trailer {
            pack: self.id,
            lines,
            list,
            crc: crc.finalize(),
        };
        buffer.extend_from_slice(&trailer.write());
        self.write(at, &buffer)?;
        self.truncate(at + buffer.len() as u64)
    }

    fn read_list(&self, len: u64) -> io::Result<Option<(Trailer, Vec<u8>)>> {
        let Some(at) = len
            .checked_sub(TRAILER as u64)
            .filter(|at| *at >= PACK_HEADER as u64)
        else {
            return Ok(None);
        };
        let mut trailer = [0; TRAILER];
        self.file.read_exact_at(&mut trailer, at)?;
        // Its length has been compared with the file's, so it bounds what is read.
        let Some(trailer) = Trailer::read(self.id, len, &trailer) else {
            return Ok(None);
        };
        let mut lines = vec![0; trailer.lines as usize * LINE];
        self.file
            .read_exact_at(&mut lines, u64::from(trailer.list))?;
        Ok((crc32fast::hash(&lines) == trailer.crc).then_some((trailer, lines)))
    }

    /// From header to header up to `end` or the first that is not sound. Moves the file's cursor,
    /// which nothing else uses; only start-up and the writer call it, one at a time.
    fn walk(&self, end: u64, each: &mut dyn FnMut(Key, u32)) -> io::Result<u64> {
        let mut reader = BufReader::with_capacity(64 << 10, &self.file);
        let mut at = PACK_HEADER as u64;
        reader.seek(SeekFrom::Start(at))?;
        while at + HEADER as u64 <= end {
            let mut header = [0; HEADER];
            reader.read_exact(&mut header)?;
            let found = u32::try_from(at)
                .ok()
                .and_then(|offset| Some((Key::read_header(self.id, offset, &header)?, offset)))
                .filter(|(key, _)| at + key.record_len() <= end);
            let Some((key, offset)) = found else { break };
            each(key, offset);
            at += key.record_len();
            // Stays in the buffer for small records.
            let skip = key.record_len() - HEADER as u64;
            reader.seek_relative(i64::try_from(skip).unwrap_or(i64::MAX))?;
        }
        Ok(at)
    }
}

/// Up to [`GROUP`] blocks of one record whose part of the checksum table has been read.
struct Group<'a> {
    pack: &'a Pack,
    offset: u32,
    key: &'a Key,
    table: &'a [u8],
    /// Number of the first block of the group.
    first: usize,
}

impl Group<'_> {
    /// Fills `out` from `from` of the content: whole blocks straight, the ends through a block of
    /// stack.
    fn read(&self, mut from: usize, mut out: &mut [u8]) -> Result<(), Damage> {
        let (block, size) = (BLOCK as usize, self.key.size() as usize);
        while !out.is_empty() {
            let (number, stop) = (from / block, from + out.len());
            let start = number * block;
            // The last block of the content counts as whole, short as it may be.
            let full = if stop == size {
                stop
            } else {
                stop - stop % block
            };
            let taken = if from == start && full > from {
                let now = &mut out[..full - from];
                self.fill(from, now)?;
                for (number, bytes) in (number..).zip(now.chunks(block)) {
                    self.check(number, bytes)?;
                }
                now.len()
            } else {
                let mut scratch = [0; BLOCK as usize];
                let scratch = &mut scratch[..size.min(start + block) - start];
                self.fill(start, scratch)?;
                self.check(number, scratch)?;
                let wanted = &scratch[from - start..];
                let len = out.len().min(wanted.len());
                out[..len].copy_from_slice(&wanted[..len]);
                len
            };
            from += taken;
            out = &mut out[taken..];
        }
        Ok(())
    }

    fn fill(&self, at: usize, out: &mut [u8]) -> Result<(), Damage> {
        let start = u64::from(self.offset) + self.key.record_len() - u64::from(self.key.size());
        Ok(self.pack.file.read_exact_at(out, start + at as u64)?)
    }

    fn check(&self, number: usize, bytes: &[u8]) -> Result<(), Damage> {
        let block = u32::try_from(number).map_err(|_| Damage::Header)?;
        let at = 4 * (number - self.first);
        let stored = self.table.get(at..at + 4).ok_or(Damage::Block(block))?;
        if stored == self.key.checksum(block, bytes).to_le_bytes() {
            Ok(())
        } else {
            Err(Damage::Block(block))
        }
    }
}
