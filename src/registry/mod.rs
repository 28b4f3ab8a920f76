//! OCI distribution client: hosts, auth, ranges, redirects, retry, deadlines.

mod source;

pub use source::{ByteStream, RangeSource};

/// Why a registry could not be read.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The answer was not what was asked for.
    #[error("{0}")]
    Protocol(String),
}
