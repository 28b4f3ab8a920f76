//! A tar stream as entries, with every byte of it at hand.
//!
//! A scanner yields what an entry means (after PAX and GNU extensions) and hands over the bytes it
//! was read from, so that a layer can be written again header for header. It takes any tar that
//! container runtimes unpack: the end may come without the two blocks of zeros, and the last file
//! without its padding. Extensions are bounded in size; data is read by the caller, in pieces.

use std::io::{self, Read};

use super::error::{Error, Unsuitable};
use super::header::{BLOCK, Header};
use super::pax::Pax;

/// The largest extension header that is read, in bytes; Go's `archive/tar` has the same limit.
const MAX_EXTENSION: u64 = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Dir,
    File,
    Symlink,
    HardLink,
    Char,
    Block,
    Fifo,
}

/// One entry, as an unpacker understands it.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    /// As written: it may begin with `./` or `/`, or end in `/`.
    pub(super) name: Vec<u8>,
    /// Target of a link; empty for others.
    pub(super) link: Vec<u8>,
    /// Bytes of data that follow, without padding; 0 for all but files.
    pub(super) size: u64,
    /// The permission bits, 07777 at most.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since the epoch, and nanoseconds after that second.
    pub(super) mtime: (i64, u32),
    /// Major and minor number of a device; 0 for others.
    pub(super) device: (u32, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads a tar stream entry by entry.
pub(super) struct Scanner<R> {
    input: R,
    at: u64,
}

/// Headers that extend the next one.
#[derive(Default)]
struct Extensions {
    pax: Pax,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Read> Scanner<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, at: 0 }
    }

    /// What is left of the stream after the last entry.
    pub(super) fn into_rest(self) -> R {
        self.input
    }

    /// The next entry, or `None` at the end. Its headers are appended to `raw`; its data comes next.
    pub(super) fn next(&mut self, raw: &mut Vec<u8>) -> Result<Option<Entry>, Error> {
        let mut extensions = Extensions::default();
        loop {
            let start = self.at;
            let Some(block) = self.header_block()? else {
                return Ok(None);
            };
            let header = Header::parse(&block)
                .ok_or_else(|| malformed(start, "a header's checksum is wrong"))?;
            raw.extend_from_slice(&block);
            match header.flag() {
                b'x' => {
                    let data = self.extension(&header, raw)?;
                    extensions.pax = Pax::parse(&data, start)?;
                }
                // Runtimes pass over global headers, so nothing in them may count here.
                b'g' => {
                    self.extension(&header, raw)?;
                    extensions = Extensions::default();
                }
                b'L' => extensions.long_name = Some(self.long_text(&header, raw)?),
                b'K' => extensions.long_link = Some(self.long_text(&header, raw)?),
                _ => return Ok(Some(extensions.entry(&header, start)?)),
            }
        }
    }

    /// Appends the next `len` bytes of data to `out`.
    pub(super) fn data(&mut self, len: u64, out: &mut Vec<u8>) -> Result<(), Error> {
        let input = &mut self.input;
        let read = input.take(len).read_to_end(out).map_err(Error::Input)? as u64;
        self.at = self.at.saturating_add(read);
        match read == len {
            true => Ok(()),
            false => Err(malformed(self.at, "a file's data ends early").into()),
        }
    }

    /// Passes over the next `len` bytes of data.
    pub(super) fn skip(&mut self, len: u64) -> Result<(), Error> {
        let read = io::copy(&mut (&mut self.input).take(len), &mut io::sink());
        let read = read.map_err(Error::Input)?;
        self.at = self.at.saturating_add(read);
        match read == len {
            true => Ok(()),
            false => Err(malformed(self.at, "a file's data ends early").into()),
        }
    }

    /// Reads the padding after `size` bytes of data and appends it to `out`, whole even if the
    /// stream ends within it: some writers leave out the very last one.
    pub(super) fn padding(&mut self, size: u64, out: &mut Vec<u8>) -> Result<(), Error> {
        let len = padding(size);
        let start = out.len();
        let input = &mut self.input;
        let read = input
            .take(len as u64)
            .read_to_end(out)
            .map_err(Error::Input)?;
        self.at = self.at.saturating_add(read as u64);
        out.resize(start + len, 0);
        Ok(())
    }

    /// The next block, or `None` at the end of the stream or before a block of zeros.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while let Some(rest @ [_, ..]) = block.get_mut(filled..) {
            match self.input.read(rest) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(malformed(self.at, "a header ends early").into()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Input(error)),
            }
        }
        self.at = self.at.saturating_add(BLOCK as u64);
        Ok((block != [0; BLOCK]).then_some(block))
    }

    fn extension(&mut self, header: &Header<'_>, raw: &mut Vec<u8>) -> Result<Vec<u8>, Error> {
        let size = header.size().and_then(|size| u64::try_from(size).ok());
        let size = size
            .filter(|size| *size <= MAX_EXTENSION)
            .ok_or_else(|| malformed(self.at, "an extension header is too large"))?;
        let start = raw.len();
        self.data(size, raw)?;
        let data = raw.get(start..).unwrap_or_default().to_vec();
        self.padding(size, raw)?;
        Ok(data)
    }

    fn long_text(&mut self, header: &Header<'_>, raw: &mut Vec<u8>) -> Result<Vec<u8>, Error> {
        let mut text = self.extension(header, raw)?;
        let end = text.iter().position(|&b| b == 0).unwrap_or(text.len());
        text.truncate(end);
        Ok(text)
    }
}

impl Extensions {
    fn entry(self, header: &Header<'_>, at: u64) -> Result<Entry, Unsuitable> {
        let Self {
            pax,
            long_name,
            long_link,
        } = self;
        let name = long_name.or(pax.path).unwrap_or_else(|| header.name());
        let shown = || String::from_utf8_lossy(&name).into_owned();
        if pax.sparse || header.flag() == b'S' {
            return Err(Unsuitable::Sparse { name: shown() });
        }
        let kind = kind(header.flag(), &name).ok_or_else(|| Unsuitable::UnknownKind {
            name: shown(),
            flag: char::from(header.flag()),
        })?;
        let out_of_range = |field| Unsuitable::OutOfRange {
            name: shown(),
            field,
        };
        let id = |extended: Option<u64>, plain: Option<i64>, field| {
            let wide = extended.or_else(|| u64::try_from(plain?).ok());
            // 2^32 - 1 is `(uid_t) -1`, which no file can belong to.
            let id = wide
                .and_then(|id| u32::try_from(id).ok())
                .filter(|id| *id != u32::MAX);
            id.ok_or_else(|| out_of_range(field))
        };
        let size = match kind {
            Kind::File => {
                let plain = || header.size().and_then(|size| u64::try_from(size).ok());
                let size = pax
                    .size
                    .or_else(plain)
                    .filter(|size| i64::try_from(*size).is_ok());
                size.ok_or_else(|| malformed(at, "a size is not a number"))?
            }
            _ => 0,
        };
        let plain_time = || header.mtime().map(|seconds| (seconds, 0));
        let mode = header.mode().ok_or_else(|| out_of_range("mode"))?;
        Ok(Entry {
            kind,
            size,
            mode: u32::try_from(mode & 0o7777).unwrap_or_default(),
            uid: id(pax.uid, header.uid(), "uid")?,
            gid: id(pax.gid, header.gid(), "gid")?,
            mtime: pax
                .mtime
                .or_else(plain_time)
                .ok_or_else(|| out_of_range("mtime"))?,
            device: match kind {
                Kind::Char | Kind::Block => {
                    device(header).ok_or_else(|| out_of_range("device number"))?
                }
                _ => (0, 0),
            },
            link: match kind {
                Kind::Symlink | Kind::HardLink => {
                    long_link.or(pax.link).unwrap_or_else(|| header.link())
                }
                _ => Vec::new(),
            },
            xattrs: pax.xattrs,
            name,
        })
    }
}

/// Length of the padding after `size` bytes of data.
pub(super) const fn padding(size: u64) -> usize {
    (BLOCK - (size % BLOCK as u64) as usize) % BLOCK
}

fn kind(flag: u8, name: &[u8]) -> Option<Kind> {
    Some(match flag {
        // V7 had no kind for directories.
        0 if name.ends_with(b"/") => Kind::Dir,
        0 | b'0' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::Char,
        b'4' => Kind::Block,
        b'5' => Kind::Dir,
        b'6' => Kind::Fifo,
        _ => return None,
    })
}

/// Linux has 12 bits of major and 20 of minor number.
fn device(header: &Header<'_>) -> Option<(u32, u32)> {
    let (major, minor) = header.device()?;
    let (major, minor) = (u32::try_from(major).ok()?, u32::try_from(minor).ok()?);
    (major < 1 << 12 && minor < 1 << 20).then_some((major, minor))
}

fn malformed(at: u64, why: &'static str) -> Unsuitable {
    Unsuitable::Malformed { at, why }
}
