//! Puts a fuser session onto a mounted `/dev/fuse` descriptor, whether the kernel's one `FUSE_INIT`
//! is still to be answered or was answered by a server that is dead.
//!
//! The kernel sends `FUSE_INIT` once in the life of a mount, and fuser's `Session::from_fd` insists
//! on reading it. So fuser never sees the device during its handshake: it gets one end of a socket
//! pair, on which this module plays the kernel. Afterwards the device is put over that descriptor
//! number with `dup3`. A new mount and a taken-over one differ only in what happens to the reply: for
//! a new mount it goes on to the kernel, for a taken-over one it is dropped, because the kernel has
//! its answer.
//!
//! Crash behaviour: the handshake is recorded (through the caller's `record`) before the kernel gets
//! the reply, and marked answered after. A server killed at any point in between leaves one of the
//! three states of [`Progress`], and [`attach`] goes on from each.
//!
//! Requests that the dead server had read but not answered are asked for again with one
//! `FUSE_NOTIFY_RESEND` (kernel 6.9, `fs/fuse/dev.c`); without it their callers would hang. The caller
//! makes sure that the old server is gone: two servers answering one request would be a mess.
//! fuser echoes `unique` untouched, including the top bit that marks a re-sent request. The session
//! must not use `clone_fd`: a cloned descriptor's requests are not in the keeper's hands.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use fuser::{Config, Filesystem, Session, SessionACL};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::DupFlags;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// How long a new mount's `FUSE_INIT` is waited for. The kernel queues it inside `mount(2)`.
const INIT_WAIT: Duration = Duration::from_secs(5);

/// The kernel refuses to be read with room for less than the negotiated `max_write`
/// (`fs/fuse/dev.c`), which fuser caps at 16 MiB. Pages that are not written cost nothing.
const READ_BUFFER: usize = 16 * 1024 * 1024 + 8192;

/// Longest request and reply of the handshake: `fuse_in_header` + `fuse_init_in`, and
/// `fuse_out_header` + `fuse_init_out` (`include/uapi/linux/fuse.h`).
const REQUEST_MAX: usize = 40 + 64;
const REPLY_MAX: usize = 16 + 64;

/// Opcode of `FUSE_INIT`.
const OP_INIT: u32 = 26;

/// `FUSE_NOTIFY_RESEND`, in the error field of an out header whose `unique` is 0.
const NOTIFY_RESEND: i32 = 7;

/// `FUSE_INIT_EXT`: says that `flags2` is there. Always kept.
const INIT_EXT: u32 = 1 << 30;

/// The one `FUSE_INIT` exchange of a mount, as bytes on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake {
    /// The kernel's request: at most 104 bytes.
    pub request: Vec<u8>,
    /// The reply the kernel got, or is about to get: at most 80 bytes.
    pub reply: Vec<u8>,
}

/// How far a mount's handshake has come. What a successor must know, and cannot derive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Nothing was recorded, so the kernel has no answer.
    New,
    /// The reply was made and recorded; the kernel may or may not have it.
    Answering(Handshake),
    /// The kernel has the reply.
    Answered(Handshake),
}

/// How to attach.
#[derive(Debug)]
pub struct Options {
    /// Whose requests are served.
    pub acl: SessionACL,
    /// Threads; `clone_fd` must not be set.
    pub config: Config,
    /// Whether to ask for unanswered requests. `false` behaves as on a kernel before 6.9.
    pub resend: bool,
}

/// A session that is ready to run on the device.
#[derive(Debug)]
pub struct Attached<F: Filesystem> {
    /// To be run; its descriptor is the device.
    pub session: Session<F>,
    /// Whether the kernel re-sends unanswered requests (6.9 and later). Where it does not, readers
    /// that were waiting when the old server died stay stuck: see [`waiting`].
    pub resend: bool,
    /// Capabilities that the kernel was promised by the old server and this one did not ask for
    /// (`FUSE_INIT` flags, `flags2` in the upper half). 0 on a new mount.
    pub dropped: u64,
}

/// Why a session could not be put on a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("cannot {doing} while attaching to a fuse device")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// What the kernel said. `ENODEV`: the mount is gone.
        source: io::Error,
    },
    /// The mount sent no `FUSE_INIT`, or something else first.
    #[error("no FUSE_INIT from the kernel: {0}")]
    NoInit(&'static str),
    /// The recorded handshake is damaged.
    #[error("the recorded FUSE_INIT is not usable: {0}")]
    Damaged(&'static str),
    /// fuser refused the handshake.
    #[error("fuser refused FUSE_INIT")]
    Refused(#[source] io::Error),
}

/// Puts `filesystem` onto `device`, a mounted `/dev/fuse` descriptor, which stays the caller's.
///
/// `progress` is what was last recorded for this mount, [`Progress::New`] if nothing; `record` must
/// have made its argument safe from this process's death when it returns. No other process may be
/// serving the device.
pub fn attach<F: Filesystem>(
    filesystem: F,
    device: BorrowedFd<'_>,
    options: Options,
    progress: Progress,
    record: &mut dyn FnMut(&Progress) -> io::Result<()>,
) -> Result<Attached<F>, Error> {
    let resend = options.resend && resend(device)?;
    let (past, request) = match progress {
        Progress::New => (None, read_init(device)?),
        Progress::Answering(past) => {
            if resend {
                settle(device, &past)?;
            }
            let masked = masked(&past)?;
            (Some(past), masked)
        }
        Progress::Answered(past) => {
            let masked = masked(&past)?;
            (Some(past), masked)
        }
    };
    let (session, reply) = shake_hands(filesystem, options, &request)?;
    let (past, dropped) = match past {
        Some(past) => {
            let dropped = flags_of_reply(&past.reply) & !flags_of_reply(&reply);
            (past, dropped)
        }
        None => {
            let made = Handshake { request, reply };
            let keep = |source| Error::Io {
                doing: "record the handshake",
                source,
            };
            record(&Progress::Answering(made.clone())).map_err(keep)?;
            send(device, &made.reply)?;
            (made, 0)
        }
    };
    let keep = |source| Error::Io {
        doing: "record the handshake",
        source,
    };
    record(&Progress::Answered(past)).map_err(keep)?;
    put_over(device, session.as_fd())?;
    Ok(Attached {
        session,
        resend,
        dropped: dropped & !u64::from(INIT_EXT),
    })
}

/// Asks the kernel to send all requests again that were read and not answered. `false`: this kernel
/// cannot (before 6.9).
pub fn resend(device: BorrowedFd<'_>) -> Result<bool, Error> {
    let mut header = Vec::with_capacity(16);
    header.extend_from_slice(&16u32.to_ne_bytes());
    header.extend_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    header.extend_from_slice(&0u64.to_ne_bytes());
    match rustix::io::write(device, &header) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => Ok(false),
        Err(errno) => Err(Error::Io {
            doing: "ask for unanswered requests",
            source: errno.into(),
        }),
    }
}

/// Requests of a connection that have no answer yet: what is stuck on a kernel without RESEND.
///
/// `minor` is the minor number of the mount's device, the connection's name in
/// `/sys/fs/fuse/connections`.
pub fn waiting(minor: u32) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/sys/fs/fuse/connections/{minor}/waiting"))?;
    text.trim().parse().map_err(io::Error::other)
}

/// Runs fuser's handshake on a socket pair: `request` in, fuser's reply out.
fn shake_hands<F: Filesystem>(
    filesystem: F,
    options: Options,
    request: &[u8],
) -> Result<(Session<F>, Vec<u8>), Error> {
    let io = |doing| {
        move |errno: rustix::io::Errno| Error::Io {
            doing,
            source: errno.into(),
        }
    };
    let (kernel, server) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(io("make a socket pair"))?;
    rustix::net::send(&kernel, request, SendFlags::NOSIGNAL).map_err(io("replay FUSE_INIT"))?;
    let session = Session::from_fd(filesystem, server, options.acl, options.config)
        .map_err(Error::Refused)?;
    let mut reply = [0; REPLY_MAX + 1];
    let (length, _) = rustix::net::recv(&kernel, reply.as_mut_slice(), RecvFlags::DONTWAIT)
        .map_err(io("take fuser's reply"))?;
    let reply = reply.get(..length).unwrap_or_default();
    if !(24..=REPLY_MAX).contains(&length) || u32_at(reply, 4) != Some(0) {
        return Err(Error::Refused(io::Error::other("the reply is no success")));
    }
    Ok((session, reply.to_vec()))
}

/// Settles whether a recorded reply reached the kernel. After a RESEND an unanswered `FUSE_INIT` is
/// the first request there is, since all others wait for it.
fn settle(device: BorrowedFd<'_>, past: &Handshake) -> Result<(), Error> {
    if !readable(device, Duration::ZERO)? {
        return Ok(());
    }
    let first = read(device)?;
    if u32_at(&first, 4) != Some(OP_INIT) {
        // The kernel has the reply, and a request of an ordinary reader was taken: back with it.
        resend(device)?;
        return Ok(());
    }
    let mut reply = past.reply.clone();
    match (reply.get_mut(8..16), first.get(8..16)) {
        (Some(unique), Some(asked)) => unique.copy_from_slice(asked),
        _ => return Err(Error::Damaged("the reply is too short")),
    }
    send(device, &reply)
}

/// The recorded request, offering just what was agreed, so that this server cannot count on more.
fn masked(past: &Handshake) -> Result<Vec<u8>, Error> {
    let mut request = past.request.clone();
    if request.len() > REQUEST_MAX || past.reply.len() > REPLY_MAX {
        return Err(Error::Damaged("it is too long"));
    }
    let agreed = flags_of_reply(&past.reply);
    let low = (agreed as u32) | INIT_EXT;
    let high = (agreed >> 32) as u32;
    let offered = u32_at(&request, 52).ok_or(Error::Damaged("the request is too short"))?;
    set_u32(&mut request, 52, offered & low);
    // Older kernels send no `flags2`.
    if let Some(offered) = u32_at(&request, 56) {
        set_u32(&mut request, 56, offered & high);
    }
    let ahead = u32_at(&past.reply, 24).ok_or(Error::Damaged("the reply is too short"))?;
    set_u32(&mut request, 48, ahead);
    Ok(request)
}

/// Capabilities in a `FUSE_INIT` reply, `flags2` in the upper half.
fn flags_of_reply(reply: &[u8]) -> u64 {
    let low = u32_at(reply, 28).unwrap_or(0);
    let high = u32_at(reply, 48).unwrap_or(0);
    u64::from(high) << 32 | u64::from(low)
}

/// Reads the `FUSE_INIT` that a new mount has queued.
fn read_init(device: BorrowedFd<'_>) -> Result<Vec<u8>, Error> {
    if !readable(device, INIT_WAIT)? {
        return Err(Error::NoInit(
            "it was not sent, or answered without a record",
        ));
    }
    let request = read(device)?;
    match u32_at(&request, 4) {
        Some(OP_INIT) if request.len() <= REQUEST_MAX => Ok(request),
        Some(OP_INIT) => Err(Error::NoInit("it is longer than this version knows")),
        _ => Err(Error::NoInit("another request came first")),
    }
}

/// Whether a request can be read within `wait`.
pub(super) fn readable(device: BorrowedFd<'_>, wait: Duration) -> Result<bool, Error> {
    let io = |source| Error::Io {
        doing: "poll",
        source,
    };
    let timeout = Timespec::try_from(wait).map_err(|error| io(io::Error::other(error)))?;
    let mut polled = [PollFd::from_borrowed_fd(device, PollFlags::IN)];
    loop {
        match rustix::event::poll(&mut polled, Some(&timeout)) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(io(errno.into())),
        }
    }
    let events = polled
        .iter()
        .fold(PollFlags::empty(), |all, fd| all | fd.revents());
    if events.contains(PollFlags::ERR) {
        return Err(io(io::Error::from(rustix::io::Errno::NODEV)));
    }
    Ok(events.contains(PollFlags::IN))
}

fn read(device: BorrowedFd<'_>) -> Result<Vec<u8>, Error> {
    let mut buffer = vec![0; READ_BUFFER];
    loop {
        match rustix::io::read(device, buffer.as_mut_slice()) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                return Err(Error::Io {
                    doing: "read",
                    source: errno.into(),
                });
            }
        }
    }
}

fn send(device: BorrowedFd<'_>, reply: &[u8]) -> Result<(), Error> {
    rustix::io::write(device, reply)
        .map(drop)
        .map_err(|errno| Error::Io {
            doing: "answer FUSE_INIT",
            source: errno.into(),
        })
}

/// Makes the descriptor number behind `place` a duplicate of `device`.
fn put_over(device: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<(), Error> {
    // SAFETY: the number is open and owned by the session for longer than this call; `ManuallyDrop`
    // keeps this second owner from closing it.
    let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(place.as_raw_fd()) });
    rustix::io::dup3(device, &mut place, DupFlags::CLOEXEC).map_err(|errno| Error::Io {
        doing: "put the device in place",
        source: errno.into(),
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(field.try_into().ok()?))
}

fn set_u32(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(field) = bytes.get_mut(at..at + 4) {
        field.copy_from_slice(&value.to_ne_bytes());
    }
}
