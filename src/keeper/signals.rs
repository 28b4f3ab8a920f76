//! SIGTERM, SIGINT and SIGHUP as something to read, for a loop that waits for other things too. All other
//! signals do what they do by default.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use libc::c_int;

/// What a signal wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// SIGTERM, SIGINT.
    End,
    /// SIGHUP: the configuration is to be read again.
    Reread,
}

/// Blocks the three in the calling thread; to be called before there are others. The descriptor is readable
/// when one has come.
pub(super) fn open() -> io::Result<OwnedFd> {
    // SAFETY: plain calls on a set of this function's own; the descriptor is new and ours.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::sigaddset(&raw mut set, signal);
        }
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
pub(super) fn next(signals: &OwnedFd) -> Option<Wish> {
    let mut info = [0; size_of::<libc::signalfd_siginfo>()];
    rustix::io::read(signals, &mut info[..]).ok()?;
    // The signal's number comes first.
    let number = info
        .first_chunk()
        .map(|number| c_int::from_ne_bytes(*number));
    Some(match number {
        Some(libc::SIGHUP) => Wish::Reread,
        _ => Wish::End,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_read_as_what_it_wants() {
        // A thread's own signals: the mask of the test's other threads does not matter.
        std::thread::spawn(|| {
            let signals = open().unwrap();
            assert_eq!(next(&signals), None);
            for (signal, wish) in [
                (libc::SIGHUP, Wish::Reread),
                (libc::SIGTERM, Wish::End),
                (libc::SIGINT, Wish::End),
            ] {
                // SAFETY: sends this thread a signal that it has blocked.
                let sent = unsafe { libc::pthread_kill(libc::pthread_self(), signal) };
                assert_eq!(sent, 0);
                assert_eq!(next(&signals), Some(wish));
            }
            assert_eq!(next(&signals), None);
        })
        .join()
        .unwrap();
    }
}
