//! The bytes of a pack file: records, block checksums, the closing list. Pure functions.
//!
//! `CACHE_FORMAT.md` draws the layout; all numbers are little-endian. Nothing read from a disk is
//! believed before its checksum fits, and no length read from it is used before it was bounded.

use crate::blob::cache::whole::Home;
use crate::blob::map::Proof;
use crate::oci::Digest;

/// Bytes of content under one checksum. A read of 4 KiB verifies at most two of these; 16 KiB cost
/// about 2 µs each and the table stays at 1/4096 of the content.
pub(super) const BLOCK: u32 = 16 * 1024;
/// Length of a record's header.
pub(super) const HEADER: usize = 64;
/// Length of the header that opens a pack.
pub(super) const PACK_HEADER: usize = 16;
/// Length of one line of the list that closes a pack.
pub(super) const LINE: usize = 44;
/// Length of what follows that list.
pub(super) const TRAILER: usize = 32;

const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"CRr1");
const PACK_MAGIC: [u8; 8] = *b"CRFSpak1";
const TRAILER_MAGIC: [u8; 8] = *b"CRFSend1";

/// Names one content in the cache: its digest, how far that was verified, and its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    digest: Digest,
    /// False only for legacy stargz. Kept apart, so that nothing unverified can ever stand in for
    /// content with a promised digest.
    proven: bool,
    size: u32,
}

impl Key {
    /// The name of a chunk of `size` bytes.
    #[must_use]
    pub const fn new(proof: &Proof, size: u32) -> Self {
        match proof {
            Proof::Sha256(digest) => Self {
                digest: *digest,
                proven: true,
                size,
            },
            Proof::Unverified(digest) => Self {
                digest: *digest,
                proven: false,
                size,
            },
        }
    }

    /// Length of the content in bytes.
    #[must_use]
    pub const fn size(&self) -> u32 {
        self.size
    }

    /// Half of the digest: what the index in memory keeps. The record's header has all of it.
    pub(super) fn short(&self) -> u128 {
        let mut half = [0; 16];
        half.copy_from_slice(&self.digest.as_bytes()[..16]);
        let half = u128::from_le_bytes(half);
        if self.proven { half } else { !half }
    }

    /// Number of checksummed blocks.
    pub(super) const fn blocks(&self) -> u32 {
        blocks(self.size)
    }

    /// Length of the record in a pack, in bytes.
    pub(super) const fn record_len(&self) -> u64 {
        record_len(self.size)
    }

    /// The checksum of one block. Seeded with the content's name and the block's number, so that
    /// right bytes in the wrong place do not pass.
    pub(super) fn checksum(&self, block: u32, bytes: &[u8]) -> u32 {
        let digest = self.digest.as_bytes();
        let seed = u32::from_le_bytes([digest[28], digest[29], digest[30], digest[31]]);
        let mut crc = crc32fast::Hasher::new_with_initial(seed ^ block.rotate_left(16));
        crc.update(bytes);
        crc.finalize()
    }

    /// Appends header and checksum table of the record at `offset` of pack `pack`.
    pub(super) fn write_head(&self, pack: u32, offset: u32, content: &[u8], out: &mut Vec<u8>) {
        self.write_head_at(pack, offset, 0, content, out);
    }

    /// The same of chunk `offset` of whole file `pack`, which lies at `at` in it.
    pub(super) fn write_head_at(
        &self,
        pack: u32,
        offset: u32,
        at: u64,
        content: &[u8],
        out: &mut Vec<u8>,
    ) {
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&RECORD_MAGIC.to_le_bytes());
        header[4] = u8::from(self.proven);
        header[8..12].copy_from_slice(&self.size.to_le_bytes());
        header[12..16].copy_from_slice(&pack.to_le_bytes());
        header[16..48].copy_from_slice(self.digest.as_bytes());
        header[48..52].copy_from_slice(&offset.to_le_bytes());
        header[52..60].copy_from_slice(&at.to_le_bytes());
        let crc = crc32fast::hash(&header[..60]);
        header[60..].copy_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&header);
        for (block, bytes) in (0..).zip(content.chunks(BLOCK as usize)) {
            out.extend_from_slice(&self.checksum(block, bytes).to_le_bytes());
        }
    }

    /// The name in a record's header, if that is the header of the record at `offset` of `pack`.
    pub(super) fn read_header(pack: u32, offset: u32, header: &[u8; HEADER]) -> Option<Self> {
        let right = number(header, 0) == RECORD_MAGIC
            && number(header, 12) == pack
            && number(header, 48) == offset
            && number(header, 60) == crc32fast::hash(&header[..60]);
        let proven = match header[4] {
            0 => false,
            1 => true,
            _ => return None,
        };
        let mut digest = [0; 32];
        digest.copy_from_slice(&header[16..48]);
        let size = number(header, 8);
        (right && size > 0).then_some(Self {
            digest: Digest::from_bytes(digest),
            proven,
            size,
        })
    }

    /// Where in its whole file a chunk with this sound header lies; 0 in a pack.
    pub(super) fn read_at(header: &[u8; HEADER]) -> u64 {
        wide(header, 52)
    }

    /// The line of the closing list that says that this content lies at `offset`.
    pub(super) fn write_line(&self, offset: u32) -> [u8; LINE] {
        let mut line = [0; LINE];
        line[..32].copy_from_slice(self.digest.as_bytes());
        line[32..36].copy_from_slice(&u32::from(self.proven).to_le_bytes());
        line[36..40].copy_from_slice(&offset.to_le_bytes());
        line[40..].copy_from_slice(&self.size.to_le_bytes());
        line
    }

    /// The inverse of [`Self::write_line`]. The list has a checksum, so a wrong line is a list
    /// that this version did not write.
    pub(super) fn read_line(line: &[u8; LINE]) -> Option<(Self, u32)> {
        let mut digest = [0; 32];
        digest.copy_from_slice(&line[..32]);
        let proven = match number(line, 32) {
            0 => false,
            1 => true,
            _ => return None,
        };
        let key = Self {
            digest: Digest::from_bytes(digest),
            proven,
            size: number(line, 40),
        };
        (key.size > 0).then_some((key, number(line, 36)))
    }
}

/// Number of checksummed blocks of a content of `size` bytes.
const fn blocks(size: u32) -> u32 {
    size.div_ceil(BLOCK)
}

/// Length of the record of a content of `size` bytes.
pub(super) const fn record_len(size: u32) -> u64 {
    HEADER as u64 + 4 * blocks(size) as u64 + size as u64
}

/// Content that has been verified, or never can be: the only thing the cache takes in.
#[derive(Debug, Clone, Copy)]
pub struct Verified<'a> {
    key: Key,
    bytes: &'a [u8],
    home: Option<&'a Home>,
}

impl<'a> Verified<'a> {
    /// Verifies `bytes`; `None` if they are empty, of the wrong length or not the promised ones.
    #[must_use]
    pub fn check(proof: &Proof, size: u32, bytes: &'a [u8]) -> Option<Self> {
        let fits = size > 0 && bytes.len() == size as usize;
        (fits && proof.accepts(bytes)).then(|| Self {
            key: Key::new(proof, size),
            bytes,
            home: None,
        })
    }

    /// Content that came out of the cache under `key`, each block checked.
    pub(super) const fn from_cache(key: Key, bytes: &'a [u8]) -> Self {
        let home = None;
        Self { key, bytes, home }
    }

    /// The same, to be written to its place in a whole file.
    #[must_use]
    pub const fn at(self, home: Option<&'a Home>) -> Self {
        Self { home, ..self }
    }

    /// Its place in a whole file, if it has one.
    pub(super) const fn home(&self) -> Option<&'a Home> {
        self.home
    }

    /// Its name.
    #[must_use]
    pub const fn key(&self) -> &Key {
        &self.key
    }

    /// The content.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// What opens pack `pack`.
pub(super) fn pack_header(pack: u32) -> [u8; PACK_HEADER] {
    let mut header = [0; PACK_HEADER];
    header[..8].copy_from_slice(&PACK_MAGIC);
    header[8..12].copy_from_slice(&pack.to_le_bytes());
    let crc = crc32fast::hash(&header[..12]);
    header[12..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// What ends a pack that is complete: how long its closing list is and what it must hash to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trailer {
    /// The pack's number.
    pub pack: u32,
    /// Lines in the list.
    pub lines: u32,
    /// Where the list starts, in bytes from the start of the file.
    pub list: u32,
    /// Checksum of the list.
    pub crc: u32,
}

impl Trailer {
    /// Its bytes.
    pub(super) fn write(&self) -> [u8; TRAILER] {
        let mut out = [0; TRAILER];
        out[..8].copy_from_slice(&TRAILER_MAGIC);
        for (at, value) in [
            (8, self.pack),
            (12, self.lines),
            (16, self.list),
            (20, self.crc),
        ] {
            out[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let crc = crc32fast::hash(&out[..28]);
        out[28..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Its meaning, if these are the last bytes of pack `pack` of `len` bytes and agree with that.
    pub(super) fn read(pack: u32, len: u64, bytes: &[u8; TRAILER]) -> Option<Self> {
        let trailer = Self {
            pack: number(bytes, 8),
            lines: number(bytes, 12),
            list: number(bytes, 16),
            crc: number(bytes, 20),
        };
        let end = u64::from(trailer.list) + u64::from(trailer.lines) * LINE as u64 + TRAILER as u64;
        let right = bytes[..8] == TRAILER_MAGIC
            && number(bytes, 28) == crc32fast::hash(&bytes[..28])
            && trailer.pack == pack
            && end == len;
        right.then_some(trailer)
    }
}

/// The wide number at a constant position of a fixed-size array.
pub(super) fn wide<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(eight)
}

/// The number at a constant position of a fixed-size array.
pub(super) fn number<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(four)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(content: &[u8]) -> Key {
        Key::new(
            &Proof::Sha256(Digest::of(content)),
            u32::try_from(content.len()).unwrap(),
        )
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_seen() {
        let mut head = Vec::new();
        key(b"content").write_head(7, 16, b"content", &mut head);
        let header: [u8; HEADER] = head[..HEADER].try_into().unwrap();
        assert_eq!(Key::read_header(7, 16, &header), Some(key(b"content")));
        assert_eq!(Key::read_header(8, 16, &header), None, "another pack");
        assert_eq!(Key::read_header(7, 17, &header), None, "another place");
        for bit in 0..HEADER * 8 {
            let mut bad = header;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Key::read_header(7, 16, &bad), None, "bit {bit}");
        }
    }

    #[test]
    fn a_trailer_must_agree_with_the_file() {
        let trailer = Trailer {
            pack: 3,
            lines: 2,
            list: 100,
            crc: 9,
        };
        let len = 100 + 2 * LINE as u64 + TRAILER as u64;
        assert_eq!(Trailer::read(3, len, &trailer.write()), Some(trailer));
        assert_eq!(Trailer::read(3, len + 1, &trailer.write()), None);
        assert_eq!(Trailer::read(4, len, &trailer.write()), None);
    }

    #[test]
    fn unverified_content_never_stands_in_for_promised_content() {
        let digest = Digest::of(b"x");
        let legacy = Key::new(&Proof::Unverified(digest), 1);
        let proven = Key::new(&Proof::Sha256(digest), 1);
        assert_ne!(legacy, proven);
        assert_ne!(legacy.short(), proven.short());
        assert!(Verified::check(&Proof::Sha256(digest), 1, b"y").is_none());
        assert!(Verified::check(&Proof::Sha256(digest), 1, b"x").is_some());
        assert!(Verified::check(&Proof::Unverified(digest), 2, b"y").is_none());
    }
}
