//! Where the keeper and those who talk to it meet: the names below the root folder.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::process::Pid;

/// The root folder of a daemon, absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    /// `root` need not exist; a relative one is taken from the current folder.
    pub fn new(root: &Path) -> io::Result<Self> {
        Ok(Self {
            root: std::path::absolute(root)?,
        })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Socket for requests to the keeper.
    pub fn control(&self) -> PathBuf {
        self.root.join("keeper.sock")
    }

    /// Socket for systemd's protocol.
    pub fn notify(&self) -> PathBuf {
        self.root.join("notify.sock")
    }

    /// Locked by the one keeper of this folder.
    pub fn lock(&self) -> PathBuf {
        self.root.join("keeper.lock")
    }

    /// Process number of the running server, in decimal.
    pub fn server_pid(&self) -> PathBuf {
        self.root.join("server.pid")
    }

    /// Locked by the one server of this folder, for as long as it lives.
    pub fn server_lock(&self) -> PathBuf {
        self.root.join("server.lock")
    }

    /// Takes the server's lock; `None` if a server lives. It is free when the last duplicate of the
    /// descriptor is closed.
    pub(super) fn lock_server(&self) -> io::Result<Option<OwnedFd>> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(self.server_lock())?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file.into())),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    pub(super) fn write_pid(&self, pid: Pid) -> io::Result<()> {
        let fresh = self.root.join("server.pid.new");
        std::fs::write(&fresh, format!("{}\n", pid.as_raw_nonzero()))?;
        std::fs::rename(fresh, self.server_pid())
    }
}
