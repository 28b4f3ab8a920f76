//! What containerd says when it does not do what it was asked to.

use std::path::PathBuf;

use tonic::{Code, Status};

use crate::oci::Digest;

/// Why a call to containerd failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Nobody serves at the socket.
    #[error("no containerd answers at {}: {why} (does it run? [containerd] address or --address names its socket)", socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        why: String,
    },
    /// The name cannot be that of a namespace.
    #[error("{0:?} cannot be a namespace of containerd: letters, digits, - _ and . only")]
    Namespace(String),
    /// containerd refuses.
    #[error("containerd at {}: {doing}: {message}{}", socket.display(), hint(*kind, message))]
    Refused {
        /// The socket.
        socket: PathBuf,
        /// What it was asked to do.
        doing: String,
        /// In which way.
        kind: Kind,
        /// In its words.
        message: String,
    },
    /// A blob of the content store is not what its name says.
    #[error("containerd's content store: {digest} {why}")]
    Content {
        /// Which one.
        digest: Digest,
        /// What is wrong with it.
        why: String,
    },
}

/// How containerd refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It does not have that.
    NotFound,
    /// It has that already.
    Exists,
    /// Not now: somebody else is at it, or a plugin does not answer.
    Unavailable,
    /// It is not in a state for that, as when content has another digest.
    Precondition,
    /// The request itself is wrong.
    Invalid,
    /// It cannot do that at all.
    Unimplemented,
    /// Anything else.
    Other,
}

impl Error {
    pub(super) fn call(socket: PathBuf, doing: String, status: &Status) -> Self {
        let kind = match status.code() {
            Code::NotFound => Kind::NotFound,
            Code::AlreadyExists => Kind::Exists,
            Code::Unavailable => Kind::Unavailable,
            Code::FailedPrecondition => Kind::Precondition,
            Code::InvalidArgument => Kind::Invalid,
            Code::Unimplemented => Kind::Unimplemented,
            _ => Kind::Other,
        };
        let message = match status.message() {
            "" => format!("{:?}", status.code()),
            said => said.to_owned(),
        };
        Self::Refused {
            socket,
            doing,
            kind,
            message,
        }
    }

    /// In which way containerd refused, if it did.
    #[must_use]
    pub const fn kind(&self) -> Option<Kind> {
        match self {
            Self::Refused { kind, .. } => Some(*kind),
            _ => None,
        }
    }

    /// Whether it says that it has that already.
    #[must_use]
    pub fn is_exists(&self) -> bool {
        self.kind() == Some(Kind::Exists)
    }

    /// Whether containerd does not reach the plugin that it would have to ask.
    #[must_use]
    pub fn is_out_of_reach(&self) -> bool {
        let cause = |message: &String| message.contains("connection error");
        matches!(self, Self::Refused { kind: Kind::Unavailable, message, .. } if cause(message))
    }

    /// Whether it says that it does not have that.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.kind() == Some(Kind::NotFound)
    }
}

/// For `map`: `None` if it is not there.
pub(super) fn if_found<T>(answer: Result<T, Error>) -> Result<Option<T>, Error> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// What to do about it, where that is known.
fn hint(kind: Kind, message: &str) -> &'static str {
    match kind {
        Kind::Unavailable if message.contains("connection error") => {
            " (does crfs serve run? containerd cannot reach it)"
        }
        _ if message.contains("snapshotter not loaded") => {
            " (containerd does not know it: crfs setup tells it of crfs)"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_was_done_where_and_what_to_do() {
        let said = |status: Status| {
            let error = Error::call("/run/c.sock".into(), "preparing a layer".into(), &status);
            error.to_string()
        };
        let unknown = said(Status::invalid_argument(
            "snapshotter not loaded: crfs: invalid argument",
        ));
        assert!(
            unknown.starts_with("containerd at /run/c.sock: preparing a layer: snapshotter"),
            "{unknown}"
        );
        assert!(unknown.contains("crfs setup"), "{unknown}");
        let gone = said(Status::unavailable("connection error: desc = \"…\""));
        assert!(gone.contains("crfs serve"), "{gone}");
        let silent = said(Status::internal(""));
        assert!(silent.ends_with("Internal"), "{silent}");
    }
}
