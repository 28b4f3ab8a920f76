//! An inode of the index as FUSE wants it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};

use crate::fs::index::{Inode, Kind};

/// What a folder's size is said to be: what ext4 says of a small one. Nothing depends on it.
const FOLDER_SIZE: u64 = 4096;
/// Preferred size of a read, `st_blksize`: what the host's own file systems say.
const BLOCK: u32 = 4096;
/// Unit of `st_blocks`.
const SECTOR: u64 = 512;

/// All attributes of a node. A layer knows one time, which stands for all.
pub fn attributes(node: &Inode) -> FileAttr {
    let (kind, size, device) = match node.kind {
        Kind::Folder { .. } => (FileType::Directory, FOLDER_SIZE, 0),
        Kind::File { size, .. } => (FileType::RegularFile, size, 0),
        Kind::Symlink { len, .. } => (FileType::Symlink, len, 0),
        Kind::Char { major, minor } => (FileType::CharDevice, 0, device(major, minor)),
        Kind::Block { major, minor } => (FileType::BlockDevice, 0, device(major, minor)),
        Kind::Fifo => (FileType::NamedPipe, 0, 0),
    };
    let time = time(node.mtime, node.mtime_nanos);
    FileAttr {
        ino: INodeNo(node.ino.0),
        size,
        blocks: size.div_ceil(SECTOR),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        // Fits: the index keeps 12 bits.
        perm: u16::try_from(node.mode & 0o7777).unwrap_or_default(),
        nlink: node.nlink,
        uid: node.uid,
        gid: node.gid,
        rdev: device,
        blksize: BLOCK,
        flags: 0,
    }
}

/// What stands in the answer for a name that is not there: node 0.
pub fn absent() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// The type that a `d_type` means.
pub const fn file_type(kind: u8) -> FileType {
    match kind {
        1 => FileType::NamedPipe,
        2 => FileType::CharDevice,
        4 => FileType::Directory,
        6 => FileType::BlockDevice,
        10 => FileType::Symlink,
        12 => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

/// A device number as the kernel packs it for user space (`include/linux/kdev_t.h`,
/// `new_encode_dev`): 12 bits of major, 20 of minor.
const fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xfff00) << 12)
}

fn time(secs: i64, nanos: u32) -> SystemTime {
    let whole = Duration::from_secs(secs.unsigned_abs());
    let whole = if secs < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    // None only for times that no TOC can carry.
    whole
        .and_then(|time| time.checked_add(Duration::from_nanos(u64::from(nanos))))
        .unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_extreme_ones_are_kept_or_zero() {
        let half = Duration::from_millis(500);
        assert_eq!(
            time(1, 500_000_000),
            UNIX_EPOCH + Duration::from_millis(1500)
        );
        assert_eq!(time(-1, 500_000_000), UNIX_EPOCH - half);
        assert_eq!(
            time(-62_167_219_200, 0) + Duration::from_secs(62_167_219_200),
            UNIX_EPOCH
        );
        assert!(time(i64::MAX, 999_999_999) > UNIX_EPOCH);
        assert!(time(i64::MIN, 999_999_999) < UNIX_EPOCH);
    }

    #[test]
    fn device_numbers_are_packed_as_the_kernel_unpacks_them() {
        for (major, minor) in [(0, 0), (1, 3), (8, 17), (259, 70_000), (4095, 1_048_575)] {
            let packed = u64::from(device(major, minor));
            assert_eq!((packed & 0xfff00) >> 8, u64::from(major));
            let low = packed & 0xff;
            let high = (packed >> 12) & 0xf_ff00;
            assert_eq!(low | high, u64::from(minor));
        }
    }
}
