//! Why metadata could not be read or kept.

use std::io;
use std::path::{Path, PathBuf};

/// What went wrong in the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A newer crfs has written this root; nothing was touched.
    #[error(
        "{} was written by a newer crfs (schema {found}, this one knows up to {known}); run that \
         version, or give this one another root",
        path.display()
    )]
    NewerSchema {
        /// The root folder.
        path: PathBuf,
        /// The schema version found.
        found: u32,
        /// The newest this program knows.
        known: u32,
    },
    /// Another process works on the root.
    #[error("{} is in use by the crfs with process id {holder}; stop it first", path.display())]
    Locked {
        /// The root folder.
        path: PathBuf,
        /// The holder's process id, as it wrote it.
        holder: String,
    },
    /// The root folder's path cannot be part of mount options.
    #[error("the root folder {path:?} cannot be used: {why}")]
    BadRoot {
        /// The path as given.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
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
    /// The database refused or is damaged.
    #[error("metadata database: {0}")]
    Database(String),
    /// The store has been closed: the daemon is stopping.
    #[error("the metadata store is closed")]
    Closed,
}

impl Error {
    /// Wraps an I/O error with what was tried; for `map_err`.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// True if trying again later may help without anyone touching the node's files, as when the
    /// disk is full.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Io { .. } | Self::Database(_) | Self::Closed | Self::Locked { .. }
        )
    }
}
