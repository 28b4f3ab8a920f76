//! Datagrams with descriptors beside them.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix,
};

/// Most descriptors in one datagram (`SCM_MAX_FD` in the kernel).
const FDS_MAX: usize = 253;

/// The kernel refuses more descriptors in flight than `RLIMIT_NOFILE`; the receiver makes room.
const FLIGHT_TRIES: u32 = 100;
const FLIGHT_PAUSE: Duration = Duration::from_millis(10);

/// What was received.
#[derive(Debug)]
pub(crate) struct Received {
    /// Bytes of the datagram; 0 also when the other end of a connection is closed.
    pub length: usize,
    /// Descriptors that came along, close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// Bytes or descriptors were cut off, the latter also when this process may not open more.
    pub truncated: bool,
}

/// Sends one datagram, to `address` unless the socket is connected.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    address: Option<&SocketAddrUnix>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<(), Errno> {
    let parts = [IoSlice::new(bytes)];
    let flags = flags | SendFlags::NOSIGNAL;
    let mut tries = 0;
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Errno::INVAL);
        }
        let sent = match address {
            Some(address) => rustix::net::sendmsg_addr(socket, address, &parts, &mut beside, flags),
            None => rustix::net::sendmsg(socket, &parts, &mut beside, flags),
        };
        match sent {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::TOOMANYREFS) if tries < FLIGHT_TRIES => {
                tries += 1;
                thread::sleep(FLIGHT_PAUSE);
            }
            Err(errno) => return Err(errno),
        }
    }
}

/// Receives one datagram into `buffer`.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> Result<Received, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let got = loop {
        let mut parts = [IoSliceMut::new(buffer)];
        match rustix::net::recvmsg(socket, &mut parts, &mut beside, flags) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let fds = beside
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    let cut = ReturnFlags::TRUNC | ReturnFlags::CTRUNC;
    Ok(Received {
        length: got.bytes,
        fds,
        truncated: got.flags.intersects(cut),
    })
}
