//! How a process becomes the keeper: before any runtime or thread is there.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode};
use rustix::mm::Advice;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Resource, Signal};

use super::child::{OOM_SCORE, Origin};
use super::{Keeper, note};
use crate::keeper::{Folder, KEEPER_NAME, ROOT_VARIABLE};

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
    let name = std::env::args_os().next()?;
    if Path::new(&name).file_name().map(OsStr::as_bytes) != Some(KEEPER_NAME.as_bytes()) {
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

fn keep(root: &Path) -> io::Result<()> {
    let folder = Folder::new(root)?;
    let umask = rustix::process::umask(Mode::from_raw_mode(0o077));
    let oom_score = std::fs::read_to_string(OOM_SCORE).unwrap_or_else(|_| "0".to_owned());
    // Each of these is a nicety: not every container allows it, and none is worth ending for.
    let _ = std::fs::write(OOM_SCORE, OOM_SPARE);
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let _ = rustix::thread::set_name(c"fd-keeper");
    let _ = rustix::process::chdir("/");
    raise_limit();
    let sockets = Sockets::open(&folder)?;
    let mut keeper = Keeper::new(folder.clone(), Origin { umask, oom_score }, sockets);
    let _ = forget_code();
    let result = keeper.run();
    for name in [folder.control(), folder.notify()] {
        let _ = std::fs::remove_file(name);
    }
    result
}

/// Room for a descriptor per mount.
fn raise_limit() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = rustix::process::setrlimit(Resource::Nofile, limit);
}

/// Gives back the code that only a start needs: three quarters of what the keeper would hold. The
/// binary is the daemon's, and whatever was run once stays resident, with its neighbours.
pub(super) fn forget_code() -> io::Result<()> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    for line in maps.lines() {
        // "first-last r-xp offset device inode path", proc(5). The code, and what lies before it in the
        // file: constants and relocations. What is behind it may have been written by the linker.
        let clean = |rest: &str| rest.starts_with("r-xp") || rest.starts_with("r--p 00000000 ");
        let (Some((range, rest)), true) = (line.split_once(' '), line.contains('/')) else {
            continue;
        };
        let ends = range.split_once('-').filter(|_| clean(rest));
        let ends = ends.map(|(from, to)| {
            (
                usize::from_str_radix(from, 16),
                usize::from_str_radix(to, 16),
            )
        });
        let Some((Ok(from), Ok(to))) = ends else {
            continue;
        };
        // SAFETY: a private mapping of a file that was never writable holds just what is in the file,
        // and is read from there again when it is needed.
        unsafe {
            rustix::mm::madvise(
                from as *mut _,
                to.saturating_sub(from),
                Advice::LinuxDontNeed,
            )?;
        }
    }
    Ok(())
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
        let signals = signals()?;
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

/// The signal that made the descriptor of [`signals`] readable.
pub(in crate::keeper) fn next_signal(signals: &OwnedFd) -> Option<Signal> {
    let mut info = [0; size_of::<libc::signalfd_siginfo>()];
    rustix::io::read(signals, &mut info[..]).ok()?;
    let number = u32::from_ne_bytes(info.first_chunk().copied()?);
    Signal::from_named_raw(i32::try_from(number).ok()?)
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

/// Turns SIGTERM, SIGINT and SIGHUP into something to read.
pub(in crate::keeper) fn signals() -> io::Result<OwnedFd> {
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

/// Makes standard output and standard error those two descriptors, or nothing.
pub(super) fn point_output(fds: Option<&[OwnedFd]>) {
    let null = File::options().write(true).open("/dev/null");
    for (at, number) in [libc::STDOUT_FILENO, libc::STDERR_FILENO]
        .into_iter()
        .enumerate()
    {
        let from = match (fds.and_then(|fds| fds.get(at)), &null) {
            (Some(fd), _) => fd.as_fd(),
            (None, Ok(null)) if fds.is_none() => null.as_fd(),
            _ => continue,
        };
        // SAFETY: replaces a standard descriptor, which no object of this process owns.
        unsafe {
            libc::dup2(from.as_raw_fd(), number);
        }
    }
}
