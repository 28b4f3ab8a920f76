//! Why a file system request fails.

use std::time::Duration;

use crate::blob::ReadError;
use crate::fs::index::{Damaged, Ino};

/// Why a request is not answered with what was asked for. `errno.rs` says what the kernel is told.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The folder has no entry of this name.
    #[error("no such file or folder")]
    NoEntry,
    /// The name is longer than any file's can be.
    #[error("the name is longer than 255 bytes")]
    LongName,
    /// The layer has no node of this id: the kernel asks for something it was never told of.
    #[error("there is no node {}", .0.0)]
    NoNode(Ino),
    /// The node is not a folder.
    #[error("node {} is not a folder", .0.0)]
    NotFolder(Ino),
    /// The node is not a regular file.
    #[error("node {} is not a regular file", .0.0)]
    NotFile(Ino),
    /// The node is not a symbolic link.
    #[error("node {} is not a symbolic link", .0.0)]
    NotSymlink(Ino),
    /// The file has no extended attribute of this name.
    #[error("no such extended attribute")]
    NoAttribute,
    /// The caller's buffer is too small for the value.
    #[error("the value does not fit into the caller's buffer")]
    SmallBuffer,
    /// The index is damaged.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// The content could not be had.
    #[error(transparent)]
    Content(#[from] ReadError),
    /// A chunk came shorter than the index says.
    #[error("chunk {chunk} has {found} bytes, the index needs {needed}")]
    ShortChunk {
        /// Number of the chunk.
        chunk: u32,
        /// Bytes that came.
        found: usize,
        /// Bytes that were needed.
        needed: usize,
    },
    /// The content did not come in time.
    #[error("the content did not come within {0:?}")]
    Deadline(Duration),
}
