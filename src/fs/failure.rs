//! What goes wrong with requests, sorted: for metrics and for people.

use crate::blob::ReadError;
use crate::fs::Error;
use crate::registry::Trouble;

/// Why a request was answered with an error that means something is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The content did not come before `[fuse] read_deadline`.
    Deadline,
    /// The registry wants other credentials.
    Unauthorized,
    /// The registry does not have the blob any more.
    NotFound,
    /// The registry does not answer.
    Unreachable,
    /// The registry answers with something else.
    Registry,
    /// What came is not the promised content.
    Corrupt,
    /// The index on this node's disk is damaged.
    Damaged,
    /// The layer was removed while the read waited.
    Closed,
    /// A bug in crfs panicked.
    Panic,
    /// A request for what there is not: a bug, of crfs or of the kernel.
    Senseless,
}

impl Failure {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Deadline,
        Self::Unauthorized,
        Self::NotFound,
        Self::Unreachable,
        Self::Registry,
        Self::Corrupt,
        Self::Damaged,
        Self::Closed,
        Self::Panic,
        Self::Senseless,
    ];

    /// Its name: a label value in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deadline => "deadline",
            Self::Unauthorized => "unauthorized",
            Self::NotFound => "not_found",
            Self::Unreachable => "unreachable",
            Self::Registry => "registry",
            Self::Corrupt => "corrupt",
            Self::Damaged => "damaged",
            Self::Closed => "closed",
            Self::Panic => "panic",
            Self::Senseless => "senseless",
        }
    }

    /// Its place in [`Self::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// What an error is, if it means that something is wrong; `None` if the answer is just no.
    #[must_use]
    pub fn of(error: &Error) -> Option<Self> {
        match error {
            Error::Deadline(_) => Some(Self::Deadline),
            Error::Damaged(_) => Some(Self::Damaged),
            Error::ShortChunk { .. } => Some(Self::Corrupt),
            Error::NoNode(_) => Some(Self::Senseless),
            Error::Content(error) => Some(Self::of_content(error)),
            Error::NoEntry
            | Error::LongName
            | Error::NotFolder(_)
            | Error::NotFile(_)
            | Error::NotSymlink(_)
            | Error::NoAttribute
            | Error::SmallBuffer => None,
        }
    }

    fn of_content(error: &ReadError) -> Self {
        match error {
            ReadError::OutOfRange { .. } => Self::Senseless,
            ReadError::Corrupt { .. } => Self::Corrupt,
            ReadError::Closed { .. } => Self::Closed,
            ReadError::Source { source, .. } => match source.trouble() {
                Trouble::Unauthorized => Self::Unauthorized,
                Trouble::NotFound => Self::NotFound,
                Trouble::Unreachable => Self::Unreachable,
                Trouble::Other => Self::Registry,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::Ino;
    use crate::oci::Digest;
    use crate::registry;

    #[test]
    fn every_failure_has_a_name_of_its_own_and_an_error() {
        for (at, failure) in Failure::ALL.into_iter().enumerate() {
            assert_eq!(failure.index(), at);
            let same = Failure::ALL
                .iter()
                .filter(|other| other.name() == failure.name());
            assert_eq!(same.count(), 1, "{failure:?}");
        }
        let blob = Digest::of(b"");
        let source = |source| Error::Content(ReadError::Source { blob, source });
        let unreachable = registry::Error::Unreachable {
            what: "blob".into(),
            host: "r.io".to_owned(),
            why: "refused".to_owned(),
        };
        for (error, failure) in [
            (
                Error::Deadline(std::time::Duration::ZERO),
                Some(Failure::Deadline),
            ),
            (source(unreachable), Some(Failure::Unreachable)),
            (
                source(registry::Error::Protocol("?".to_owned())),
                Some(Failure::Registry),
            ),
            (ReadError::Closed { blob }.into(), Some(Failure::Closed)),
            (Error::NoNode(Ino(7)), Some(Failure::Senseless)),
            (Error::NoEntry, None),
        ] {
            assert_eq!(Failure::of(&error), failure, "{error}");
        }
    }
}
