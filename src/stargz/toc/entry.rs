//! What a TOC is made of, once parsed: objects of the file system, and chunks of files.

use std::borrow::Cow;

use crate::oci::Digest;

/// One object of the layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Path from the root: components of 1 to 255 bytes joined by `/`, none of them `.` or `..`,
    /// at most 4095 bytes. Empty for the root itself, which is always a directory.
    pub name: Cow<'a, [u8]>,
    /// What it is.
    pub kind: EntryKind<'a>,
    /// Permissions with setuid, setgid and sticky: 0 to 0o7777.
    pub mode: u32,
    /// Owner, at most `u32::MAX - 1`.
    pub uid: u32,
    /// Group, at most `u32::MAX - 1`.
    pub gid: u32,
    /// When it was last modified.
    pub mtime: Mtime,
    /// Extended attributes that may be shown (the policy stands in `toc/xattr.rs`), sorted by name,
    /// each name once.
    pub xattrs: Vec<(Cow<'a, [u8]>, Vec<u8>)>,
}

/// What an entry is, with what only that kind has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind<'a> {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// Its size in bytes.
        size: u64,
        /// Its chunks in order: they cover `0..size` without a gap or an overlap.
        chunks: &'a [Chunk],
    },
    /// A symbolic link.
    Symlink {
        /// Where it points, as it stands in the image: 1 to 4095 bytes without a NUL.
        target: Cow<'a, [u8]>,
    },
    /// Another name of an entry that may come earlier, later or not at all.
    HardLink {
        /// That entry's path, in the form of [`Entry::name`]; neither empty nor this entry's own.
        target: Cow<'a, [u8]>,
    },
    /// A character device; 0:0 is overlayfs's whiteout.
    Char {
        /// Below 4096.
        major: u32,
        /// Below 1048576.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Below 4096.
        major: u32,
        /// Below 1048576.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// A part of a file that is fetched and verified as one.
///
/// Two chunks with the same digest have the same content only if their sizes are equal too; with
/// different sizes one of them is a lie that its verification brings to light.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Where its gzip member starts in the blob, in bytes, before the TOC.
    pub offset: u64,
    /// Where it starts in the inflated member, in bytes.
    pub inner: u64,
    /// Where it starts in the file, in bytes.
    pub at: u64,
    /// Its size in bytes, at least 1.
    pub size: u32,
    /// Digest of its content; always there unless the TOC is unverified.
    pub digest: Option<Digest>,
    /// It is not read at a start although it lies before the landmark.
    pub unread: bool,
}

/// A point in time: `secs + nanos / 10^9` seconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mtime {
    /// Whole seconds, rounded down, of the years 0000 to 9999 (a day more for time zones).
    pub secs: i64,
    /// Below 10^9.
    pub nanos: u32,
}
