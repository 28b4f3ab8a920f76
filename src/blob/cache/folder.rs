//! The cache's folder: its lock and the names in it.
//!
//! Everything is opened relative to a handle of the folder and without following symbolic links,
//! so nobody who can put a name there can lead a write elsewhere.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::blob::cache::Error;

const LOCK: &str = "lock";
const SUFFIX: &str = ".pack";

/// The folder, locked against a second process as long as this lives.
pub(super) struct Folder {
    dir: OwnedFd,
    _lock: File,
}

impl Folder {
    /// Opens `path`, making it if need be, and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Open {
            path: path.to_owned(),
            source,
        };
        std::fs::create_dir_all(path).map_err(failed)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        // Content of images is for root to hand out.
        rustix::fs::fchmod(&dir, Mode::RWXU).map_err(|e| failed(e.into()))?;
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = rustix::fs::openat(&dir, LOCK, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| failed(e.into()))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self {
                dir,
                _lock: lock.into(),
            }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Locked(path.to_owned())),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// The numbers of all packs, ascending. Other names are left alone.
    pub(super) fn packs(&self) -> io::Result<Vec<u32>> {
        let mut packs = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_str().unwrap_or_default();
            let id = name.strip_suffix(SUFFIX).filter(|hex| hex.len() == 8);
            packs.extend(id.and_then(|hex| u32::from_str_radix(hex, 16).ok()));
        }
        packs.sort_unstable();
        Ok(packs)
    }

    /// Makes the empty file of pack `id`.
    pub(super) fn create(&self, id: u32) -> io::Result<File> {
        self.file(id, OFlags::CREATE | OFlags::EXCL)
    }

    /// Opens the file of pack `id`; an error if it is not a regular file.
    pub(super) fn open_pack(&self, id: u32) -> io::Result<File> {
        let file = self.file(id, OFlags::NONBLOCK)?;
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            Err(io::Error::other("not a regular file"))
        }
    }

    /// Removes the file of pack `id`. Who has it open can go on reading.
    pub(super) fn remove(&self, id: u32) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(
            &self.dir,
            name(id),
            rustix::fs::AtFlags::empty(),
        )?)
    }

    /// Total, free and available bytes of the disk.
    pub(super) fn disk(&self) -> io::Result<(u64, u64, u64)> {
        let disk = rustix::fs::fstatvfs(&self.dir)?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        Ok((
            bytes(disk.f_blocks),
            bytes(disk.f_bfree),
            bytes(disk.f_bavail),
        ))
    }

    fn file(&self, id: u32, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, name(id), flags, Mode::RUSR | Mode::WUSR)?;
        Ok(file.into())
    }
}

fn name(id: u32) -> String {
    format!("{id:08x}{SUFFIX}")
}
