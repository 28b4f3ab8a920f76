//! Bytes of a blob on their way to being verified: in memory while they are few, else in a file
//! without a name.
//!
//! The TOC of a layer of a million files has some 60 MB even compressed, and is read twice. What is
//! kept here is nothing yet: it is believed only after its digest was compared.
//!
//! Crash behaviour: the file has no name, so that it is gone when the process is.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use crate::stargz::Reread;

/// The most that is held in memory, in bytes.
const HELD: usize = 1 << 20;
/// How much of a file is read at a time, in bytes.
const READ: usize = 128 << 10;

/// Bytes that were added one piece after the other.
pub(super) struct Spool {
    /// Where a file is made when one is needed.
    folder: PathBuf,
    held: Vec<u8>,
    file: Option<File>,
    len: u64,
}

impl Spool {
    /// Nothing yet.
    pub(super) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            held: Vec::new(),
            file: None,
            len: 0,
        }
    }

    /// How many bytes there are.
    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    /// Adds a piece.
    ///
    /// # Errors
    /// There is no room on the disk.
    pub(super) fn push(&mut self, piece: &[u8]) -> io::Result<()> {
        self.len += piece.len() as u64;
        if self.file.is_none() && self.held.len() + piece.len() <= HELD {
            self.held.extend_from_slice(piece);
            return Ok(());
        }
        let mut file = match self.file.take() {
            Some(file) => file,
            None => tempfile::tempfile_in(&self.folder)?,
        };
        file.write_all(&std::mem::take(&mut self.held))?;
        file.write_all(piece)?;
        self.file = Some(file);
        Ok(())
    }

    /// Adds bytes of another spool.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn push_from(&mut self, other: &Self, range: Range<u64>) -> io::Result<()> {
        let mut reader = other.reader(range);
        loop {
            let piece = reader.fill_buf()?;
            if piece.is_empty() {
                return Ok(());
            }
            let len = piece.len();
            self.push(piece)?;
            reader.consume(len);
        }
    }

    /// Reads a part of it; what lies beyond its end is left out.
    pub(super) fn reader(&self, range: Range<u64>) -> Box<dyn BufRead + '_> {
        match &self.file {
            Some(file) => Box::new(BufReader::with_capacity(READ, Part { file, range })),
            None => {
                let at = |at: u64| {
                    usize::try_from(at).map_or(self.held.len(), |at| at.min(self.held.len()))
                };
                let part = self.held.get(at(range.start)..at(range.end));
                Box::new(part.unwrap_or_default())
            }
        }
    }
}

/// A part of a file that is being read.
struct Part<'f> {
    file: &'f File,
    range: Range<u64>,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.range.end.saturating_sub(self.range.start);
        let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let buffer = buffer.get_mut(..most).unwrap_or_default();
        let len = self.file.read_at(buffer, self.range.start)?;
        self.range.start += len as u64;
        Ok(len)
    }
}

/// A part of a spool that can be read again and again.
pub(super) struct SpoolPart {
    /// All of it.
    pub(super) spool: Spool,
    /// The part.
    pub(super) range: Range<u64>,
}

impl Reread for SpoolPart {
    fn reread(&self) -> Box<dyn BufRead + '_> {
        self.spool.reader(self.range.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(spool: &Spool, range: Range<u64>) -> Vec<u8> {
        let mut all = Vec::new();
        spool.reader(range).read_to_end(&mut all).unwrap();
        all
    }

    #[test]
    fn what_was_added_is_read_in_memory_and_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        for pieces in [3, 40] {
            let mut spool = Spool::new(folder.path().to_owned());
            let mut all = Vec::new();
            for number in 0..pieces {
                let piece = vec![number; 60_000];
                spool.push(&piece).unwrap();
                all.extend(piece);
            }
            assert_eq!(spool.file.is_some(), pieces == 40);
            let len = all.len() as u64;
            assert_eq!(spool.len(), len);
            assert!(spool.held.len() <= HELD);
            for range in [0..len, 0..0, 59_999..120_001, len - 1..len] {
                let expected = &all[range.start as usize..range.end as usize];
                assert_eq!(read(&spool, range.clone()), expected);
            }
            assert_eq!(read(&spool, len - 3..len + 9), all[all.len() - 3..]);
            let mut other = Spool::new(folder.path().to_owned());
            other.push(b"before").unwrap();
            other.push_from(&spool, 10..len).unwrap();
            assert_eq!(read(&other, 0..6), b"before");
            assert_eq!(read(&other, 6..len), all[10..]);
        }
        // The file never had a name.
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
