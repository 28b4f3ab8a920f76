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
use crate::blob::cache::whole::WHOLE;

const LOCK: &str = "lock";
const SUFFIX: &str = ".pack";
/// A whole file, and its checksums.
const DATA: &str = ".file";
const SUMS: &str = ".sums";

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

    /// The numbers of all packs and whole files, ascending. Other names are left alone.
    pub(super) fn packs(&self) -> io::Result<Vec<u32>> {
        let mut packs = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_str().unwrap_or_default();
            let is_whole = |id: &u32| id & WHOLE != 0;
            let number = |suffix| {
                let hex = name.strip_suffix(suffix).filter(|hex| hex.len() == 8);
                hex.and_then(|hex| u32::from_str_radix(hex, 16).ok())
            };
            packs.extend(number(SUFFIX).filter(|id| !is_whole(id)));
            packs.extend(number(DATA).or_else(|| number(SUMS)).filter(is_whole));
        }
        packs.sort_unstable();
        packs.dedup();
        Ok(packs)
    }

    /// Makes the empty file of pack `id`.
    pub(super) fn create(&self, id: u32) -> io::Result<File> {
        self.file(&name(id, SUFFIX), OFlags::CREATE | OFlags::EXCL)
    }

    /// Makes the empty files of whole file `id`: content and checksums.
    pub(super) fn create_whole(&self, id: u32) -> io::Result<(File, File)> {
        let create = |suffix| self.file(&name(id, suffix), OFlags::CREATE | OFlags::EXCL);
        Ok((create(DATA)?, create(SUMS)?))
    }

    /// Opens the files of whole file `id`; an error if they are not regular files.
    pub(super) fn open_whole(&self, id: u32) -> io::Result<(File, File)> {
        Ok((self.regular(id, DATA)?, self.regular(id, SUMS)?))
    }

    /// Opens the file of pack `id`; an error if it is not a regular file.
    pub(super) fn open_pack(&self, id: u32) -> io::Result<File> {
        self.regular(id, SUFFIX)
    }

    fn regular(&self, id: u32, suffix: &str) -> io::Result<File> {
        let file = self.file(&name(id, suffix), OFlags::NONBLOCK)?;
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            Err(io::Error::other("not a regular file"))
        }
    }

    /// Removes the file of pack `id`, or both of whole file `id`. Who has it open can go on reading.
    pub(super) fn remove(&self, id: u32) -> io::Result<()> {
        let none = rustix::fs::AtFlags::empty();
        let unlink = |suffix| rustix::fs::unlinkat(&self.dir, name(id, suffix), none);
        if id & WHOLE == 0 {
            return Ok(unlink(SUFFIX)?);
        }
        // A crash may have left one of them.
        for suffix in [DATA, SUMS] {
            match unlink(suffix) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
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

    fn file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(file.into())
    }
}

fn name(id: u32, suffix: &str) -> String {
    format!("{id:08x}{suffix}")
}
