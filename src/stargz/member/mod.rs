//! Inflating the gzip member that a chunk lies in, while its compressed bytes arrive.
//!
//! The promises: what comes out is bounded by what was asked for, what is reserved by what the
//! input could possibly inflate to; work is linear in the input. A member that ends early is
//! continued by the next one, as gzip means it (RFC 1952, section 2.2), so bytes beyond the member
//! do no harm and empty members cost their own length.
//!
//! CRC32 and ISIZE are not looked at: the digest of a chunk decides whether its content is served,
//! and most reads stop long before a member's trailer.

use flate2::{Decompress, FlushDecompress, Status as Deflate};

use crate::stargz::Error;

/// FLG bits of a gzip header, in the order in which their fields follow (RFC 1952, section 2.3.1).
const FEXTRA: u8 = 1 << 2;
const FNAME: u8 = 1 << 3;
const FCOMMENT: u8 = 1 << 4;
const FHCRC: u8 = 1 << 1;
/// FLG bits that must be zero.
const RESERVED: u8 = 0b1110_0000;
/// Longest gzip header that is read through, in bytes; an extra field alone may have 65535.
const MAX_HEADER: u32 = 128 << 10;
/// CRC32 and ISIZE.
const TRAILER: u8 = 8;
/// Deflate's best ratio: a match of 258 bytes in two bits, rounded up.
const MAX_RATIO: u64 = 1032;
/// What may still come out of bits that zlib took in earlier.
const PENDING: u64 = 16 << 10;

/// What an inflater wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// More compressed bytes.
    More,
    /// Nothing: all that was asked for has come out.
    Done,
}

/// Inflates a gzip member from pieces of its compressed bytes.
///
/// After an error it may be used again only after [`MemberInflater::reset`]; what came out before
/// the error stays in the output.
#[derive(Debug)]
pub struct MemberInflater {
    deflate: Decompress,
    stage: Stage,
    /// FLG bits whose fields are still to come.
    flags: u8,
    /// Bytes of the current member's header so far.
    header: u32,
    /// Bytes of all members together.
    inflated: u64,
    wanted: u64,
}

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Byte `.0` of the ten that every header has.
    Fixed(u8),
    ExtraLen(Option<u8>),
    Extra(u16),
    /// A file name or a comment, both of which end in a NUL.
    Text,
    HeaderCrc(u8),
    Body,
    /// That many bytes of the trailer are left.
    Trailer(u8),
}

impl MemberInflater {
    /// An inflater at the start of a member that wants its first `wanted` inflated bytes.
    #[must_use]
    pub fn new(wanted: u64) -> Self {
        Self {
            deflate: Decompress::new(false),
            stage: Stage::Fixed(0),
            flags: 0,
            header: 0,
            inflated: 0,
            wanted,
        }
    }

    /// Starts over with another member; cheaper than a new inflater.
    pub fn reset(&mut self, wanted: u64) {
        self.deflate.reset(false);
        self.stage = Stage::Fixed(0);
        self.header = 0;
        self.inflated = 0;
        self.wanted = wanted;
    }

    /// Bytes that have come out since the start of the member.
    #[must_use]
    pub const fn inflated(&self) -> u64 {
        self.inflated
    }

    /// Takes the next piece of compressed bytes and appends what it inflates to, never more than
    /// is still wanted. Once [`Status::Done`], further pieces are ignored.
    ///
    /// # Errors
    /// The bytes are no gzip member, are damaged, or the members end in something else before all
    /// that is wanted came out.
    pub fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<Status, Error> {
        let mut rest = piece;
        while self.inflated < self.wanted {
            let Some((&byte, after)) = rest.split_first() else {
                return Ok(Status::More);
            };
            if self.stage == Stage::Body {
                rest = self.body(rest, out)?;
            } else {
                self.stage = self.framing(byte)?;
                rest = after;
            }
        }
        Ok(Status::Done)
    }

    /// Says that there are no more compressed bytes.
    ///
    /// # Errors
    /// [`Error::MemberShort`]: not all that was wanted came out.
    pub const fn finish(&self) -> Result<(), Error> {
        if self.inflated < self.wanted {
            return Err(self.short());
        }
        Ok(())
    }

    const fn short(&self) -> Error {
        Error::MemberShort {
            inflated: self.inflated,
            wanted: self.wanted,
        }
    }

    /// One byte of a header or trailer: which stage the next byte is in.
    fn framing(&mut self, byte: u8) -> Result<Stage, Error> {
        self.header = self.header.saturating_add(1);
        if self.header > MAX_HEADER {
            return Err(Error::MemberHeader("its header has no end within 128 KiB"));
        }
        match self.stage {
            Stage::Fixed(at) => self.fixed(at, byte),
            Stage::ExtraLen(None) => Ok(Stage::ExtraLen(Some(byte))),
            Stage::ExtraLen(Some(low)) => match u16::from_le_bytes([low, byte]) {
                0 => Ok(self.next_field()),
                len => Ok(Stage::Extra(len)),
            },
            Stage::Extra(left) if left > 1 => Ok(Stage::Extra(left - 1)),
            Stage::HeaderCrc(left) if left > 1 => Ok(Stage::HeaderCrc(left - 1)),
            Stage::Text if byte != 0 => Ok(Stage::Text),
            Stage::Trailer(left) if left > 1 => Ok(Stage::Trailer(left - 1)),
            Stage::Trailer(_) => {
                self.deflate.reset(false);
                self.header = 0;
                Ok(Stage::Fixed(0))
            }
            Stage::Extra(_) | Stage::HeaderCrc(_) | Stage::Text | Stage::Body => {
                Ok(self.next_field())
            }
        }
    }

    fn fixed(&mut self, at: u8, byte: u8) -> Result<Stage, Error> {
        match (at, byte) {
            (0, 0x1f) | (1, 0x8b) | (2, 8) => {}
            // What follows a complete member need not be one: then the content ends here.
            (0..=2, _) if self.inflated > 0 => return Err(self.short()),
            (0..=2, _) => return Err(Error::MemberHeader("it does not start like one")),
            (3, flags) if flags & RESERVED != 0 => {
                return Err(Error::MemberHeader("its header has reserved flags"));
            }
            (3, flags) => self.flags = flags,
            (9, _) => return Ok(self.next_field()),
            _ => {}
        }
        Ok(Stage::Fixed(at + 1))
    }

    /// The header's next optional field, in the order RFC 1952 gives them.
    fn next_field(&mut self) -> Stage {
        let fields = [
            (FEXTRA, Stage::ExtraLen(None)),
            (FNAME, Stage::Text),
            (FCOMMENT, Stage::Text),
            (FHCRC, Stage::HeaderCrc(2)),
        ];
        for (flag, stage) in fields {
            if self.flags & flag != 0 {
                self.flags &= !flag;
                return stage;
            }
        }
        Stage::Body
    }

    /// Inflates as much of `input` as is wanted; returns what zlib did not take.
    fn body<'a>(&mut self, input: &'a [u8], out: &mut Vec<u8>) -> Result<&'a [u8], Error> {
        let left = self.wanted - self.inflated;
        // Never more than this input can yield, so that a claim alone reserves no memory.
        let yields = MAX_RATIO
            .saturating_mul(input.len() as u64)
            .saturating_add(PENDING);
        let room = usize::try_from(left.min(yields)).unwrap_or(usize::MAX);
        out.reserve(room);
        let spare = out.spare_capacity_mut();
        let spare = spare.get_mut(..room).unwrap_or_default();
        let (taken, given) = (self.deflate.total_in(), self.deflate.total_out());
        let status = self
            .deflate
            .decompress_uninit(input, spare, FlushDecompress::None);
        let taken = usize::try_from(self.deflate.total_in() - taken).unwrap_or(usize::MAX);
        let given = usize::try_from(self.deflate.total_out() - given).unwrap_or(usize::MAX);
        // SAFETY: zlib has initialised the first `given` bytes of the spare capacity, which has at
        // least `room` bytes; the minimum keeps that true whatever zlib counts.
        unsafe { out.set_len(out.len() + given.min(room)) };
        self.inflated += given.min(room) as u64;
        match status {
            Ok(Deflate::StreamEnd) => self.stage = Stage::Trailer(TRAILER),
            Ok(_) if taken == 0 && given == 0 => return Err(self.damaged("zlib is stuck")),
            Ok(_) => {}
            Err(error) => return Err(self.damaged(&error.to_string())),
        }
        Ok(input.get(taken..).unwrap_or_default())
    }

    fn damaged(&self, what: &str) -> Error {
        Error::MemberData {
            inflated: self.inflated,
            what: what.to_owned(),
        }
    }
}

/// Inflates the first `wanted` bytes of a member that is here as a whole, and appends them.
///
/// # Errors
/// As [`MemberInflater::push`], or [`Error::MemberShort`] when fewer bytes come out; those stay in
/// `out`, because other chunks of the member may be among them.
pub fn inflate_member(compressed: &[u8], wanted: u64, out: &mut Vec<u8>) -> Result<(), Error> {
    let mut inflater = MemberInflater::new(wanted);
    inflater.push(compressed, out)?;
    inflater.finish()
}

#[cfg(test)]
mod tests;
