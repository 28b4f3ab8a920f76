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

use crate::blob::cache::blocks::{Blocks, Damage, GROUP, Sums};
use crate::blob::cache::record::{HEADER, Key, LINE, PACK_HEADER, TRAILER, Trailer, pack_header};

/// A pack's offsets are 32 bits; this leaves room for the closing list.
pub(super) const MAX_PACK: u64 = 2 << 30;

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
        let content = u64::from(offset) + key.record_len() - u64::from(key.size());
        let blocks = Blocks {
            key,
            content: &self.file,
            start: content,
            sums: &self.file,
            table: u64::from(offset) + HEADER as u64,
        };
        let table: &Sums = (&*table).try_into().map_err(|_| Damage::Header)?;
        blocks.read(at, out, Some(table))
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
