//! Starts the server: its program, its environment, and the kept descriptors from number 3 on.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::io::FdFlags;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};

use super::course::End;
use crate::keeper::control::Spec;
use crate::keeper::protocol::{FIRST_FD, FdName};
use crate::keeper::{Folder, SERVER_VARIABLE};

/// Where the kernel takes a process's inclination to be killed for memory from.
pub(super) const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// How often and how long a program is waited for that is still open for writing.
const BUSY_TRIES: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// A running server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) pid: Pid,
    /// Readable when it is dead, with every thread gone and every descriptor closed.
    pub(super) pidfd: OwnedFd,
}

/// What the keeper changed in itself and the server must not inherit.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) umask: Mode,
    pub(super) oom_score: String,
}

/// All that a start needs.
#[derive(Debug)]
pub(super) struct Job<'a> {
    pub(super) spec: &'a Spec,
    pub(super) folder: &'a Folder,
    /// In the order of their numbers.
    pub(super) fds: &'a [(FdName, OwnedFd)],
    pub(super) silence: Duration,
    pub(super) origin: &'a Origin,
}

impl Server {
    /// Takes note of a server that runs already.
    pub(super) fn running(pid: Pid) -> io::Result<Self> {
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { pid, pidfd })
    }

    /// Starts one. An error means that its program does not run.
    pub(super) fn spawn(job: &Job<'_>) -> io::Result<Self> {
        let (said, saying) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        // SAFETY: the keeper has one thread, so the child may do whatever the parent may.
        let pid = match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()),
            0 => {
                job.run(&saying);
                // SAFETY: leaves without running the parent's destructors a second time.
                unsafe { libc::_exit(127) }
            }
            pid => Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?,
        };
        drop(saying);
        let server = Self::running(pid)?;
        let mut errno = [0; 4];
        // The pipe closes when the program runs, and says an errno when it does not.
        if rustix::io::retry_on_intr(|| rustix::io::read(&said, &mut errno[..]))? == errno.len() {
            server.end();
            return Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)));
        }
        Ok(server)
    }

    /// How it ended; to be asked when the pidfd is readable.
    pub(super) fn end(&self) -> End {
        let id = WaitId::PidFd(self.pidfd.as_fd());
        match rustix::process::waitid(id, WaitIdOptions::EXITED) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => End::Code(code),
                (None, Some(signal)) => End::Signal(signal),
                (None, None) => End::Unknown,
            },
            // Not our child: adopted from a keeper that died.
            _ => End::Unknown,
        }
    }
}

impl Job<'_> {
    /// In the child: becomes the server, or says why not.
    fn run(&self, saying: &OwnedFd) {
        // Out of the way of the numbers that the kept descriptors are moved to.
        let free = RawFd::try_from(self.fds.len()).map_or(RawFd::MAX, |count| FIRST_FD + count);
        let Ok(saying) = rustix::io::fcntl_dupfd_cloexec(saying, free) else {
            return;
        };
        let Err(error) = self.exec(free);
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let _ = rustix::io::write(&saying, &errno.to_ne_bytes());
    }

    fn exec(&self, free: RawFd) -> io::Result<Infallible> {
        let file = rustix::io::fcntl_dupfd_cloexec(self.spec.file(), free)?;
        move_down(self.fds)?;
        leave_keeper(self.origin)?;
        let mut args = self.spec.args();
        let mut command = Command::new(self.spec.program(&file));
        if let Some(name) = args.next() {
            command.arg0(name);
        }
        let names: Vec<_> = self.fds.iter().map(|(name, _)| name.as_str()).collect();
        let pid = std::process::id().to_string();
        command
            .args(args)
            .current_dir(self.spec.folder())
            .env_clear()
            .envs(self.spec.variables())
            .env("NOTIFY_SOCKET", self.folder.notify())
            .env("LISTEN_PID", &pid)
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .env("WATCHDOG_PID", &pid)
            .env("WATCHDOG_USEC", self.silence.as_micros().to_string())
            .env(SERVER_VARIABLE, self.folder.root());
        let mut error = command.exec();
        // A program that was just written may still be open in a process that is about to start another.
        for _ in 0..BUSY_TRIES {
            if error.kind() != io::ErrorKind::ExecutableFileBusy {
                break;
            }
            std::thread::sleep(BUSY_PAUSE);
            error = command.exec();
        }
        Err(error)
    }
}

/// Moves the descriptors to the numbers from 3 on, without close-on-exec. They are sorted and not
/// below 3, so the i-th has a number of at least 3 + i: no move hits one that is still to be moved.
fn move_down(fds: &[(FdName, OwnedFd)]) -> io::Result<()> {
    for (target, (_, fd)) in (FIRST_FD..).zip(fds) {
        if fd.as_raw_fd() == target {
            rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
            continue;
        }
        // SAFETY: the child owns no object whose descriptor this closes and which it still uses.
        if unsafe { libc::dup2(fd.as_raw_fd(), target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Takes back what the keeper set for itself alone.
fn leave_keeper(origin: &Origin) -> io::Result<()> {
    rustix::process::umask(origin.umask);
    rustix::process::setpgid(None, None)?;
    rustix::thread::disable_transparent_huge_pages(false)?;
    // Refused where lowering it was refused, and then there is nothing to take back.
    let _ = std::fs::write(OOM_SCORE, &origin.oom_score);
    // SAFETY: plain calls on a set of this function's own.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
    Ok(())
}
