//! Reading an index: inodes, directories, chunks, members.

use std::cmp::Ordering;
use std::ops::Range;
use std::path::Path;

use crate::blob::{ChunkId, ChunkInfo, LayerMap, Member, MemberId, Proof};
use crate::fs::index::error::{Damaged, Error};
use crate::fs::index::format::{
    CHUNK_LEN, ChunkRecord, DIRENT_LEN, DirentRecord, HAS_ACL, HAS_OPAQUE, HAS_XATTRS, IMPLICIT,
    INODE_LEN, InodeRecord, MEMBER_LEN, MemberRecord, SIZE, Section, UNREAD, UNVERIFIED,
};
use crate::fs::index::mapped::Mapped;
use crate::fs::index::tree::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG};
use crate::fs::index::xattrs::{SET_HEADER, Set};
use crate::oci::Digest;

/// A node's id: the position of its inode record + 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

impl Ino {
    /// The root of the layer, as FUSE wants it.
    pub const ROOT: Self = Self(1);

    fn position(self) -> Option<u32> {
        u32::try_from(self.0.checked_sub(1)?).ok()
    }
}

/// A file or folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Its id.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Permissions with setuid, setgid and sticky: 0 to 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of links.
    pub nlink: u32,
    /// Modification time: seconds since 1970, rounded down.
    pub mtime: i64,
    /// Modification time: nanoseconds, below 10^9.
    pub mtime_nanos: u32,
    /// A folder that the TOC does not list: its attributes are made up.
    pub implicit: bool,
    xattrs: u32,
}

/// What a file is, with what only that kind has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Folder {
        /// The folder it lies in; the root lies in itself.
        parent: Ino,
        /// Its entries.
        entries: Range<u32>,
    },
    /// A regular file.
    File {
        /// Its size in bytes.
        size: u64,
        /// Its chunks.
        chunks: Range<u32>,
    },
    /// A symbolic link.
    Symlink {
        /// Where its target starts in the names.
        target: u32,
        /// Length of its target in bytes.
        len: u64,
    },
    /// A character device; 0:0 is overlayfs's whiteout.
    Char {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// A part of a read: some bytes of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The chunk.
    pub chunk: ChunkId,
    /// First byte in the chunk.
    pub at: u32,
    /// Number of bytes, at least 1.
    pub len: u32,
}

/// Counts and sizes of a whole layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Files and folders.
    pub inodes: u32,
    /// Regular files.
    pub files: u32,
    /// Folders, root included.
    pub folders: u32,
    /// Folders that the TOC does not list: containerd's unpack would take the attributes of these
    /// from the layers below, an index cannot know them.
    pub implicit_folders: u32,
    /// Bytes in all regular files.
    pub content: u64,
    /// Bytes of the index.
    pub index: u64,
}

/// Chunks that are gone through before their pages are given back: about 2 MiB.
const CHUNKS_AT_ONCE: u32 = 32 << 10;

/// A layer's index, mapped.
#[derive(Debug)]
pub struct Index {
    map: Mapped,
}

impl Index {
    /// Opens the index at `path`, which must be that of the TOC `toc`.
    ///
    /// # Errors
    /// [`Error::Io`] (not there), [`Error::Version`], [`Error::OtherToc`], [`Error::Damaged`]: in
    /// each case it is to be built again. Damage behind the header shows later, or by
    /// [`Self::verify`].
    pub fn open(path: &Path, toc: &Digest) -> Result<Self, Error> {
        let map = Mapped::open(path)?;
        map.expect_toc(toc)?;
        let index = Self { map };
        index.inode(Ino::ROOT)?;
        Ok(index)
    }

    /// Compares the whole file with its checksums.
    ///
    /// # Errors
    /// [`Damaged`]: the first place that is wrong.
    pub fn verify(&self) -> Result<(), Damaged> {
        self.map.verify()
    }

    /// The TOC it was built from.
    #[must_use]
    pub const fn toc(&self) -> &Digest {
        &self.map.header().toc
    }

    /// The layer's compressed blob.
    #[must_use]
    pub const fn blob(&self) -> &Digest {
        &self.map.header().blob
    }

    /// Counts and sizes.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let header = self.map.header();
        Summary {
            inodes: self.map.count(Section::Inodes, INODE_LEN),
            files: header.files,
            folders: header.folders,
            implicit_folders: header.implicit,
            content: header.content,
            index: header.file_len,
        }
    }

    /// Whether any file or folder has an extended attribute; an opaque folder has one.
    #[must_use]
    pub const fn has_xattrs(&self) -> bool {
        self.map.header().flags & (HAS_XATTRS | HAS_OPAQUE) != 0
    }

    /// Whether any file or folder has a POSIX ACL.
    #[must_use]
    pub const fn has_acl(&self) -> bool {
        self.map.header().flags & HAS_ACL != 0
    }

    /// A file or folder by its id; `None` if there is none of this id.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn find(&self, ino: Ino) -> Result<Option<Inode>, Damaged> {
        let count = self.map.count(Section::Inodes, INODE_LEN);
        match ino.position().filter(|position| *position < count) {
            Some(position) => self.inode_at(position).map(Some),
            None => Ok(None),
        }
    }

    /// The entry `name` of the folder with these entries.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn lookup(&self, entries: &Range<u32>, name: &[u8]) -> Result<Option<Ino>, Damaged> {
        let Range { mut start, mut end } = *entries;
        while start < end {
            let middle = start + (end - start) / 2;
            let (record, found) = self.dirent(middle)?;
            match found.cmp(name) {
                Ordering::Equal => return Ok(Some(Ino(u64::from(record.inode) + 1))),
                Ordering::Less => start = middle + 1,
                Ordering::Greater => end = middle,
            }
        }
        Ok(None)
    }

    /// The entries of a folder from its `skip`th on, sorted by name.
    #[must_use]
    pub fn entries(&self, entries: &Range<u32>, skip: u32) -> Dirents<'_> {
        let start = entries.start.saturating_add(skip).min(entries.end);
        Dirents {
            index: self,
            rest: start..entries.end,
        }
    }

    /// Where a symlink points.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn target(&self, target: u32, len: u64) -> Result<&[u8], Damaged> {
        self.map.bytes(Section::Names, u64::from(target), len)
    }

    /// The extended attributes of a file, sorted by name.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn xattrs(&self, inode: &Inode) -> Result<Set<'_>, Damaged> {
        let Some(at) = inode.xattrs.checked_sub(1).map(u64::from) else {
            return Ok(Set::EMPTY);
        };
        let damaged = Damaged {
            what: "a set of extended attributes",
            at,
        };
        let header = self.map.bytes(Section::Xattrs, at, SET_HEADER)?;
        let body = Set::body_len(header).ok_or(damaged)?;
        let bytes = self.map.bytes(Section::Xattrs, at, SET_HEADER + body)?;
        Set::parse(bytes).ok_or(damaged)
    }

    /// Calls `each` with the parts of chunks that hold `len` bytes from `offset` of the file with
    /// these chunks, in order. The caller has cut the range at the file's size.
    ///
    /// # Errors
    /// [`Damaged`], also when the chunks do not cover the range.
    pub fn parts(
        &self,
        chunks: &Range<u32>,
        offset: u64,
        len: u64,
        each: &mut dyn FnMut(Part),
    ) -> Result<(), Damaged> {
        let damaged = Damaged {
            what: "the chunks of a file",
            at: u64::from(chunks.start),
        };
        let (mut at, mut left) = (offset, len);
        let mut next = self.chunk_at(chunks, offset)?;
        while left > 0 {
            let record = self.chunk_record(next)?;
            let size = record.size & SIZE;
            let skip = at
                .checked_sub(record.at)
                .and_then(|s| u32::try_from(s).ok());
            let skip = skip.filter(|skip| *skip < size && next < chunks.end);
            let skip = skip.ok_or(damaged)?;
            let take = u64::from(size - skip).min(left);
            each(Part {
                chunk: ChunkId(next),
                at: skip,
                // Fits: it is at most the chunk's size.
                len: u32::try_from(take).map_err(|_| damaged)?,
            });
            at += take;
            left -= take;
            next += 1;
        }
        Ok(())
    }

    /// The last chunk that starts at or before `offset`.
    pub(super) fn chunk_at(&self, chunks: &Range<u32>, offset: u64) -> Result<u32, Damaged> {
        let Range { mut start, mut end } = *chunks;
        while end.saturating_sub(start) > 1 {
            let middle = start + (end - start) / 2;
            if self.chunk_record(middle)?.at <= offset {
                start = middle;
            } else {
                end = middle;
            }
        }
        Ok(start)
    }

    fn inode(&self, ino: Ino) -> Result<Inode, Damaged> {
        let missing = Damaged {
            what: "a missing inode",
            at: ino.0,
        };
        self.find(ino)?.ok_or(missing)
    }

    fn inode_at(&self, position: u32) -> Result<Inode, Damaged> {
        let damaged = Damaged {
            what: "an inode",
            at: u64::from(position),
        };
        let bytes = self.map.record(Section::Inodes, position, INODE_LEN)?;
        let record = InodeRecord::decode(bytes).ok_or(damaged)?;
        Ok(Inode {
            ino: Ino(u64::from(position) + 1),
            kind: kind(&record).ok_or(damaged)?,
            mode: record.mode & 0o7777,
            uid: record.uid,
            gid: record.gid,
            nlink: record.nlink,
            mtime: record.mtime,
            mtime_nanos: record.nanos,
            implicit: record.mode & IMPLICIT != 0,
            xattrs: record.xattrs,
        })
    }

    fn dirent(&self, number: u32) -> Result<(DirentRecord, &[u8]), Damaged> {
        let damaged = Damaged {
            what: "a directory entry",
            at: u64::from(number),
        };
        let bytes = self.map.record(Section::Dirents, number, DIRENT_LEN)?;
        let record = DirentRecord::decode(bytes).ok_or(damaged)?;
        let (name, len) = (u64::from(record.name), u64::from(record.name_len));
        Ok((record, self.map.bytes(Section::Names, name, len)?))
    }

    pub(super) fn chunk_record(&self, number: u32) -> Result<ChunkRecord, Damaged> {
        let bytes = self.map.record(Section::Chunks, number, CHUNK_LEN)?;
        ChunkRecord::decode(bytes).ok_or(Damaged {
            what: "a chunk",
            at: u64::from(number),
        })
    }

    fn member_record(&self, number: u32) -> Option<MemberRecord> {
        let bytes = self.map.record(Section::Members, number, MEMBER_LEN);
        MemberRecord::decode(bytes.ok()?)
    }
}

/// Entries of a folder, sorted by name: name, id and `d_type` of each.
#[derive(Debug)]
pub struct Dirents<'a> {
    index: &'a Index,
    rest: Range<u32>,
}

impl<'a> Iterator for Dirents<'a> {
    type Item = Result<(&'a [u8], Ino, u8), Damaged>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.index.dirent(self.rest.next()?);
        Some(entry.map(|(record, name)| (name, Ino(u64::from(record.inode) + 1), record.kind)))
    }
}

/// Damage is answered as absence: whoever asks then reports the chunk as unreadable.
impl LayerMap for Index {
    fn member_count(&self) -> u32 {
        self.map.count(Section::Members, MEMBER_LEN)
    }

    fn member(&self, member: MemberId) -> Option<Member> {
        let record = self.member_record(member.0)?;
        let data_end = self.map.header().data_end;
        let next = match member.0.checked_add(1)? {
            next if next < self.member_count() => self.member_record(next)?.offset,
            _ => data_end,
        };
        Some(Member {
            offset: record.offset,
            len: next.checked_sub(record.offset)?,
            inflated: record.inflated,
        })
    }

    fn chunk_count(&self) -> u32 {
        self.map.count(Section::Chunks, CHUNK_LEN)
    }

    fn chunk(&self, chunk: ChunkId) -> Option<ChunkInfo> {
        let record = self.chunk_record(chunk.0).ok()?;
        let proof = if record.size & UNVERIFIED == 0 {
            Proof::Sha256(record.digest)
        } else {
            Proof::Unverified(record.digest)
        };
        Some(ChunkInfo {
            proof,
            size: record.size & SIZE,
            member: MemberId(record.member),
            inner: u64::from(record.inner),
        })
    }

    /// Going through all of them is going through a good part of the file, and leaves none of it in this process's
    /// memory; whoever stops at one of the first has not touched much.
    fn all_chunks(&self, each: &mut dyn FnMut(&ChunkInfo) -> bool) -> bool {
        let all = (0..self.chunk_count()).all(|chunk| {
            if chunk % CHUNKS_AT_ONCE == CHUNKS_AT_ONCE - 1 {
                self.map.give_back();
            }
            self.chunk(ChunkId(chunk)).is_some_and(|info| each(&info))
        });
        if all {
            self.map.give_back();
        }
        all
    }

    fn place(&self, chunk: ChunkId) -> Option<u64> {
        Some(self.chunk_record(chunk.0).ok()?.at)
    }

    fn chunks_of(&self, member: MemberId, each: &mut dyn FnMut(ChunkId)) {
        let Some(record) = self.member_record(member.0) else {
            return;
        };
        let next = member.0.checked_add(1).and_then(|m| self.member_record(m));
        let end = next.map_or(self.map.count(Section::MemberChunks, 4), |next| next.first);
        let mut numbers = (record.first..end)
            .map_while(|number| self.map.record(Section::MemberChunks, number, 4).ok())
            .filter_map(|bytes| bytes.try_into().ok().map(u32::from_le_bytes));
        numbers.by_ref().map(ChunkId).for_each(each);
    }

    fn is_unread(&self, chunk: ChunkId) -> bool {
        let record = self.chunk_record(chunk.0);
        record.is_ok_and(|record| record.size & UNREAD != 0)
    }

    fn prefetch_end(&self) -> Option<u64> {
        Some(self.map.header().landmark).filter(|offset| *offset != u64::MAX)
    }
}

fn kind(record: &InodeRecord) -> Option<Kind> {
    let (major, minor) = (record.b, record.c);
    let range = record.b..record.b.checked_add(record.c)?;
    Some(match record.mode & S_IFMT {
        S_IFDIR => Kind::Folder {
            parent: Ino(record.a),
            entries: range,
        },
        S_IFREG => Kind::File {
            size: record.a,
            chunks: range,
        },
        S_IFLNK => Kind::Symlink {
            target: record.b,
            len: record.a,
        },
        S_IFCHR => Kind::Char { major, minor },
        S_IFBLK => Kind::Block { major, minor },
        S_IFIFO => Kind::Fifo,
        _ => return None,
    })
}
