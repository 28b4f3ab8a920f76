//! The real mount system calls.
//!
//! A layer is mounted by mount(2) on a `/dev/fuse` descriptor of its own, not by a helper that
//! unmounts when it is dropped: a layer in use must survive the process that mounted it.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::overlay::{DeviceId, FuseMount, MountEntry, Mounter, mountinfo};

/// The file system type of a layer: subtype `crfs` of `fuse`.
const FS_TYPE: &str = "fuse.crfs";

/// Mounts of this machine. Needs CAP_SYS_ADMIN.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl System {
    /// Mounts an overlay of `lower` folders, the top one first and at least two, read-only at
    /// `target`. Whoever serves the folders must not be the calling thread.
    ///
    /// # Errors
    /// What mount(2) said; `EINVAL` also if the folders' names do not fit into a page.
    pub fn mount_overlay(&self, lower: &[PathBuf], target: &Path) -> io::Result<()> {
        let lower: Vec<_> = lower
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let options = CString::new(format!("lowerdir={}", lower.join(":")))?;
        Ok(mount(
            "crfs",
            target,
            "overlay",
            MountFlags::RDONLY,
            options.as_c_str(),
        )?)
    }
}

impl Mounter for System {
    fn mount_fuse(&self, target: &Path, source: &str) -> io::Result<FuseMount> {
        // The kernel drops O_CLOEXEC copies at exec; std opens everything that way.
        let fd: OwnedFd = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")?
            .into();
        // default_permissions: without it the kernel asks nobody, and a root-owned 0600 file is
        // readable by all. allow_other: a container's users are not the one who mounts. Not
        // nosuid: images carry setuid files; nodev: a device of an image is for the overlay above.
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
            fd.as_raw_fd()
        );
        let options = CString::new(options)?;
        let flags = MountFlags::RDONLY | MountFlags::NODEV;
        mount(source, target, FS_TYPE, flags, options.as_c_str())?;
        let device = device_of(target).inspect_err(|_| {
            // Nothing may stay behind; the error of the look-up is the one to report.
            let _ = unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        })?;
        Ok(FuseMount { fd, device })
    }

    fn unmount(&self, target: &Path, lazy: bool) -> io::Result<()> {
        let mut flags = UnmountFlags::NOFOLLOW;
        if lazy {
            flags |= UnmountFlags::DETACH;
        }
        Ok(unmount(target, flags)?)
    }

    fn device_at(&self, target: &Path) -> io::Result<DeviceId> {
        device_of(target)
    }

    fn mounts_below(&self, root: &Path) -> io::Result<Vec<MountEntry>> {
        let mut text = Vec::new();
        io::Read::read_to_end(&mut File::open("/proc/self/mountinfo")?, &mut text)?;
        let mut mounts = mountinfo::parse(&text);
        mounts.retain(|mount| mount.target.starts_with(root));
        Ok(mounts)
    }
}

/// The device number of what is at `target`, which may be a mount that nobody serves (yet): asking it
/// for attributes would wait for ever, what the kernel knows by itself does not.
fn device_of(target: &Path) -> io::Result<DeviceId> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let stat = statx(CWD, target, flags, StatxFlags::empty())?;
    Ok(DeviceId {
        major: stat.stx_dev_major,
        minor: stat.stx_dev_minor,
    })
}
