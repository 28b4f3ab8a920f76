//! Snapshotter errors to gRPC codes, in one place.
//!
//! containerd's client turns a code back into an error of its own (`errgrpc`): NotFound,
//! AlreadyExists, FailedPrecondition and InvalidArgument decide what it does next; everything else
//! ends its operation.

use tonic::{Code, Status};

use crate::snapshotter::Error;

/// Longest message, in bytes. It travels in a header, whose size clients bound.
const MAX_TEXT: usize = 2048;

/// The status that an error is told as.
#[must_use]
#[expect(
    clippy::needless_pass_by_value,
    reason = "used as a function in map_err"
)]
pub fn status(error: Error) -> Status {
    let mut text = error.to_string();
    if let Some((cut, _)) = text.char_indices().find(|(at, _)| *at >= MAX_TEXT) {
        text.truncate(cut);
    }
    Status::new(code(&error), text)
}

const fn code(error: &Error) -> Code {
    match error {
        Error::NotFound(_) | Error::ParentNotFound(_) => Code::NotFound,
        Error::AlreadyExists(_) => Code::AlreadyExists,
        Error::ParentNotCommitted(_) | Error::Invalid(_) | Error::Filter(_) => {
            Code::InvalidArgument
        }
        Error::NotActive(_)
        | Error::NoMounts(_)
        | Error::HasChildren { .. }
        | Error::BrokenChain { .. } => Code::FailedPrecondition,
        Error::Degraded { .. } | Error::Stopping => Code::Unavailable,
        Error::Store(_) | Error::Io { .. } | Error::Internal(_) => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshotter::Key;

    #[test]
    fn a_refused_removal_says_remove() {
        let key = Key::new("k".repeat(1 << 20)).unwrap();
        let status = status(Error::HasChildren { key, children: 2 });
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("remove"));
        assert!(status.message().len() <= MAX_TEXT);
    }
}
