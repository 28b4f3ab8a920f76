//! Why the snapshotter refuses or fails.

use std::io;
use std::path::{Path, PathBuf};

use crate::oci::Digest;
use crate::snapshotter::filter::FilterError;
use crate::snapshotter::model::Key;
use crate::store;

/// What a call of the snapshotter ends with if it does not succeed. Keys in messages are cut: a
/// key may be a megabyte long.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such snapshot.
    #[error("snapshot {0}: not found")]
    NotFound(Key),
    /// The parent that was named does not exist.
    #[error("parent snapshot {0}: not found")]
    ParentNotFound(Key),
    /// The parent that was named is still active.
    #[error("parent snapshot {0} is not committed")]
    ParentNotCommitted(Key),
    /// The key or name is taken.
    #[error("snapshot {0}: already exists")]
    AlreadyExists(Key),
    /// Only an active snapshot can be committed.
    #[error("snapshot {0} is not active")]
    NotActive(Key),
    /// Only an active snapshot or a view has mounts.
    #[error("snapshot {0} is neither active nor a view, it has no mounts")]
    NoMounts(Key),
    /// Others build on it.
    #[error("cannot remove snapshot {key}: it is the parent of {children} other(s)")]
    HasChildren {
        /// The snapshot.
        key: Key,
        /// How many snapshots have it as their parent.
        children: usize,
    },
    /// A layer below it has been lost from this node.
    #[error(
        "snapshot {key} needs {parent}, which is lost from this node; remove the image and pull \
         it again"
    )]
    BrokenChain {
        /// The snapshot asked for.
        key: Key,
        /// The one that is missing.
        parent: Key,
    },
    /// A lazy layer below it cannot be mounted at present; it is tried again by itself.
    #[error("layer {layer} is not available at present: {why}")]
    Degraded {
        /// Digest of the compressed blob.
        layer: Digest,
        /// Why the last try failed.
        why: String,
    },
    /// An argument is not what it has to be.
    #[error("{0}")]
    Invalid(String),
    /// A filter cannot be parsed.
    #[error("filter: {0}")]
    Filter(#[from] FilterError),
    /// Metadata could not be kept or read.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The daemon is stopping.
    #[error("the snapshotter is stopping")]
    Stopping,
    /// A task ended without an answer, which is a bug.
    #[error("internal: {0}")]
    Internal(String),
}

impl Error {
    /// Wraps an I/O error with what was tried; for `map_err`.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
