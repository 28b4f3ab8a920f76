//! The FUSE adapter: each callback asks [`LayerFs`] and replies. No decision about the tree here.
//!
//! Promises:
//! - No FUSE thread waits for the network: a read that has to fetch is moved to the runtime, which
//!   owns the reply from then on and gives up after the read deadline.
//! - A read is answered in full or with an error: a short answer would be a short read in the
//!   application.
//! - A panic costs its request an `EIO`, never the thread: the reply object answers when it is
//!   dropped.
//! - FORGET needs no answer and changes nothing that is answered; no handle carries state but those of large files,
//!   see [`super::opens`].
//!
//! What is answered `ENOSYS` the kernel never asks again on this mount (`fs/fuse/file.c`,
//! `dir.c`, `xattr.c`): OPEN where that is safe, OPENDIR and FLUSH always, and the list of the
//! extended attributes of a layer that has none at all, on the mounts of containers.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{
    Errno, FileHandle, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use tokio::runtime::Handle;
use tracing::{Instrument as _, debug, warn};

use crate::fs::attr::{absent, attributes, file_type};
use crate::fs::counters::{Counters, Fetching};
use crate::fs::failed::Failed;
use crate::fs::opens::Opens;
use crate::fs::poll::Poll;
use crate::fs::populate::Populated;
use crate::fs::{Error, Ino, LayerFs, Reading};

/// Node ids are never used for anything else, so one generation is enough.
const GENERATION: Generation = Generation(0);
/// Largest read the kernel is allowed to send, in bytes: its own limit (`fuse_max_pages_limit`).
const MAX_REQUEST: u32 = 1 << 20;
/// Reads that may be under way in the background (read-ahead) before the kernel holds more back.
/// Each may wait for a network round trip; fuser's default of 16 is for local disks.
const MAX_BACKGROUND: u16 = 64;

/// Files and folders of the largest layer whose folders are listed with attributes (READDIRPLUS). The
/// kernel then makes an inode of every entry: that spares whoever reads the files a LOOKUP of each, and
/// costs whoever only looks for names 3 us and 1.2 KB for each. Measured (`find` over 500,000 names, cold):
/// 3.6 s with, 0.8 s without.
const PLUS_AT_MOST: u32 = 100_000;

/// What the kernel is asked for, as far as it can do it.
const WANTED: InitFlags = InitFlags::FUSE_PARALLEL_DIROPS
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    // No file handles: overlayfs (xino, metacopy, index or redirect on) would keep them as the
    // origin of copied-up files. When the kernel has forgotten the inode, what it opens by such a
    // handle has no name and no place in the tree, and since 6.16 revalidating that fails without
    // asking us: ESTALE for every copied-up file, the very thing that must never be.
    .union(InitFlags::FUSE_NO_EXPORT_SUPPORT)
    // Containers in user namespaces get their layers by id-mapped mounts.
    .union(InitFlags::FUSE_ALLOW_IDMAP);

/// One mount's callbacks.
pub struct Adapter {
    pub(super) fs: Arc<LayerFs>,
    pub(super) runtime: Handle,
    pub(super) counters: Arc<Counters>,
    /// How long the kernel may remember names, attributes and absences.
    pub(super) ttl: Duration,
    pub(super) read_deadline: Duration,
    pub(super) failed: Arc<Failed>,
    /// Whether OPEN is to be answered `ENOSYS`; cleared where the kernel does not take that.
    pub(super) skip_open: bool,
    pub(super) skip_opendir: bool,
    /// Whether attributes are not asked for again: there are none.
    pub(super) skip_xattrs: bool,
    /// Whether complete files are to be read by the kernel itself; cleared where it cannot.
    pub(super) pass_through: bool,
    /// Open files, counted where OPEN is answered.
    pub(super) opens: Opens,
    /// Looks for the next request; none where several threads wait for it.
    pub(super) poll: Option<Poll>,
    /// Stores small files ahead of their reader; cleared where the kernel does not know files before they are
    /// looked up one by one.
    pub(super) populated: Option<Populated>,
}

impl Adapter {
    /// Runs one callback. When it panics the reply in it is dropped, which answers `EIO`.
    fn guard(&self, request: &'static str, ino: INodeNo, callback: impl FnOnce()) {
        // What it leads to, down to the HTTP request, is logged within it.
        let layer = self.fs.index().blob();
        let _span = tracing::debug_span!("fuse", request, ino = ino.0, %layer).entered();
        if let Some(poll) = &self.poll {
            poll.begin();
        }
        self.counters.begin();
        // Unwind safe: a callback changes nothing but counters.
        let done = catch_unwind(AssertUnwindSafe(callback));
        self.counters.end();
        if done.is_err() {
            self.counters.panic();
            warn!(%layer, request, ino = ino.0, "a callback panicked, its request got EIO");
        }
        if let Some(poll) = &self.poll {
            poll.end();
        }
        self.counters.park();
    }

    /// What the kernel is told of an error, which is counted and logged if it is a failure.
    fn refuse(&self, request: &'static str, ino: INodeNo, error: &Error) -> Errno {
        self.counters
            .refuse(self.fs.index().blob(), request, ino.0, error)
    }

    fn read_reply(&self, ino: INodeNo, offset: u64, size: u32, reply: ReplyData) {
        let came = Instant::now();
        if let Some(errno) = self.just_failed(Ino(ino.0), offset, size) {
            reply.error(errno);
            return;
        }
        match self.fs.read(Ino(ino.0), offset, size) {
            Ok(Reading::Ready(bytes)) => {
                reply.data(&bytes);
                self.counters.hit(came, bytes.len());
                if let Some(populated) = &self.populated {
                    populated.read(Ino(ino.0), offset, bytes.len());
                }
            }
            Ok(Reading::Waiting(bytes)) => {
                self.counters.miss(came);
                let (fs, counters) = (Arc::clone(&self.fs), Arc::clone(&self.counters));
                let (deadline, failed) = (self.read_deadline, Arc::clone(&self.failed));
                let fetching = Fetching::new(&self.counters);
                let answer = async move {
                    let bytes = tokio::time::timeout(deadline, bytes).await;
                    let (layer, waited) = (fs.index().blob(), came.elapsed());
                    debug!(%layer, ino = ino.0, offset, size, ?waited, "a read had to wait");
                    match bytes.unwrap_or(Err(Error::Deadline(deadline))) {
                        Ok(bytes) => {
                            reply.data(&bytes);
                            counters.fetched(came, bytes.len());
                        }
                        Err(error) => {
                            let errno = counters.refuse(layer, "read", ino.0, &error);
                            if let Ok(chunks) = fs.chunks(Ino(ino.0), offset, size) {
                                failed.note(chunks, errno);
                            }
                            reply.error(errno);
                        }
                    }
                    drop(fetching);
                };
                self.runtime.spawn(answer.in_current_span());
            }
            Err(error) => reply.error(self.refuse("read", ino, &error)),
        }
    }

    /// What a read is told because another has just failed that wanted the same; what is here is read
    /// all the same.
    fn just_failed(&self, ino: Ino, offset: u64, size: u32) -> Option<Errno> {
        if !self.failed.any() {
            return None;
        }
        let chunks = self.fs.chunks(ino, offset, size).ok()?;
        let errno = self.failed.recall(&chunks)?;
        let here = self.fs.read_here(ino, offset, size);
        (!matches!(here, Ok(Some(_)))).then_some(errno)
    }

    /// The answer to GETXATTR and LISTXATTR: the caller's buffer is of `size` bytes, 0 asks for
    /// the size (getxattr(2)).
    fn xattr_reply(&self, ino: INodeNo, size: u32, value: Result<&[u8], Error>, reply: ReplyXattr) {
        let fits = value.and_then(|value| match u32::try_from(value.len()) {
            Ok(len) if size == 0 || len <= size => Ok((len, value)),
            _ => Err(Error::SmallBuffer),
        });
        match fits {
            Ok((len, _)) if size == 0 => reply.size(len),
            Ok((_, value)) => reply.data(value),
            Err(error) => reply.error(self.refuse("xattr", ino, &error)),
        }
    }
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let can = config.capabilities();
        let mut wanted = WANTED;
        if self.fs.index().summary().inodes <= PLUS_AT_MOST {
            wanted |= InitFlags::FUSE_DO_READDIRPLUS;
        } else {
            self.populated = None;
        }
        if self.fs.index().has_acl() {
            // The kernel then enforces the ACLs; without any it need not ask for them.
            wanted |= InitFlags::FUSE_POSIX_ACL;
        }
        // Both calls fail only for what the kernel has not offered, or for numbers out of range.
        let _ = config.add_capabilities(wanted & can);
        let _ = config.set_max_write(MAX_REQUEST);
        let _ = config.set_max_background(MAX_BACKGROUND);
        self.pass_through &= can.contains(InitFlags::FUSE_PASSTHROUGH);
        if self.pass_through {
            // Depth 1: the files passed through lie on no stacked file system, and an overlay can
            // lie on this one.
            let _ = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH);
            let _ = config.set_max_stack_depth(1);
        }
        // Once it is answered so the kernel sends no RELEASE either: not while a predecessor's files
        // are open.
        self.skip_open &= can.contains(InitFlags::FUSE_NO_OPEN_SUPPORT)
            && !self.pass_through
            && self.opens.is_empty();
        self.skip_opendir = can.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.guard("lookup", parent, || {
            match self.fs.lookup(Ino(parent.0), name.as_bytes()) {
                Ok(node) => reply.entry(&self.ttl, &attributes(&node), GENERATION),
                // An entry of node 0 is an absence that the kernel may remember.
                Err(Error::NoEntry) => reply.entry(&self.ttl, &absent(), GENERATION),
                Err(error) => reply.error(self.refuse("lookup", parent, &error)),
            }
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, _: u64) {
        if let Some(populated) = &self.populated {
            populated.forget(Ino(ino.0));
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.guard("getattr", ino, || match self.fs.getattr(Ino(ino.0)) {
            Ok(node) => reply.attr(&self.ttl, &attributes(&node)),
            Err(error) => reply.error(self.refuse("getattr", ino, &error)),
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.guard("readlink", ino, || match self.fs.readlink(Ino(ino.0)) {
            Ok(target) => reply.data(target),
            Err(error) => reply.error(self.refuse("readlink", ino, &error)),
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.skip_open {
            return reply.error(Errno::ENOSYS);
        }
        self.guard("open", ino, || {
            match self
                .opens
                .open(&self.fs, Ino(ino.0), request.unique().0, reply)
            {
                Ok(true) => self.counters.pass_through(),
                Ok(false) => {}
                Err(error) => {
                    let layer = self.fs.index().blob();
                    warn!(%layer, ino = ino.0, %error, "an open was not recorded, it got EIO");
                }
            }
        });
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.guard("release", ino, || {
            self.opens.release(handle.0);
            reply.ok();
        });
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.guard("read", ino, || self.read_reply(ino, offset, size, reply));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.skip_opendir {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.guard("readdir", ino, || {
            let listed = self.fs.readdir(Ino(ino.0), offset, &mut |item| {
                let kind = file_type(item.kind);
                let name = OsStr::from_bytes(item.name);
                full(reply.add(INodeNo(item.ino.0), item.next, kind, name))
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(self.refuse("readdir", ino, &error)),
            }
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.guard("readdirplus", ino, || {
            let mut failed = Ok(());
            let listed = self.fs.readdir(Ino(ino.0), offset, &mut |item| match self
                .fs
                .getattr(item.ino)
            {
                Ok(node) => {
                    let (ino, attributes) = (INodeNo(item.ino.0), attributes(&node));
                    let name = OsStr::from_bytes(item.name);
                    if let Some(populated) = &self.populated {
                        populated.tell(item.ino);
                    }
                    full(reply.add(ino, item.next, name, &self.ttl, &attributes, GENERATION))
                }
                Err(error) => {
                    failed = Err(error);
                    ControlFlow::Break(())
                }
            });
            match listed.and(failed) {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(self.refuse("readdirplus", ino, &error)),
            }
        });
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.guard("statfs", ino, || {
            let s = self.fs.statfs();
            let longest = u32::try_from(crate::fs::index::MAX_NAME).unwrap_or_default();
            reply.statfs(
                s.blocks,
                s.free,
                s.available,
                s.inodes,
                0,
                s.block,
                longest,
                s.block,
            );
        });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if self.skip_xattrs {
            return reply.error(Errno::ENOSYS);
        }
        self.guard("getxattr", ino, || {
            let value = self.fs.getxattr(Ino(ino.0), name.as_bytes());
            self.xattr_reply(ino, size, value, reply);
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if self.skip_xattrs {
            return reply.error(Errno::ENOSYS);
        }
        self.guard("listxattr", ino, || {
            let names = self.fs.listxattr(Ino(ino.0));
            let names = names.as_deref().map_err(Clone::clone);
            self.xattr_reply(ino, size, names, reply);
        });
    }
}

const fn full(full: bool) -> ControlFlow<()> {
    if full {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}
