//! The blob as it grows: members in order, then the TOC's member, then the footer.
//!
//! The TOC comes last but its size comes first in its tar header, and a file's digest is known only
//! after its last chunk, so the lines of the TOC wait in a temporary file: one line of it for an
//! entry with all its chunks. Memory holds the lines of one entry.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Seek, Write};

use flate2::Crc;

use super::error::{Error, Unsuitable};
use super::gzip::{MEMBER_HEADER, footer, trailer};
use super::header::BLOCK;
use super::json::{Place, digest_field, place};
use super::pool::{Data, Done, Job, Member, Pool};
use super::scan::padding;
use super::{Written, own};
use crate::oci::{Digest, Hasher};

/// The largest TOC that is written, in bytes of JSON: crfs reads no larger one.
const MAX_TOC: u64 = 1 << 30;
/// What the TOC's member is cut into, so that all cores can compress it.
const TOC_BLOCK: usize = 1 << 20;

const TOC_START: &[u8] = b"{\"version\":1,\"entries\":[\n";
// Nothing after the brace: the reference reader digests what its JSON decoder happened to read.
const TOC_END: &[u8] = b"]}";

/// The blob, its digests, and the lines of its TOC.
pub(super) struct Sink {
    blob: BufWriter<File>,
    size: u64,
    blob_hash: Hasher,
    tar_size: u64,
    tar_hash: Hasher,
    lines: BufWriter<File>,
    entries: u32,
    /// The file of several chunks that is being written.
    open: Option<OpenFile>,
    toc_crc: Crc,
}

struct OpenFile {
    /// The entry's object, still open.
    first: Vec<u8>,
    /// The objects of its further chunks.
    rest: Vec<u8>,
    hash: Hasher,
}

impl Sink {
    /// A sink that writes the blob to `blob`, which is empty, and the TOC's lines to `lines`.
    pub(super) fn new(blob: File, lines: File) -> Self {
        Self {
            blob: BufWriter::with_capacity(1 << 18, blob),
            size: 0,
            blob_hash: Hasher::new(),
            tar_size: 0,
            tar_hash: Hasher::new(),
            lines: BufWriter::with_capacity(1 << 18, lines),
            entries: 0,
            open: None,
            toc_crc: Crc::new(),
        }
    }

    /// Takes what the workers made, in order.
    pub(super) fn consume(&mut self, done: Done) -> Result<(), Error> {
        match done {
            Done::Member {
                member,
                packed,
                digests,
            } => {
                let offset = self.size;
                self.tar(&member.raw);
                self.write(&packed).map_err(Error::Output)?;
                self.list(&member, &digests, offset).map_err(Error::Output)
            }
            Done::Block { raw, packed, crc } => {
                self.tar(&raw);
                self.toc_crc.combine(&crc);
                self.write(&packed).map_err(Error::Output)
            }
        }
    }

    /// Ends the lines; `replaced` are the numbers of those that are not to be in the TOC.
    pub(super) fn toc(&mut self, replaced: Vec<u32>) -> Result<Toc, Error> {
        self.lines.flush().map_err(Error::Output)?;
        let lines = self.lines.get_ref().try_clone().map_err(Error::Output)?;
        let mut toc = Toc {
            lines,
            replaced,
            size: 0,
            digest: Digest::of(b""),
        };
        let (mut size, mut hash) = (0_u64, Hasher::new());
        toc.each_part(&mut |part| {
            size = size.saturating_add(part.len() as u64);
            hash.update(part);
            Ok(())
        })?;
        if size > MAX_TOC {
            return Err(Unsuitable::TocTooLarge(size).into());
        }
        (toc.size, toc.digest) = (size, hash.finish());
        Ok(toc)
    }

    /// Begins the TOC's member; its blocks come through [`Sink::consume`].
    pub(super) fn begin_toc(&mut self) -> Result<u64, Error> {
        let offset = self.size;
        self.write(&MEMBER_HEADER).map_err(Error::Output)?;
        Ok(offset)
    }

    /// Ends the TOC's member, which began at `offset`, and the blob.
    pub(super) fn finish(mut self, offset: u64, toc: &Toc) -> Result<Written, Error> {
        let trailer = trailer(&self.toc_crc);
        self.write(&trailer).map_err(Error::Output)?;
        self.write(&footer(offset)).map_err(Error::Output)?;
        self.blob.flush().map_err(Error::Output)?;
        Ok(Written {
            digest: self.blob_hash.finish(),
            size: self.size,
            diff_id: self.tar_hash.finish(),
            tar_size: self.tar_size,
            toc_digest: toc.digest,
            toc_offset: offset,
            entries: self.entries,
            input_diff_id: Digest::of(b""),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.size = self.size.saturating_add(bytes.len() as u64);
        self.blob_hash.update(bytes);
        self.blob.write_all(bytes)
    }

    fn tar(&mut self, bytes: &[u8]) {
        self.tar_size = self.tar_size.saturating_add(bytes.len() as u64);
        self.tar_hash.update(bytes);
    }

    /// Writes the lines of one member, which lies at `offset`.
    fn list(&mut self, member: &Member, digests: &[Digest], offset: u64) -> io::Result<()> {
        let mut begin = 0;
        let mut digests = digests.iter();
        for line in &member.lines {
            let mut json = member
                .json
                .get(begin..line.json_end)
                .unwrap_or_default()
                .to_vec();
            begin = line.json_end;
            let Some(data) = line.data else {
                json.extend_from_slice(b"}\n");
                self.line(&json)?;
                continue;
            };
            let digest = digests.next().ok_or(io::ErrorKind::InvalidData)?;
            let at = Place {
                member: offset,
                inner: data.inner,
                at: data.at,
                len: data.len,
                of: data.of,
            };
            place(&at, *digest, &mut json);
            self.chunk(json, data, *digest, &member.raw)?;
        }
        Ok(())
    }

    /// Takes one chunk's object; the last one completes the entry's line.
    fn chunk(
        &mut self,
        mut json: Vec<u8>,
        data: Data,
        digest: Digest,
        raw: &[u8],
    ) -> io::Result<()> {
        if data.len as u64 == data.of {
            digest_field("digest", digest, &mut json);
            json.extend_from_slice(b"}\n");
            return self.line(&json);
        }
        let bytes = raw
            .get(data.inner..data.inner + data.len)
            .unwrap_or_default();
        let open = match (self.open.as_mut(), data.at) {
            (Some(open), 1..) => {
                open.rest.extend_from_slice(b",");
                open.rest.append(&mut json);
                open.rest.push(b'}');
                open
            }
            _ => self.open.insert(OpenFile {
                first: json,
                rest: Vec::new(),
                hash: Hasher::new(),
            }),
        };
        open.hash.update(bytes);
        if data.at + (data.len as u64) < data.of {
            return Ok(());
        }
        match self.open.take() {
            Some(OpenFile {
                mut first,
                rest,
                hash,
            }) => {
                digest_field("digest", hash.finish(), &mut first);
                first.push(b'}');
                first.extend_from_slice(&rest);
                first.push(b'\n');
                self.line(&first)
            }
            None => Ok(()),
        }
    }

    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        self.entries = self.entries.saturating_add(1);
        self.lines.write_all(line)
    }
}

/// The finished TOC, still in its temporary file.
pub(super) struct Toc {
    lines: File,
    replaced: Vec<u32>,
    size: u64,
    digest: Digest,
}

impl Toc {
    /// Hands the TOC's tar entry and the tar's end to the pool, in blocks.
    pub(super) fn push(&self, pool: &Pool) -> Result<(), Error> {
        let mut block = Vec::with_capacity(TOC_BLOCK + BLOCK);
        block.extend_from_slice(&own::header(own::TOC_NAME, self.size));
        self.each_part(&mut |part| {
            block.extend_from_slice(part);
            if block.len() < TOC_BLOCK {
                return Ok(());
            }
            let raw = std::mem::replace(&mut block, Vec::with_capacity(TOC_BLOCK + BLOCK));
            pool.push(Job::Block { raw, last: false })
        })?;
        // Padding, and the two blocks of zeros that end a tar.
        block.resize(block.len() + padding(self.size) + 2 * BLOCK, 0);
        pool.push(Job::Block {
            raw: block,
            last: true,
        })
    }

    fn each_part(&self, part: &mut dyn FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> {
        let mut lines = BufReader::with_capacity(1 << 18, &self.lines);
        lines.rewind().map_err(Error::Output)?;
        let mut replaced = self.replaced.iter().peekable();
        let (mut line, mut first) = (Vec::new(), true);
        part(TOC_START)?;
        for number in 0.. {
            line.clear();
            if lines.read_until(b'\n', &mut line).map_err(Error::Output)? == 0 {
                break;
            }
            if replaced.next_if_eq(&&number).is_some() {
                continue;
            }
            if !std::mem::take(&mut first) {
                part(b",")?;
            }
            part(&line)?;
        }
        part(TOC_END)
    }
}
