//! The service's voice: datagrams to whoever listens at `NOTIFY_SOCKET`.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;

use super::{Error, FdName, MESSAGE_MAX, wire};

/// How long a full queue of the store is waited for.
const SEND_WAIT: Duration = Duration::from_secs(5);

/// Whether the store should drop a descriptor by itself when it hangs up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// `FDPOLL=0`: kept until removed. Right for `/dev/fuse` and for listening sockets: a store that
    /// polls them is woken for every single request.
    Kept,
    /// The store may drop it when it hangs up.
    Polled,
}

/// A way to the store. Sends to an address, so it outlives a store that is replaced at that address.
#[derive(Debug)]
pub struct Notify {
    socket: OwnedFd,
    address: SocketAddrUnix,
}

impl Notify {
    /// From the variable `NOTIFY_SOCKET`; `None` if it is not set.
    pub fn from_env() -> Result<Option<Self>, Error> {
        match std::env::var_os("NOTIFY_SOCKET") {
            Some(name) if !name.is_empty() => Self::to(&name).map(Some),
            _ => Ok(None),
        }
    }

    /// To a socket by path.
    pub fn to_path(path: &Path) -> Result<Self, Error> {
        Self::to(path.as_os_str())
    }

    /// `name` as in `NOTIFY_SOCKET`: an absolute path, or `@` and an abstract name.
    pub fn to(name: &OsStr) -> Result<Self, Error> {
        let address = match name.as_bytes() {
            [b'/', ..] => SocketAddrUnix::new(name),
            [b'@', rest @ ..] if !rest.is_empty() => SocketAddrUnix::new_abstract_name(rest),
            _ => return Err(Error::Address(name.to_string_lossy().into_owned())),
        };
        let address = address.map_err(Error::io("use NOTIFY_SOCKET"))?;
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(Error::io("make a notification socket"))?;
        sockopt::set_socket_timeout(&socket, Timeout::Send, Some(SEND_WAIT))
            .map_err(Error::io("limit the wait of a notification socket"))?;
        Ok(Self { socket, address })
    }

    /// `READY=1`: start-up is over, requests are being served.
    pub fn ready(&self) -> Result<(), Error> {
        self.send("READY=1", &[], SendFlags::empty())
    }

    /// `STOPPING=1`: this process ends because it wants to, and is not to be started again.
    pub fn stopping(&self) -> Result<(), Error> {
        self.send("STOPPING=1", &[], SendFlags::empty())
    }

    /// `STATUS=`: one line for people.
    pub fn status(&self, line: &str) -> Result<(), Error> {
        if line.contains('\n') {
            return Err(Error::Text);
        }
        self.send(&format!("STATUS={line}"), &[], SendFlags::empty())
    }

    /// `WATCHDOG=1`: everything moves. Never waits: a store that is slow to read is no reason to stop.
    pub fn watchdog(&self) -> Result<(), Error> {
        self.send("WATCHDOG=1", &[], SendFlags::DONTWAIT)
    }

    /// `WATCHDOG_USEC=`: changes the silence after which the store acts.
    pub fn watchdog_interval(&self, silence: Duration) -> Result<(), Error> {
        let message = format!("WATCHDOG_USEC={}", silence.as_micros());
        self.send(&message, &[], SendFlags::empty())
    }

    /// `FDSTORE=1`: gives the store a duplicate of `fd`. It is safe from this process's death when
    /// this returns: what is in the store's queue is not lost with the sender.
    pub fn store(&self, name: &FdName, fd: BorrowedFd<'_>, kind: Identity) -> Result<(), Error> {
        let poll = match kind {
            Identity::Kept => "\nFDPOLL=0",
            Identity::Polled => "",
        };
        self.send(
            &format!("FDSTORE=1\nFDNAME={name}{poll}"),
            &[fd],
            SendFlags::empty(),
        )
    }

    /// `FDSTOREREMOVE=1`: the store closes what it keeps under `name`.
    pub fn remove(&self, name: &FdName) -> Result<(), Error> {
        self.send(
            &format!("FDSTOREREMOVE=1\nFDNAME={name}"),
            &[],
            SendFlags::empty(),
        )
    }

    /// `BARRIER=1`: waits until the store has worked through everything sent before.
    pub fn barrier(&self, limit: Duration) -> Result<(), Error> {
        let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
            .map_err(Error::io("make a pipe for the barrier"))?;
        self.send("BARRIER=1", &[theirs.as_fd()], SendFlags::empty())?;
        drop(theirs);
        let limit = Timespec::try_from(limit).map_err(|_| Error::Silent)?;
        let mut polled = [PollFd::new(&ours, PollFlags::empty())];
        loop {
            match rustix::event::poll(&mut polled, Some(&limit)) {
                Ok(0) => return Err(Error::Silent),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(Error::io("wait for the barrier")(errno)),
            }
        }
    }

    fn send(&self, text: &str, fds: &[BorrowedFd<'_>], flags: SendFlags) -> Result<(), Error> {
        if text.len() > MESSAGE_MAX {
            return Err(Error::Text);
        }
        wire::send(
            self.socket.as_fd(),
            Some(&self.address),
            text.as_bytes(),
            fds,
            flags,
        )
        .map_err(Error::io("send to the descriptor store"))
    }
}

/// Variables of the protocol, which must not reach a process they are not meant for.
pub(crate) fn is_protocol_variable(name: &OsString) -> bool {
    let bytes = name.as_bytes();
    bytes.starts_with(b"LISTEN_")
        || bytes.starts_with(b"WATCHDOG_")
        || matches!(bytes, b"NOTIFY_SOCKET" | b"FDSTORE")
}
