//! gzip members (RFC 1952) around raw deflate streams (RFC 1951), and the eStargz footer.
//!
//! The same input gives the same bytes: no time stamp, no name, and every member is compressed
//! from a fresh state. A member is made either at once ([`Packer::member`]) or from blocks that
//! were compressed independently of each other and end on a byte boundary ([`Packer::block`]), so
//! that several threads can work on one member.

use std::io;

use flate2::{Compress, Compression, Crc, FlushCompress, Status};

/// Length of the eStargz footer in bytes (stargz-snapshotter `docs/estargz.md`, "Footer").
pub(super) const FOOTER_LEN: usize = 51;

/// What every member begins with: deflate, no flags, no time, unknown system.
pub(super) const MEMBER_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// One thread's compressor, used again for member after member.
pub(super) struct Packer {
    deflate: Compress,
}

impl Packer {
    /// A compressor at `level`, 1 (fast) to 9 (small).
    pub(super) fn new(level: u32) -> Self {
        Self {
            deflate: Compress::new(Compression::new(level), false),
        }
    }

    /// `raw` as one gzip member.
    pub(super) fn member(&mut self, raw: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(raw.len() / 2 + 64);
        out.extend_from_slice(&MEMBER_HEADER);
        self.deflate(raw, FlushCompress::Finish, &mut out)?;
        let mut crc = Crc::new();
        crc.update(raw);
        out.extend_from_slice(&trailer(&crc));
        Ok(out)
    }

    /// `raw` as a deflate stream that others can be appended to, or, if it is the `last`, not.
    pub(super) fn block(&mut self, raw: &[u8], last: bool) -> io::Result<(Vec<u8>, Crc)> {
        let mut out = Vec::with_capacity(raw.len() / 2 + 64);
        let flush = match last {
            true => FlushCompress::Finish,
            false => FlushCompress::Sync,
        };
        self.deflate(raw, flush, &mut out)?;
        let mut crc = Crc::new();
        crc.update(raw);
        Ok((out, crc))
    }

    fn deflate(&mut self, raw: &[u8], flush: FlushCompress, out: &mut Vec<u8>) -> io::Result<()> {
        self.deflate.reset();
        loop {
            let consumed = usize::try_from(self.deflate.total_in()).unwrap_or(usize::MAX);
            let rest = raw.get(consumed..).unwrap_or_default();
            let status = self.deflate.compress_vec(rest, out, flush)?;
            // A flush is complete when it left room in the output: zlib's own rule.
            let room = out.capacity() > out.len();
            match status {
                Status::StreamEnd => return Ok(()),
                Status::Ok | Status::BufError if room && flush == FlushCompress::Sync => {
                    return Ok(());
                }
                _ => out.reserve(raw.len() / 4 + 4096),
            }
        }
    }
}

/// What every member ends with: checksum and length (modulo 2^32) of what it holds.
pub(super) fn trailer(crc: &Crc) -> [u8; 8] {
    let mut bytes = [0; 8];
    let (sum, len) = bytes.split_at_mut(4);
    sum.copy_from_slice(&crc.sum().to_le_bytes());
    len.copy_from_slice(&crc.amount().to_le_bytes());
    bytes
}

/// The footer: an empty member whose extra field says where the TOC's member begins.
pub(super) fn footer(toc_offset: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FOOTER_LEN);
    bytes.extend_from_slice(&[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff]);
    // 26 bytes of extra field: subfield `SG` of 22 bytes.
    bytes.extend_from_slice(&[26, 0, b'S', b'G', 22, 0]);
    bytes.extend_from_slice(format!("{toc_offset:016x}STARGZ").as_bytes());
    // An empty stored block, the last one; then checksum and length of nothing.
    bytes.extend_from_slice(&[1, 0, 0, 0xff, 0xff]);
    bytes.extend_from_slice(&[0; 8]);
    bytes
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn inflate(gzip: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        flate2::read::GzDecoder::new(gzip)
            .read_to_end(&mut out)
            .unwrap();
        out
    }

    /// Bytes that do not compress, so that the output outgrows its first capacity.
    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut step = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..len).map(|_| step()).collect()
    }

    #[test]
    fn members_inflate_to_what_went_in_whatever_came_before() {
        let mut packer = Packer::new(6);
        for raw in [noise(300_000), vec![], vec![7; 1 << 20], noise(1)] {
            assert_eq!(inflate(&packer.member(&raw).unwrap()), raw);
        }
    }

    #[test]
    fn independent_blocks_make_one_member() {
        let mut packer = Packer::new(6);
        let parts = [noise(100_000), vec![b' '; 70_000], noise(10)];
        let mut gzip = MEMBER_HEADER.to_vec();
        let mut sum = Crc::new();
        for (i, part) in parts.iter().enumerate() {
            let (block, crc) = packer.block(part, i == 2).unwrap();
            gzip.extend(block);
            sum.combine(&crc);
        }
        gzip.extend(trailer(&sum));
        assert_eq!(inflate(&gzip), parts.concat());
    }

    #[test]
    fn the_footer_is_an_empty_member_of_51_bytes() {
        let bytes = footer(0x12ab);
        assert_eq!(bytes.len(), FOOTER_LEN);
        assert_eq!(&bytes[16..38], b"00000000000012abSTARGZ");
        assert_eq!(inflate(&bytes), b"");
    }
}
