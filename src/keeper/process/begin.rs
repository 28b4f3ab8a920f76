//! How a process becomes the keeper: before any runtime or thread is there.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Resource;

use super::child::{OOM_SCORE, Origin};
use super::{Keeper, note};
use crate::keeper::{Folder, KEEPER_NAME, ROOT_VARIABLE, memory, signals};

/// Among the last to be killed for memory.
const OOM_SPARE: &str = "-999";

/// How long a keeper that is just leaving is waited for: tries of 20 ms.
const LOCK_TRIES: u32 = 100;

/// What the keeper waits on.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) signals: OwnedFd,
    pub(super) notify: OwnedFd,
    pub(super) control: OwnedFd,
    _lock: File,
}

/// Does the keeper's work if this process was started as the keeper, by its name in `argv[0]`; else
/// returns `None` at once. For the first line of `main`: the keeper must stay small and have one thread.
pub fn run_if_keeper() -> Option<ExitCode> {
    if !is_started_as(KEEPER_NAME) {
        return None;
    }
    let root = std::env::var_os(ROOT_VARIABLE)?;
    match keep(Path::new(&root)) {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            note(&format!(
                "cannot keep {}: {error}",
                Path::new(&root).display()
            ));
            Some(ExitCode::FAILURE)
        }
    }
}

/// Whether this process was started by that name: the one binary is several programs.
#[must_use]
pub fn is_started_as(program: &str) -> bool {
    let name = std::env::args_os().next();
    let name = name.as_deref().map(Path::new).and_then(Path::file_name);
    name == Some(OsStr::new(program))
}

fn keep(root: &Path) -> io::Result<()> {
    let folder = Folder::new(root)?;
    let umask = rustix::process::umask(Mode::from_raw_mode(0o077));
    let oom_score = std::fs::read_to_string(OOM_SCORE).unwrap_or_else(|_| "0".to_owned());
    // Each of these is a nicety: not every container allows it, and none is worth ending for.
    let _ = std::fs::write(OOM_SCORE, OOM_SPARE);
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let _ = rustix::thread::set_name(c"fd-keeper");
    let _ = rustix::process::chdir("/");
    // Room for a descriptor per mount.
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = rustix::process::setrlimit(Resource::Nofile, limit);
    let sockets = Sockets::open(&folder)?;
    // Whoever started this process waits until standard input is closed.
    if let Ok(null) = File::open("/dev/null") {
        point(null.as_fd(), libc::STDIN_FILENO);
    }
    let mut keeper = Keeper::new(folder.clone(), Origin { umask, oom_score }, sockets);
    memory::forget_code();
    let result = keeper.run();
    // Still under the lock. The one that tells whether there is a keeper goes last: who finds none finds nothing of it.
    for name in [folder.notify(), folder.control()] {
        let _ = std::fs::remove_file(name);
    }
    result
}

impl Sockets {
    /// Takes the folder's lock and listens.
    fn open(folder: &Folder) -> io::Result<Self> {
        let lock = File::options()
            .create(true)
            .append(true)
            .open(folder.lock())?;
        for tried in 0.. {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if tried < LOCK_TRIES => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        let signals = signals::open()?;
        let notify = bind(&folder.notify(), SocketType::DGRAM)?;
        let control = bind(&folder.control(), SocketType::SEQPACKET)?;
        rustix::net::listen(&control, 16)?;
        Ok(Self {
            signals,
            notify,
            control,
            _lock: lock,
        })
    }
}

/// Removes what a dead keeper left; the lock says that it is dead.
fn bind(path: &Path, kind: SocketType) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Makes standard output and standard error those two descriptors, or nothing.
pub(super) fn point_output(fds: Option<&[OwnedFd]>) {
    let null = File::options().write(true).open("/dev/null");
    let numbers = [libc::STDOUT_FILENO, libc::STDERR_FILENO];
    for (at, number) in numbers.into_iter().enumerate() {
        match (fds, &null) {
            (Some(fds), _) => fds
                .get(at)
                .into_iter()
                .for_each(|fd| point(fd.as_fd(), number)),
            (None, Ok(null)) => point(null.as_fd(), number),
            (None, Err(_)) => {}
        }
    }
}

fn point(from: BorrowedFd<'_>, number: i32) {
    // SAFETY: replaces a standard descriptor, which no object of this process owns.
    unsafe {
        libc::dup2(from.as_raw_fd(), number);
    }
}
