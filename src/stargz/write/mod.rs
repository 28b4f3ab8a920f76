//! Writes eStargz: a layer's tar in, a blob out that is read lazily and unpacks to the same tree.
//!
//! Layout of the blob (stargz-snapshotter `docs/estargz.md`): gzip members that together inflate to
//! a tar. The tar holds a landmark, then the input's entries header for header, then the table of
//! contents (TOC) as its last entry, in a member of its own; a footer of 51 bytes names that
//! member's offset. Data of small files shares members (`innerOffset`), see `plan`.
//!
//! The same input gives the same bytes, on any number of cores, and a blob written from a blob that
//! was written here is the same again. Memory follows the number of cores and, slightly (see
//! `names`), that of entries, never the size of a layer; the TOC waits in a temporary file.
//!
//! A tar that eStargz cannot carry faithfully is refused as [`Unsuitable`], never altered.

mod error;
mod gzip;
mod header;
mod json;
mod names;
mod own;
mod pax;
mod plan;
mod pool;
mod prefetch;
mod scan;
mod sink;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};

use flate2::bufread::MultiGzDecoder;

pub use self::error::{Error, Unsuitable};
pub use self::prefetch::Prefetch;

use self::plan::{Chosen, Planner};
use self::scan::Scanner;
use self::sink::Sink;
use crate::oci::{Digest, Hasher};

/// How a layer is written.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads that compress; 0 is taken for 1. The output does not depend on it.
    pub threads: usize,
    /// Effort of the compression, 1 to 9.
    pub level: u32,
    /// Files that come before a landmark.
    pub prefetch: Prefetch,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            level: 6,
            prefetch: Prefetch::default(),
        }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Digest of the blob.
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Digest of the blob's tar.
    pub diff_id: Digest,
    /// Size of the blob's tar in bytes.
    pub tar_size: u64,
    /// Digest of the TOC's JSON.
    pub toc_digest: Digest,
    /// Where the TOC's member begins in the blob, in bytes.
    pub toc_offset: u64,
    /// How many entries the layer has, with the landmark.
    pub entries: u32,
    /// Digest of the input's tar, every byte of it, for comparison with the image's config.
    pub input_diff_id: Digest,
}

/// Writes the tar in `input`, plain or gzip-compressed, to `output` as an eStargz blob.
///
/// `input` is read from its start, `output` is empty. `progress` is called with the number of bytes
/// of `input` read so far.
///
/// # Errors
/// [`Error::Unsuitable`] if the layer has to be left as it is; otherwise reading or writing failed.
/// `output` then holds a part of a blob.
pub fn write(
    input: &File,
    output: File,
    options: &Options,
    progress: &dyn Fn(u64),
) -> Result<Written, Error> {
    let lines = tempfile::tempfile().map_err(Error::Output)?;
    let mut sink = Sink::new(output, lines);
    let selection = match options.prefetch.is_empty() {
        true => None,
        false => options
            .prefetch
            .select(&mut || Ok(Box::new(tar_of(input, &|_| {})?)))?,
    };
    let (replaced, input_diff_id) = pool::run(
        options.threads,
        options.level,
        &mut |pool| {
            let mut planner = Planner::new(pool);
            if let Some(selection) = &selection {
                let first = selection.extract(&mut Scanner::new(tar_of(input, &|_| {})?))?;
                first.for_each(&mut |entry| planner.add_tar(entry, Chosen::First(selection)))?;
                planner.add_landmark(own::PREFETCH)?;
            } else {
                planner.add_landmark(own::NO_PREFETCH)?;
            }
            let mut tar = Scanner::new(BufReader::new(Hashing::new(tar_of(input, progress)?)));
            let chosen = selection.as_ref().map_or(Chosen::All, Chosen::Rest);
            planner.add_tar(&mut tar, chosen)?;
            let mut rest = tar.into_rest();
            io::copy(&mut rest, &mut io::sink()).map_err(Error::Input)?;
            Ok((planner.finish()?, rest.into_inner().hash.finish()))
        },
        &mut |done| sink.consume(done),
    )?;
    let toc = sink.toc(replaced)?;
    let offset = sink.begin_toc()?;
    pool::run(
        options.threads,
        options.level,
        &mut |pool| toc.push(pool),
        &mut |done| sink.consume(done),
    )?;
    let written = sink.finish(offset, &toc)?;
    Ok(Written {
        input_diff_id,
        ..written
    })
}

/// The tar in `input`, from its start.
fn tar_of<'a>(mut input: &'a File, progress: &'a dyn Fn(u64)) -> Result<Box<dyn Read + 'a>, Error> {
    input.rewind().map_err(Error::Input)?;
    let counted = Counting {
        input,
        read: 0,
        progress,
    };
    let mut input = BufReader::with_capacity(1 << 16, counted);
    let start = input.fill_buf().map_err(Error::Input)?;
    // RFC 1952: the magic number and the one method there is.
    Ok(match start.starts_with(&[0x1f, 0x8b, 8]) {
        true => Box::new(MultiGzDecoder::new(input)),
        false => Box::new(input),
    })
}

/// Tells how far a file has been read.
struct Counting<'a> {
    input: &'a File,
    read: u64,
    progress: &'a dyn Fn(u64),
}

impl Read for Counting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.read = self.read.saturating_add(read as u64);
        (self.progress)(self.read);
        Ok(read)
    }
}

/// Digests what is read.
struct Hashing<R> {
    input: R,
    hash: Hasher,
}

impl<R> Hashing<R> {
    fn new(input: R) -> Self {
        Self {
            input,
            hash: Hasher::new(),
        }
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.hash.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}
