//! The bytes of an index file: header and fixed-size records. `INDEX_FORMAT.md` beside this file
//! draws the whole; the two change together, with [`VERSION`].
//!
//! All numbers are little-endian. Nothing here does I/O, and every decoder is total.

use crate::fs::index::error::Damaged;
use crate::oci::Digest;

/// First bytes of every index.
pub const MAGIC: [u8; 8] = *b"crfs-idx";
/// Of the format; any change of the layout or of the numbering of nodes raises it.
pub const VERSION: u32 = 2;
/// Where the first section starts: a page, so that the sections are aligned in memory.
pub const HEADER_LEN: u64 = 4096;
/// Each block of this many bytes after the header has a CRC-32 of its own, compared when it is
/// first touched: small enough that a look-up in a large index stays cheap, large enough that the
/// table (4 bytes for each) can be read at open.
pub const BLOCK: u64 = 16 << 10;

/// Length of the used part of the header, its own CRC-32 included.
pub const HEADER_USED: usize = 260;
/// Number of sections.
pub const SECTIONS: usize = 8;
/// Length of an inode record.
pub const INODE_LEN: usize = 48;
/// Length of a directory entry.
pub const DIRENT_LEN: usize = 12;
/// Length of a chunk record.
pub const CHUNK_LEN: usize = 52;
/// Length of a member record.
pub const MEMBER_LEN: usize = 20;

/// Flag: some file has an extended attribute (an opaque folder has one too).
pub const HAS_XATTRS: u32 = 1;
/// Flag: some folder is opaque.
pub const HAS_OPAQUE: u32 = 2;
/// Flag: some file has a POSIX ACL.
pub const HAS_ACL: u32 = 4;

/// In an inode's mode: a folder that the TOC does not list.
pub const IMPLICIT: u32 = 1 << 16;

/// In a chunk record's size: nothing promises the content, the digest only names it.
pub const UNVERIFIED: u32 = 1 << 31;
/// In a chunk record's size: a start does not read it, although it lies before the landmark.
pub const UNREAD: u32 = 1 << 30;
/// What of a chunk record's size is its size.
pub const SIZE: u32 = UNREAD - 1;

/// The parts of an index file, in the order they lie in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// Inode records; the record at position `p` is node `p + 1`.
    Inodes = 0,
    /// Directory entries: those of one folder together, sorted by name.
    Dirents = 1,
    /// Names of directory entries, then targets of symlinks.
    Names = 2,
    /// Chunk records, those of one file together.
    Chunks = 3,
    /// Gzip members, sorted by their offset in the blob.
    Members = 4,
    /// Numbers of chunks (u32 each), those of one member together.
    MemberChunks = 5,
    /// Sets of extended attributes.
    Xattrs = 6,
    /// A CRC-32 for each block between the header and this section.
    Checksums = 7,
}

/// Where a section lies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte in the file.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

/// The header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// `HAS_*`.
    pub flags: u32,
    /// The TOC it was built from.
    pub toc: Digest,
    /// The compressed blob.
    pub blob: Digest,
    /// Length of the whole file.
    pub file_len: u64,
    /// Where the blob's data ends and its TOC begins.
    pub data_end: u64,
    /// Blob offset of the prefetch landmark, `u64::MAX` without one.
    pub landmark: u64,
    /// Sum of the sizes of all regular files.
    pub content: u64,
    /// Number of regular files.
    pub files: u32,
    /// Number of folders, root included.
    pub folders: u32,
    /// Number of folders that the TOC does not list.
    pub implicit: u32,
    /// CRC-32 of the checksum section.
    pub sums_crc: u32,
    /// Where the sections lie.
    pub sections: [Span; SECTIONS],
}

/// An inode record. What `a`, `b` and `c` mean depends on the type in `mode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InodeRecord {
    /// Type (`S_IFMT`) and permissions, as in `stat`, with [`IMPLICIT`].
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of links.
    pub nlink: u32,
    /// Modification time, seconds.
    pub mtime: i64,
    /// Modification time, nanoseconds.
    pub nanos: u32,
    /// 1 + offset of its set in the section of extended attributes, or 0.
    pub xattrs: u32,
    /// File: size. Symlink: length of its target. Folder: its parent's node.
    pub a: u64,
    /// File: first chunk. Symlink: its target in the names. Folder: first entry. Device: major.
    pub b: u32,
    /// File: number of chunks. Folder: number of entries. Device: minor.
    pub c: u32,
}

/// A directory entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DirentRecord {
    /// Where its name starts in the names.
    pub name: u32,
    /// Position of its inode record.
    pub inode: u32,
    /// Length of its name.
    pub name_len: u8,
    /// `S_IFMT` of its inode, shifted right by 12, as in `dirent.d_type`.
    pub kind: u8,
}

/// A chunk record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRecord {
    /// Digest of the content, or its made-up name.
    pub digest: Digest,
    /// Where it starts in its file.
    pub at: u64,
    /// Its size, with [`UNVERIFIED`] and [`UNREAD`].
    pub size: u32,
    /// Its member.
    pub member: u32,
    /// Where it starts in the inflated member.
    pub inner: u32,
}

/// A member record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberRecord {
    /// Where it starts in the blob.
    pub offset: u64,
    /// How far it must be inflated.
    pub inflated: u64,
    /// First of its chunks in the section of member chunks; they end where the next one's begin.
    pub first: u32,
}

impl Header {
    /// The header's bytes with their checksum.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_USED);
        out.extend_from_slice(&MAGIC);
        put(&mut out, [VERSION, self.flags]);
        out.extend_from_slice(self.toc.as_bytes());
        out.extend_from_slice(self.blob.as_bytes());
        for wide in [self.file_len, self.data_end, self.landmark, self.content] {
            out.extend_from_slice(&wide.to_le_bytes());
        }
        put(
            &mut out,
            [self.files, self.folders, self.implicit, self.sums_crc],
        );
        for span in self.sections {
            out.extend_from_slice(&span.start.to_le_bytes());
            out.extend_from_slice(&span.len.to_le_bytes());
        }
        let crc = crc32fast::hash(&out);
        put(&mut out, [crc]);
        out
    }

    /// The version of the file whose first bytes these are, if it is an index at all.
    #[must_use]
    pub fn version(bytes: &[u8]) -> Option<u32> {
        let mut fields = Fields(bytes);
        (fields.array::<8>()? == MAGIC).then_some(())?;
        fields.u32()
    }

    /// Decodes a header, checking its checksum and nothing else.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        let damaged = Damaged {
            what: "its header",
            at: 0,
        };
        let used = bytes.get(..HEADER_USED).ok_or(damaged)?;
        let (covered, crc) = used.split_last_chunk::<4>().ok_or(damaged)?;
        if crc32fast::hash(covered) != u32::from_le_bytes(*crc) {
            return Err(damaged);
        }
        Self::fields(covered).ok_or(damaged)
    }

    fn fields(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        (fields.array::<8>()? == MAGIC && fields.u32()? == VERSION).then_some(())?;
        let mut header = Self {
            flags: fields.u32()?,
            toc: fields.digest()?,
            blob: fields.digest()?,
            file_len: fields.u64()?,
            data_end: fields.u64()?,
            landmark: fields.u64()?,
            content: fields.u64()?,
            files: fields.u32()?,
            folders: fields.u32()?,
            implicit: fields.u32()?,
            sums_crc: fields.u32()?,
            sections: [Span::default(); SECTIONS],
        };
        for span in &mut header.sections {
            *span = Span {
                start: fields.u64()?,
                len: fields.u64()?,
            };
        }
        Some(header)
    }
}

impl InodeRecord {
    /// Appends the record's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put(out, [self.mode, self.uid, self.gid, self.nlink]);
        out.extend_from_slice(&self.mtime.to_le_bytes());
        put(out, [self.nanos, self.xattrs]);
        out.extend_from_slice(&self.a.to_le_bytes());
        put(out, [self.b, self.c]);
    }

    /// The record in `bytes`; `None` if they are too few.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        Some(Self {
            mode: fields.u32()?,
            uid: fields.u32()?,
            gid: fields.u32()?,
            nlink: fields.u32()?,
            mtime: i64::from_le_bytes(fields.array()?),
            nanos: fields.u32()?,
            xattrs: fields.u32()?,
            a: fields.u64()?,
            b: fields.u32()?,
            c: fields.u32()?,
        })
    }
}

impl DirentRecord {
    /// Appends the record's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put(out, [self.name, self.inode]);
        out.extend_from_slice(&[self.name_len, self.kind, 0, 0]);
    }

    /// The record in `bytes`; `None` if they are too few.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let (name, inode) = (fields.u32()?, fields.u32()?);
        let [name_len, kind, _, _] = fields.array()?;
        Some(Self {
            name,
            inode,
            name_len,
            kind,
        })
    }
}

impl ChunkRecord {
    /// Appends the record's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.digest.as_bytes());
        out.extend_from_slice(&self.at.to_le_bytes());
        put(out, [self.size, self.member, self.inner]);
    }

    /// The record in `bytes`; `None` if they are too few.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        Some(Self {
            digest: fields.digest()?,
            at: fields.u64()?,
            size: fields.u32()?,
            member: fields.u32()?,
            inner: fields.u32()?,
        })
    }
}

impl MemberRecord {
    /// Appends the record's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.inflated.to_le_bytes());
        put(out, [self.first]);
    }

    /// The record in `bytes`; `None` if they are too few.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        Some(Self {
            offset: fields.u64()?,
            inflated: fields.u64()?,
            first: fields.u32()?,
        })
    }
}

/// Takes numbers off the front of some bytes.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    /// The next number of 32 bits.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn digest(&mut self) -> Option<Digest> {
        self.array().map(Digest::from_bytes)
    }
}

fn put<const N: usize>(out: &mut Vec<u8>, numbers: [u32; N]) {
    for number in numbers {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_documented_length_and_come_back() {
        let mut out = Vec::new();
        let inode = InodeRecord {
            mode: 0o100_755,
            uid: 70_000,
            gid: u32::MAX - 1,
            nlink: 3,
            mtime: -1,
            nanos: 999_999_999,
            xattrs: 9,
            a: 1 << 40,
            b: 7,
            c: 8,
        };
        inode.encode(&mut out);
        assert_eq!(out.len(), INODE_LEN);
        assert_eq!(InodeRecord::decode(&out), Some(inode));
        out.clear();
        let dirent = DirentRecord {
            name: 5,
            inode: 6,
            name_len: 255,
            kind: 8,
        };
        dirent.encode(&mut out);
        assert_eq!(out.len(), DIRENT_LEN);
        assert_eq!(DirentRecord::decode(&out), Some(dirent));
        out.clear();
        let chunk = ChunkRecord {
            digest: Digest::of(b"x"),
            at: 1 << 33,
            size: 9 | UNVERIFIED,
            member: 4,
            inner: 3,
        };
        chunk.encode(&mut out);
        assert_eq!(out.len(), CHUNK_LEN);
        assert_eq!(ChunkRecord::decode(&out), Some(chunk));
        out.clear();
        let member = MemberRecord {
            offset: 1 << 34,
            inflated: 1 << 35,
            first: 2,
        };
        member.encode(&mut out);
        assert_eq!(out.len(), MEMBER_LEN);
        assert_eq!(MemberRecord::decode(&out), Some(member));
    }

    #[test]
    fn a_header_with_any_bit_changed_is_refused() {
        let header = Header {
            flags: HAS_XATTRS,
            toc: Digest::of(b"toc"),
            blob: Digest::of(b"blob"),
            file_len: 1,
            data_end: 2,
            landmark: u64::MAX,
            content: 3,
            files: 4,
            folders: 5,
            implicit: 6,
            sums_crc: 7,
            sections: [Span { start: 8, len: 9 }; SECTIONS],
        };
        let bytes = header.encode();
        assert_eq!(bytes.len(), HEADER_USED);
        assert_eq!(Header::decode(&bytes).unwrap(), header);
        assert_eq!(Header::version(&bytes), Some(VERSION));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x40;
            assert!(Header::decode(&bad).is_err(), "{at}");
        }
        assert!(Header::decode(&bytes[..HEADER_USED - 1]).is_err());
    }
}
