//! Starts the server: its program, its environment, and the kept descriptors from number 3 on.

use std::convert::Infallible;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::io::FdFlags;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};

use super::course::End;
use super::spec::Spec;
use crate::keeper::protocol::{FIRST_FD, FdName};
use crate::keeper::{Folder, ROOT_VARIABLE};

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
        rustix::process::chdir(self.spec.folder())?;
        let program = CString::new(self.spec.program(&file).into_os_string().into_vec())?;
        let args = self.spec.args().map(|arg| CString::new(arg.as_bytes()));
        let args = args.collect::<Result<Vec<_>, _>>()?;
        let variables = self.variables()?;
        let mut error = execute(&program, &args, &variables);
        // A program that was just written may still be open in a child that is about to become another.
        for _ in 0..BUSY_TRIES {
            if error.kind() != io::ErrorKind::ExecutableFileBusy {
                break;
            }
            std::thread::sleep(BUSY_PAUSE);
            error = execute(&program, &args, &variables);
        }
        Err(error)
    }

    /// The server's environment: what it was described with, and the protocol's.
    fn variables(&self) -> io::Result<Vec<CString>> {
        let names: Vec<_> = self.fds.iter().map(|(name, _)| name.as_str()).collect();
        let pid = std::process::id().to_string();
        let count = names.len().to_string();
        let names = names.join(":");
        let silence = self.silence.as_micros().to_string();
        let notify = self.folder.notify();
        let ours: [(&str, &OsStr); 7] = [
            ("NOTIFY_SOCKET", notify.as_os_str()),
            ("LISTEN_PID", pid.as_ref()),
            ("LISTEN_FDS", count.as_ref()),
            ("LISTEN_FDNAMES", names.as_ref()),
            ("WATCHDOG_PID", pid.as_ref()),
            ("WATCHDOG_USEC", silence.as_ref()),
            (ROOT_VARIABLE, self.folder.root().as_os_str()),
        ];
        let ours = ours.map(|(name, value)| (OsStr::new(name), value));
        let pair = |(name, value): (&OsStr, &OsStr)| {
            CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())
        };
        Ok(self
            .spec
            .variables()
            .chain(ours)
            .map(pair)
            .collect::<Result<_, _>>()?)
    }
}

/// Plain execve: what is no program is an error, and not handed to a shell. Returns only on failure.
fn execute(program: &CStr, args: &[CString], variables: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| {
        let strings = list.iter().map(|string| string.as_ptr());
        strings.chain([std::ptr::null()]).collect::<Vec<_>>()
    };
    let (args, variables) = (pointers(args), pointers(variables));
    // SAFETY: both lists end with null and their strings live until the call returns, if it does.
    unsafe { libc::execve(program.as_ptr(), args.as_ptr(), variables.as_ptr()) };
    io::Error::last_os_error()
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
        // Rust's start-up ignores it, and execve would hand that on.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    Ok(())
}
