//! systemd's file-descriptor-store protocol, both ways: what a service says to the store and finds
//! in its environment, and what a store reads.
//!
//! Source: `sd_notify(3)`, `sd_listen_fds(3)`, `sd_pid_notify_with_fds(3)`, and systemd's
//! "File Descriptor Store" page. Messages are datagrams of `KEY=VALUE` lines on the socket named by
//! `NOTIFY_SOCKET`, descriptors travel beside them; a service finds its descriptors from number 3 on,
//! named by `LISTEN_FDNAMES`. The server speaks only this, so systemd and our keeper are one to it.

mod inherited;
mod message;
mod notify;
pub(crate) mod wire;

pub use inherited::{Inherited, inherit};
pub use message::{Descriptors, Message};
pub(crate) use notify::is_protocol_variable;
pub use notify::{Identity, Notify};

use std::fmt;
use std::io;

/// Longest name of a descriptor, in bytes (`FDNAME_MAX` in systemd).
pub const NAME_MAX: usize = 255;

/// Longest datagram to a store, in bytes (`NOTIFY_BUFFER_MAX` in systemd).
pub const MESSAGE_MAX: usize = 4096;

/// Longest sum of all names with their separators, in bytes. They are handed over in one environment
/// string, which the kernel limits to 128 KiB (`MAX_ARG_STRLEN`) with its key and final zero. Names of
/// 9 bytes leave room for 13,000 descriptors.
pub const NAMES_MAX: usize = 128 * 1024 - 64;

/// Number of the first descriptor handed to a service (`SD_LISTEN_FDS_START`).
pub const FIRST_FD: i32 = 3;

/// The name of a stored descriptor: 1 to 255 printable ASCII characters, no colon.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FdName(Box<str>);

impl FdName {
    /// Checks `name` against systemd's rules.
    pub fn new(name: &str) -> Result<Self, Error> {
        let printable = |byte: u8| (b' '..0x7f).contains(&byte) && byte != b':';
        if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(printable) {
            return Err(Error::Name(name.chars().take(NAME_MAX).collect()));
        }
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FdName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What can be wrong with the protocol.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name systemd would refuse.
    #[error("{0:?} is no name for a stored descriptor (1 to 255 printable ASCII, no colon)")]
    Name(String),
    /// More names than can be handed over at a start.
    #[error("descriptor {0} does not fit: the names of all stored ones may take 128 KiB")]
    TooManyNames(FdName),
    /// `NOTIFY_SOCKET` is neither an absolute path nor an abstract name.
    #[error("NOTIFY_SOCKET is {0:?}: want an absolute path, or @ and an abstract name")]
    Address(String),
    /// `LISTEN_FDS` and its companions contradict each other.
    #[error("the descriptors handed to this process are not usable: {0}")]
    Inherited(String),
    /// A text with a newline or longer than a datagram.
    #[error("a message to the descriptor store has a newline or is over 4096 bytes")]
    Text,
    /// The store took too long.
    #[error("the descriptor store did not answer in time")]
    Silent,
    /// A system call failed.
    #[error("cannot {doing}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(doing: &'static str) -> impl Fn(rustix::io::Errno) -> Self {
        move |errno| Self::Io {
            doing,
            source: errno.into(),
        }
    }

    /// Whether nobody listens at the store's socket: the store is dead.
    pub fn is_dead_store(&self) -> bool {
        matches!(self, Self::Io { source, .. } if matches!(
            source.kind(),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
        ))
    }
}

#[cfg(test)]
mod tests;
