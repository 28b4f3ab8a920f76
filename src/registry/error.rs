//! Why a registry operation failed: typed, cheap to clone (a failure is shared by all who waited
//! for it), and worded for whoever has to do something about it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::oci::Digest;

/// Why a registry could not be read or written. `what` names the object and where it lies, for
/// example `blob sha256:… of ghcr.io/a/b`.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection, or it broke.
    #[error("{what}: host {host} cannot be reached: {why}")]
    Unreachable {
        /// The object.
        what: Arc<str>,
        /// Who did not answer.
        host: String,
        /// The cause, innermost last.
        why: String,
    },
    /// The connection is not trustworthy.
    #[error(
        "{what}: tls with {host} failed: {why} (plain http is used only for hosts in registry.plain_http)"
    )]
    Tls {
        /// The object.
        what: Arc<str>,
        /// The other side.
        host: String,
        /// What is wrong with it.
        why: String,
    },
    /// Connected, but nothing (or next to nothing) arrived for too long.
    #[error("{what}: host {host} sent nothing useful for {after:?}")]
    Stalled {
        /// The object.
        what: Arc<str>,
        /// Who went silent.
        host: String,
        /// How long was waited.
        after: Duration,
    },
    /// A body ended early.
    #[error("{what}: the answer of {host} ended {left} bytes early")]
    Truncated {
        /// The object.
        what: Arc<str>,
        /// Who answered.
        host: String,
        /// Bytes that are missing.
        left: u64,
    },
    /// An HTTP status that no other variant stands for.
    #[error("{what}: host {host} answered {status}{detail}")]
    Status {
        /// The object.
        what: Arc<str>,
        /// Who answered.
        host: String,
        /// HTTP status code.
        status: u16,
        /// What the answer's body says, if anything: starts with `: `.
        detail: String,
        /// How long the host asked to be left alone.
        retry_after: Option<Duration>,
    },
    /// 404 or 410: it is not there (any more).
    #[error("{what}: not found at {host}{detail}")]
    NotFound {
        /// The object.
        what: Arc<str>,
        /// Who answered.
        host: String,
        /// What the answer's body says, if anything: starts with `: `.
        detail: String,
    },
    /// 401 or 403: no credentials, wrong ones, or not for this.
    #[error("{what}: {status} from host {host}: {hint}")]
    Unauthorized {
        /// The object.
        what: Arc<str>,
        /// Who refused.
        host: String,
        /// HTTP status code.
        status: u16,
        /// What was tried and where credentials are looked for.
        hint: String,
    },
    /// 416: the host says that the range lies outside the blob.
    #[error("{what}: host {host} has no range {start}-{end}: the descriptor lies or the host does")]
    Unsatisfiable {
        /// The object.
        what: Arc<str>,
        /// Who answered.
        host: String,
        /// First byte asked for.
        start: u64,
        /// First byte not asked for.
        end: u64,
    },
    /// A redirect that is not followed.
    #[error("{what}: redirect by {host} refused: {why}")]
    Redirect {
        /// The object.
        what: Arc<str>,
        /// Who sent it.
        host: String,
        /// Why it is not followed.
        why: String,
    },
    /// A registry led to an address it has no business with.
    #[error(
        "{what}: {host} is not a public address (add it to registry.allow_private if it may be asked)"
    )]
    Egress {
        /// The object.
        what: Arc<str>,
        /// The host that was not asked.
        host: String,
    },
    /// Larger than a document of its kind may be.
    #[error("{what}: larger than the {max} bytes it may have")]
    TooLarge {
        /// The object.
        what: Arc<str>,
        /// The limit.
        max: u64,
    },
    /// The bytes are not those that were asked for.
    #[error("{what}: {host} sent content with digest {got}")]
    WrongContent {
        /// The object.
        what: Arc<str>,
        /// Who sent it.
        host: String,
        /// Digest of what came.
        got: Digest,
    },
    /// Credentials exist but cannot be had.
    #[error("credentials from {place}: {why}")]
    Credentials {
        /// File or helper.
        place: String,
        /// What is wrong.
        why: String,
        /// Whether it may be over soon, as with a program that fails or a server that is down.
        passing: bool,
    },
    /// An operation went on for too long without progress.
    #[error("gave up after {after:?} without progress: {last}")]
    Deadline {
        /// The deadline.
        after: Duration,
        /// What kept failing.
        last: Arc<Error>,
    },
    /// What is to be pushed cannot be read.
    #[error("cannot read {path}: {source}")]
    Local {
        /// Which file.
        path: String,
        /// The cause.
        source: Arc<io::Error>,
    },
    /// The client cannot be set up.
    #[error("registry client: {0}")]
    Setup(String),
    /// The answer was not what was asked for.
    #[error("{0}")]
    Protocol(String),
}

/// What an [`Error`] comes down to, for whoever has to do something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Other credentials are needed.
    Unauthorized,
    /// It is not there (any more).
    NotFound,
    /// The registry does not answer, or nothing of use, or must not be asked.
    Unreachable,
    /// Everything else.
    Other,
}

impl Error {
    /// What it comes down to.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Deadline { last, .. } => last.trouble(),
            Self::Unauthorized { .. } | Self::Credentials { .. } => Trouble::Unauthorized,
            Self::NotFound { .. } => Trouble::NotFound,
            Self::Tls { .. } | Self::Egress { .. } => Trouble::Unreachable,
            error if error.is_transient() => Trouble::Unreachable,
            _ => Trouble::Other,
        }
    }

    /// Whether the same request may succeed later without anybody doing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Stalled { .. } | Self::Truncated { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..=599),
            Self::Deadline { last, .. } => last.is_transient(),
            Self::Credentials { passing, .. } => *passing,
            _ => false,
        }
    }

    /// Whether the host says that the object is not there.
    #[must_use]
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether other or newer credentials could help.
    #[must_use]
    pub const fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Unauthorized { .. })
    }

    /// How long the host asked to be left alone.
    pub(super) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
