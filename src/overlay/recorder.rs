//! The fake mounter: records what it is asked for and mounts nothing.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::overlay::{DeviceId, FuseMount, MountEntry, Mounter};

/// What was asked of a [`Recorder`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A FUSE mount.
    MountFuse {
        /// Where.
        target: PathBuf,
        /// Its source.
        source: String,
    },
    /// An unmount.
    Unmount {
        /// Where.
        target: PathBuf,
        /// Whether it was to be lazy.
        lazy: bool,
    },
}

/// A mounter that keeps a table instead of mounting. Its descriptors lead to `/dev/null`.
#[derive(Debug, Default)]
pub struct Recorder {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    steps: Vec<Step>,
    mounts: Vec<MountEntry>,
    refused: HashSet<PathBuf>,
    next_id: u32,
}

impl Recorder {
    /// A recorder without mounts.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Everything asked so far, in order.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        self.state.lock().steps.clone()
    }

    /// Makes every later mount or unmount at `target` fail with `EPERM`.
    pub fn refuse(&self, target: &Path) {
        self.state.lock().refused.insert(target.to_owned());
    }
}

impl State {
    fn check(&self, target: &Path) -> io::Result<()> {
        if self.refused.contains(target) {
            return Err(io::Error::from(io::ErrorKind::PermissionDenied));
        }
        Ok(())
    }
}

impl Mounter for Recorder {
    fn mount_fuse(&self, target: &Path, source: &str) -> io::Result<FuseMount> {
        let mut state = self.state.lock();
        state.steps.push(Step::MountFuse {
            target: target.to_owned(),
            source: source.to_owned(),
        });
        state.check(target)?;
        state.next_id += 1;
        let id = state.next_id;
        let device = DeviceId {
            major: 0,
            minor: id,
        };
        state.mounts.push(MountEntry {
            id,
            parent: 0,
            device,
            target: target.to_owned(),
            fs_type: "fuse.crfs".to_owned(),
            source: source.to_owned(),
            options: "ro".to_owned(),
        });
        let fd = File::open("/dev/null")?.into();
        Ok(FuseMount { fd, device })
    }

    fn unmount(&self, target: &Path, lazy: bool) -> io::Result<()> {
        let mut state = self.state.lock();
        state.steps.push(Step::Unmount {
            target: target.to_owned(),
            lazy,
        });
        state.check(target)?;
        let top = state.mounts.iter().rposition(|m| m.target == target);
        let top = top.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        state.mounts.remove(top);
        Ok(())
    }

    fn device_at(&self, target: &Path) -> io::Result<DeviceId> {
        let state = self.state.lock();
        let mount = state.mounts.iter().rfind(|mount| mount.target == target);
        mount
            .map(|mount| mount.device)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn mounts_below(&self, root: &Path) -> io::Result<Vec<MountEntry>> {
        let state = self.state.lock();
        let below = state.mounts.iter().filter(|m| m.target.starts_with(root));
        Ok(below.cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_follows_what_was_asked() {
        let mounter = Recorder::new();
        let (a, ab) = (Path::new("/r/a"), Path::new("/r/ab"));
        mounter.mount_fuse(a, "one").unwrap();
        mounter.mount_fuse(ab, "two").unwrap();
        assert_eq!(mounter.mounts_below(Path::new("/r")).unwrap().len(), 2);
        assert_eq!(mounter.mounts_below(a).unwrap()[0].source, "one");
        mounter.unmount(a, true).unwrap();
        assert!(mounter.unmount(a, false).is_err());
        mounter.refuse(ab);
        assert!(mounter.unmount(ab, true).is_err());
        assert_eq!(mounter.mounts_below(Path::new("/")).unwrap().len(), 1);
        assert_eq!(mounter.steps().len(), 5);
    }
}
