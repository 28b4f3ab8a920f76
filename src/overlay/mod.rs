//! Overlay options and mounting, behind a trait with a recording fake.
//!
//! The only module that names mount system calls. It mounts layers (FUSE, on a descriptor of its
//! own) and takes mounts down; the overlay itself is mounted by containerd, from options that are
//! put together here.

mod mountinfo;
pub mod options;
mod recorder;
mod system;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

pub use mountinfo::{MountEntry, parse as parse_mountinfo};
pub use recorder::{Recorder, Step};
pub use system::System;

/// A mounted FUSE file system that nobody serves yet.
#[derive(Debug)]
pub struct FuseMount {
    /// The `/dev/fuse` descriptor the kernel sends the mount's requests to. The mount lives until
    /// its last copy is closed; it is close-on-exec.
    pub fd: OwnedFd,
    /// The mount's device number, which names it in `/sys/class/bdi` and (the minor)
    /// `/sys/fs/fuse/connections`.
    pub device: DeviceId,
}

/// A device number, as mountinfo prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceId {
    /// Major number; 0 for file systems without a disk.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// The mount system calls that are needed of a node.
pub trait Mounter: Send + Sync {
    /// Mounts a FUSE file system at `target`, an existing folder, and returns the descriptor to
    /// serve it on. `source` is what mountinfo shows as its source.
    ///
    /// # Errors
    /// What `/dev/fuse` or mount(2) said.
    fn mount_fuse(&self, target: &Path, source: &str) -> io::Result<FuseMount>;

    /// Unmounts what is mounted at `target`; `lazy` also when it is in use: open files stay usable
    /// until they are closed. A symbolic link at `target` is not followed.
    ///
    /// # Errors
    /// What umount2(2) said; `EINVAL` when nothing is mounted there.
    fn unmount(&self, target: &Path, lazy: bool) -> io::Result<()>;

    /// The device number of the file system at `target`: that of what is mounted there now. Asks
    /// no file system, so a dead one does not hang it.
    ///
    /// # Errors
    /// What statx(2) said.
    fn device_at(&self, target: &Path) -> io::Result<DeviceId>;

    /// All mounts of this mount namespace at or below `root`, in the order they were made. Asks
    /// no file system, so a dead one does not hang it.
    ///
    /// # Errors
    /// What reading `/proc/self/mountinfo` said.
    fn mounts_below(&self, root: &Path) -> io::Result<Vec<MountEntry>>;
}

impl std::fmt::Display for DeviceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}
