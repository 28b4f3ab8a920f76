//! SIGTERM and SIGINT as something to read, for a loop that waits for other things too. All other signals
//! do what they do by default.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Blocks the two in the calling thread; to be called before there are others. The descriptor is readable
/// when one has come.
pub(super) fn open() -> io::Result<OwnedFd> {
    // SAFETY: plain calls on a set of this function's own; the descriptor is new and ours.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Takes one that has come.
pub(super) fn next(signals: &OwnedFd) -> Option<()> {
    let mut info = [0; size_of::<libc::signalfd_siginfo>()];
    rustix::io::read(signals, &mut info[..]).ok().map(drop)
}
