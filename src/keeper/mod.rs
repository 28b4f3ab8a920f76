//! Keeps what must survive the server: the `/dev/fuse` descriptor of every mount, the listening
//! socket, and a memfd with what cannot be derived.
//!
//! A FUSE mount lives as long as somebody holds its descriptor. So a process that does next to nothing
//! holds them all, and the server, which does everything, may die at any moment: the keeper starts it
//! again and hands the descriptors over, readers wait meanwhile. Three processes:
//!
//! * **front** (`client`): `crfs serve` as an operator starts it. Makes sure that a keeper runs, asks it for
//!   the server, and waits. Holds nothing; killing it does no harm. The other commands ask and leave.
//! * **keeper** (`process`): one thread, one poll loop. Keeps descriptors, starts the server,
//!   restarts it when it dies or hangs. Leaves when no server is wanted and no layer is in its hands.
//! * **server** (`server`): the daemon. Knows its store only through [`protocol`], which is systemd's own, so
//!   under systemd there is neither front nor keeper and nothing else differs. [`Held`] is its side.
//!
//! Keeper and server hold the same descriptors, so either may die. Only both at once is a loss.
//!
//! What runs in the keeper is `process` and no more; what it shares with the others is the names (`folder`),
//! the messages ([`protocol`] and `control`), `signals`, and how those that only wait stay small (`memory`).
//! `main` calls [`run_if_keeper`] before anything else.

mod client;
mod control;
mod folder;
mod memory;
mod process;
mod program;
pub mod protocol;
mod server;
mod signals;

pub use client::{Attach, front, is_there, let_go, state, stop, upgrade};
pub use folder::Folder;
pub(crate) use memory::forget_code;
pub use process::{is_started_as, run_if_keeper};
pub use program::Program;
pub(crate) use protocol::wire;
pub use server::{Held, Mount, Open, OpenFile, Opened, Phase, State, is_server, tell_failure};

use std::io;
use std::time::Duration;

/// How long a server may take from SIGTERM to its end before it is killed. As much as the systemd unit allows
/// (`TimeoutStopSec`), and more than all that a stopping daemon waits for: one that is killed has not saved what it
/// learned of the images, and leaves reads unanswered.
pub const END_LIMIT: Duration = Duration::from_secs(30);

/// Name of containerd's listening socket in the store.
pub const LISTEN: &str = "listen";
/// Name of the CRI proxy's listening socket in the store.
pub const LISTEN_CRI: &str = "listen-cri";

/// Name of the memfd of [`State`] in the store.
pub const STATE: &str = "state";

/// Name of the server's lock among the descriptors that it is started with. The keeper takes the lock
/// and the server has it from its first moment to its last; it is in no store.
pub const LOCK: &str = "lock";

/// Whether this is the name of a layer, and not of what belongs to the server itself.
fn is_layer(name: &str) -> bool {
    ![LISTEN, LISTEN_CRI, STATE, LOCK].contains(&name)
}

/// The root folder, for the keeper and for a server that our keeper started. Not set under systemd.
pub const ROOT_VARIABLE: &str = "CRFS_KEEPER";

/// The keeper's name in `argv[0]` and for `ps`: how the one binary knows what it is. The keeper's whole
/// command line: the root folder is not in it, which often bears the daemon's name. So killing the
/// daemon by name or by command line spares what makes that harmless.
pub const KEEPER_NAME: &str = "fd-keeper";

/// What can go wrong between the daemon and its keeper.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The protocol with the store.
    #[error(transparent)]
    Protocol(#[from] protocol::Error),
    /// The keeper could not do it.
    #[error("the keeper refused: {0}")]
    Refused(String),
    /// Another server lives.
    #[error("another server runs for {0}")]
    Running(String),
    /// No keeper runs for this folder, and one was needed.
    #[error("no keeper runs for {0}")]
    NoKeeper(String),
    /// The keeper's answer is unknown to this version.
    #[error("the keeper gave an answer that this version does not know")]
    Answer,
    /// The memfd is not what this version writes.
    #[error("the kept table of mounts is not usable: {0}")]
    State(&'static str),
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
    fn io<E: Into<io::Error>>(doing: &'static str) -> impl Fn(E) -> Self {
        move |error| Self::Io {
            doing,
            source: error.into(),
        }
    }
}
