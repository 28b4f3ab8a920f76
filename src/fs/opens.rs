//! Open files of a mount that answers OPEN: which are read by the kernel itself (passthrough).
//!
//! The kernel wants all opens of one inode that overlap in time to be alike, by READ or by one
//! backing file, else the open fails with `EIO` (`fs/fuse/iomode.c`). So the first open decides, and
//! the inode stays as it is until its last RELEASE: a file that becomes complete meanwhile goes on
//! by READ.
//!
//! Small files are always by READ and are not counted. Of the others each open is recorded in the
//! kept table before the kernel is answered, so that a successor knows how they are open; with a
//! request that the kernel sends again it finds the answer of the first time.
//!
//! Locking: one mutex, held for a look-up, the system call that registers a file, and the record.
//! Nothing in it waits for the network.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{BackingId, FileHandle, FopenFlags, ReplyOpen};
use parking_lot::Mutex;
use rustix::ioctl::{Opcode, Setter, opcode};

use crate::blob::{SMALLEST, WholeFile};
use crate::fs::kept::Device;
use crate::fs::{Ino, Kind, LayerFs};
use crate::keeper::{Open, Opened};

/// `FUSE_DEV_IOC_BACKING_CLOSE` (`include/uapi/linux/fuse.h`).
const BACKING_CLOSE: Opcode = opcode::write::<u32>(229, 2);

/// What every open is answered with: the kernel keeps what it has read, and sends no FLUSH.
const FLAGS: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE.union(FopenFlags::FOPEN_NOFLUSH);

/// The open files of one mount.
pub(super) struct Opens {
    device: Device,
    files: Mutex<HashMap<Ino, File>>,
    /// Cleared when the kernel refuses backing files on this mount.
    possible: AtomicBool,
}

/// A file that is open.
struct File {
    handles: u32,
    /// The kernel's number of the file it reads by itself; 0 if it asks us.
    backing: u32,
    /// That file, which has to stay. `None` where a predecessor opened it and it is gone since: the
    /// kernel still has it.
    _whole: Option<WholeFile>,
}

/// How an open is to be answered.
struct Answer {
    handle: u64,
    backing: u32,
}

impl Opens {
    /// Those that a predecessor left open, none if there was none.
    pub(super) fn new(device: &Device, fs: &LayerFs) -> Self {
        let mut files: HashMap<Ino, File> = HashMap::new();
        for file in device.state.open_files(&device.name) {
            let (ino, backing) = (Ino(file.open.ino), file.open.backing);
            let open = files.entry(ino).or_insert_with(|| File {
                handles: 0,
                backing,
                _whole: if backing == 0 { None } else { whole(fs, ino) },
            });
            open.handles += 1;
        }
        Self {
            device: device.clone(),
            files: Mutex::new(files),
            possible: AtomicBool::new(true),
        }
    }

    /// Whether nothing is known to be open.
    pub(super) fn is_empty(&self) -> bool {
        self.files.lock().is_empty()
    }

    /// Answers an OPEN; `unique` is the request's number. Says whether the kernel reads the file by
    /// itself.
    ///
    /// # Errors
    /// The open could not be recorded; it is answered with an error.
    pub(super) fn open(
        &self,
        fs: &LayerFs,
        ino: Ino,
        unique: u64,
        reply: ReplyOpen,
    ) -> io::Result<bool> {
        let is_large = fs.getattr(ino).is_ok_and(|node| match node.kind {
            Kind::File { size, .. } => size >= SMALLEST,
            _ => false,
        });
        if !is_large {
            reply.opened(FileHandle(0), FLAGS);
            return Ok(false);
        }
        let answer = match self.decide(fs, ino, unique) {
            Ok(answer) => answer,
            Err(error) => {
                reply.error(fuser::Errno::EIO);
                return Err(error);
            }
        };
        let handle = FileHandle(answer.handle);
        if answer.backing == 0 {
            reply.opened(handle, FLAGS);
            return Ok(false);
        }
        // SAFETY: the number is open on this connection until the last RELEASE of the inode, which
        // closes it; this object, which would close it as well, gives it up below.
        let backing = unsafe { reply.wrap_backing(answer.backing) };
        // Only this flag: with any that speaks of the cache the kernel fails the open.
        reply.opened_passthrough(handle, FopenFlags::FOPEN_NOFLUSH, &backing);
        let _ = backing.into_raw();
        Ok(true)
    }

    /// Forgets an open file; with the last of an inode the kernel is told to let go.
    pub(super) fn release(&self, handle: u64) {
        if handle == 0 {
            return;
        }
        let mut files = self.files.lock();
        let released = match self.device.state.released(handle) {
            Ok(Some(released)) => released,
            // Sent again after it was answered to a predecessor.
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "a closed file stays in the kept table");
                return;
            }
        };
        let ino = Ino(released.open.ino);
        let Some(file) = files.get_mut(&ino) else {
            return;
        };
        file.handles = file.handles.saturating_sub(1);
        if file.handles == 0
            && let Some(file) = files.remove(&ino)
        {
            self.let_go(file.backing);
        }
    }

    fn decide(&self, fs: &LayerFs, ino: Ino, unique: u64) -> io::Result<Answer> {
        let mut files = self.files.lock();
        let known = files.get(&ino).map(|file| file.backing);
        let (backing, whole) = match known {
            Some(backing) => (backing, None),
            None => self.back(fs, ino),
        };
        let open = Open {
            ino: ino.0,
            unique,
            backing,
            mode: 0,
        };
        let recorded = self.device.state.opened(&self.device.name, open);
        let file = match recorded.map_err(io::Error::other) {
            Ok(Opened::New(file)) => file,
            Ok(Opened::Again(file)) => {
                // It is counted already.
                if known.is_none() {
                    self.let_go(backing);
                }
                let (handle, backing) = (file.handle, file.open.backing);
                return Ok(Answer { handle, backing });
            }
            Err(error) => {
                if known.is_none() {
                    self.let_go(backing);
                }
                return Err(error);
            }
        };
        let open = files.entry(ino).or_insert(File {
            handles: 0,
            backing,
            _whole: whole,
        });
        open.handles += 1;
        let handle = file.handle;
        Ok(Answer { handle, backing })
    }

    /// Registers the file for the kernel to read by itself, if it is complete.
    fn back(&self, fs: &LayerFs, ino: Ino) -> (u32, Option<WholeFile>) {
        if !self.possible.load(Ordering::Relaxed) {
            return (0, None);
        }
        let Some(whole) = whole(fs, ino) else {
            return (0, None);
        };
        match BackingId::create_raw(self.device.fd.as_fd(), whole.as_fd()) {
            Ok(backing) => (backing, Some(whole)),
            Err(error) => {
                // Without the right to, or with the cache on an overlay: so it will be again.
                if self.possible.swap(false, Ordering::Relaxed) {
                    let device = self.device.id;
                    tracing::warn!(%device, %error, "large files cannot be passed through, they are read through crfs");
                }
                (0, None)
            }
        }
    }

    fn let_go(&self, backing: u32) {
        if backing == 0 {
            return;
        }
        // SAFETY: the request takes a pointer to a number of 32 bits and writes nothing.
        let close = unsafe { Setter::<BACKING_CLOSE, u32>::new(backing) };
        // SAFETY: as above; a number that is not open is refused.
        if let Err(error) = unsafe { rustix::ioctl::ioctl(&self.device.fd, close) } {
            tracing::debug!(device = %self.device.id, %error, "a backing file was not closed");
        }
    }
}

fn whole(fs: &LayerFs, ino: Ino) -> Option<WholeFile> {
    match fs.getattr(ino).ok()?.kind {
        Kind::File { chunks, .. } => fs.whole_file(&chunks),
        _ => None,
    }
}
