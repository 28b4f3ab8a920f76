//! A deterministic file system in memory, directly on fuser: every byte, size and inode number
//! follows from the name, so a reader can check what it got without asking anyone.

use std::ffi::OsStr;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen, ReplyStatfs, Request,
};

/// Folders `d0`… below the root, and files `f0`… in each.
pub const DIRS: u64 = 8;
pub const FILES: u64 = 16;

/// Nothing is cached by the kernel, so that every read of the test comes to the server.
const TTL: Duration = Duration::ZERO;

/// The last file of the last folder: a deaf server never answers a read of it.
pub const DEAF: u64 = 100 + DIRS * FILES - 1;

/// Holds nothing of the tree: a successor is the same as its predecessor.
#[derive(Debug)]
pub struct TestFs {
    pub deaf: bool,
}

/// Inode of file `file` in folder `dir`. The root is 1, folder `d` is `2 + d`.
pub fn inode(dir: u64, file: u64) -> u64 {
    100 + dir * FILES + file
}

pub fn size(ino: u64) -> u64 {
    1000 + (ino * 7919) % 300_000
}

/// The bytes of `ino` from `offset`, at most `len`.
pub fn content(ino: u64, offset: u64, len: usize) -> Vec<u8> {
    let end = size(ino).min(offset.saturating_add(len as u64));
    (offset..end)
        .map(|at| {
            ((at / 8)
                .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                .wrapping_add(ino)
                >> 29) as u8
                ^ at as u8
        })
        .collect()
}

fn attr(ino: u64) -> Option<FileAttr> {
    let (kind, perm, size) = match ino {
        1..100 if ino < 2 + DIRS => (FileType::Directory, 0o755, 0),
        100.. if ino < 100 + DIRS * FILES => (FileType::RegularFile, 0o644, size(ino)),
        _ => return None,
    };
    Some(FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    })
}

fn child(parent: u64, name: &OsStr) -> Option<u64> {
    let name = name.to_str()?;
    let number = |prefix| name.strip_prefix(prefix)?.parse::<u64>().ok();
    match parent {
        1 => number("d").filter(|dir| *dir < DIRS).map(|dir| 2 + dir),
        dir => number("f")
            .filter(|file| *file < FILES)
            .map(|file| inode(dir - 2, file)),
    }
}

fn entries(ino: u64) -> Vec<(u64, FileType, String)> {
    match ino {
        1 => (0..DIRS)
            .map(|d| (2 + d, FileType::Directory, format!("d{d}")))
            .collect(),
        dir => (0..FILES)
            .map(|f| (inode(dir - 2, f), FileType::RegularFile, format!("f{f}")))
            .collect(),
    }
}

impl Filesystem for TestFs {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match child(parent.0, name).and_then(attr) {
            Some(attr) => reply.entry(&TTL, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match attr(ino.0) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if self.deaf && ino.0 == DEAF {
            // Dropped, it would be answered with an error.
            return std::mem::forget(reply);
        }
        reply.data(&content(ino.0, offset, size as usize));
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        for (at, (ino, kind, name)) in entries(ino.0).into_iter().enumerate().skip(offset as usize)
        {
            if reply.add(INodeNo(ino), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1000, 500, 500, 100, 50, 4096, 255, 4096);
    }
}
