//! The process that writes to the device what is to be in the page cache.
//!
//! Why a process: the kernel puts a page in place under the page's lock, and waits for it uninterruptibly.
//! A page that a reader waits for is locked until this server has answered his READ. A thread of the server that
//! met such a page when the server is killed could not end before the READ is answered, nor the server with
//! it, and its successor, who would answer, waits for that end. So it is done by a process whose end nobody waits for; it has
//! no state, and ends when the server does.
//!
//! What goes over is a batch of messages and, beside it, the device they are for.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::message::{Batch, LONGEST, messages};
use crate::keeper::{forget_code, is_started_as, wire};

/// The process's name in `argv[0]` and for `ps`.
const NAME: &str = "page-filler";
/// Set by [`run_if_filler`]: whether this program becomes the process when it is started by that name.
static KNOWS: AtomicBool = AtomicBool::new(false);
/// How long a batch may wait until the process has room for it; then it is dropped.
const ROOM: Duration = Duration::from_millis(20);

/// The process, as its server has it. Dropping it ends the process.
#[derive(Debug)]
pub(super) struct Filler {
    socket: OwnedFd,
    process: Child,
}

impl Filler {
    /// Starts the process: this program by another name.
    ///
    /// # Errors
    /// `None` if this program has not called [`run_if_filler`]: started again it would do its own work. Else what
    /// the kernel says.
    pub(super) fn start() -> Result<Self, Option<io::Error>> {
        if !KNOWS.load(Ordering::Relaxed) {
            return Err(None);
        }
        Self::spawn().map_err(Some)
    }

    fn spawn() -> io::Result<Self> {
        let (ours, its) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let process = Command::new("/proc/self/exe")
            .arg0(NAME)
            .env_clear()
            .stdin(its)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self {
            socket: ours,
            process,
        })
    }

    /// Sends what is in the batch and empties it. One that the process has no room for is dropped.
    ///
    /// # Errors
    /// The process is gone.
    pub(super) fn send(&self, device: BorrowedFd<'_>, batch: &mut Batch) -> io::Result<()> {
        if batch.bytes().is_empty() {
            return Ok(());
        }
        let send = || {
            let (bytes, fds) = (batch.bytes(), [device]);
            wire::send(self.socket.as_fd(), None, bytes, &fds, SendFlags::DONTWAIT)
        };
        let sent = match send() {
            Err(Errno::AGAIN) => {
                let mut polled = [PollFd::new(&self.socket, PollFlags::OUT)];
                let room = Timespec::try_from(ROOM).ok();
                let _ = rustix::event::poll(&mut polled, room.as_ref());
                send()
            }
            sent => sent,
        };
        batch.clear();
        match sent {
            Ok(()) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        // It has nothing to finish, and may not be able to before a reader is answered.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Does the process's work if this process was started for it, by its name in `argv[0]`; else returns `None` at
/// once. For the beginning of `main`.
#[must_use]
pub fn run_if_filler() -> Option<ExitCode> {
    KNOWS.store(true, Ordering::Relaxed);
    if !is_started_as(NAME) {
        return None;
    }
    let _ = rustix::thread::set_name(c"page-filler");
    forget_code();
    fill(io::stdin().as_fd());
    Some(ExitCode::SUCCESS)
}

/// Until the other end is closed.
fn fill(socket: BorrowedFd<'_>) {
    let mut buffer = vec![0; LONGEST];
    while let Ok(got) = wire::receive(socket, &mut buffer, RecvFlags::empty())
        && got.length > 0
    {
        let (Some(batch), Some(device)) = (buffer.get(..got.length), got.fds.first()) else {
            continue;
        };
        for message in messages(batch) {
            // Of a file that the kernel does not know (ENOENT) it needs no content.
            if let Err(Errno::NODEV | Errno::NOTCONN | Errno::PERM) =
                rustix::io::write(device, message)
            {
                break;
            }
        }
    }
}
