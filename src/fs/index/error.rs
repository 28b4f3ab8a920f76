//! What can be wrong with an index file, or with the tree that one is made of.

use std::io;
use std::path::{Path, PathBuf};

use crate::oci::Digest;
use crate::stargz;

/// How much of a hostile name a message shows, in bytes.
const SHOWN: usize = 120;

/// Why an index cannot be built, opened or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read or written.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what was written: it has to be built again.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// The file was written by another version of crfs: it has to be built again.
    #[error("the index has format version {found}, this crfs reads version {expected}")]
    Version {
        /// In the file.
        found: u32,
        /// Of this program.
        expected: u32,
    },
    /// The file belongs to another TOC.
    #[error("the index was built from toc {found}, expected {expected}")]
    OtherToc {
        /// In the file.
        found: Digest,
        /// Asked for.
        expected: Digest,
    },
    /// The TOC is refused.
    #[error(transparent)]
    Toc(#[from] stargz::Error),
    /// The TOC's entries do not make a tree.
    #[error("{name}: {why}")]
    Tree {
        /// The entry, quoted and cut.
        name: String,
        /// What is wrong with it.
        why: TreeError,
    },
}

/// Where an index file is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the index is damaged: {what} at {at}; it has to be built again")]
pub struct Damaged {
    /// What is wrong.
    pub what: &'static str,
    /// Where: an offset in bytes, or the number of a record.
    pub at: u64,
}

/// Why an entry of a TOC does not fit into the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// A whiteout of nothing, of `.` or of `..`.
    #[error("a whiteout must name a file (image-spec, layer.md, whiteouts)")]
    Whiteout,
    /// Something lies below a whiteout.
    #[error("it lies below a whiteout, which is no folder")]
    BelowWhiteout,
    /// Its parent is there, but is no folder. tar would fail or follow a link.
    #[error("its parent is not a folder")]
    ParentKind,
    /// Something else than a folder has the root's name.
    #[error("the root must be a folder")]
    Root,
    /// A path component is empty, `.`, `..` or longer than 255 bytes.
    #[error("it has a name that no folder can hold")]
    Name,
    /// A hard link to something that the layer does not hold.
    #[error("it is a hard link to a file that is not in the layer")]
    LinkMissing,
    /// A hard link to itself, directly or through others.
    #[error("it is a hard link that leads back to itself")]
    LinkLoop,
    /// A hard link to a folder.
    #[error("it is a hard link to a folder")]
    LinkFolder,
    /// More files and folders than an index holds.
    #[error("the tree has more than {0} files and folders")]
    TooMany(u32),
    /// The names, chunks or attributes need more room than 32-bit offsets reach.
    #[error("the layer needs an index larger than the format allows")]
    TooLarge,
    /// More different texts than are held in memory while an index is made.
    #[error("the layer has more than {most} MiB of {0}", most = HELD >> 20)]
    TooMuch(&'static str),
    /// A chunk lies further inside a gzip member than the format can say.
    #[error("a chunk lies more than 4 GiB inside one gzip member")]
    InnerOffset,
}

/// Most bytes of the targets of symlinks, and of different attributes: they are in memory until the index is
/// written. A million symlinks of 60 bytes, or as many files with some attributes each, have less.
pub(super) const HELD: usize = 64 << 20;

impl TreeError {
    /// The error with the entry that it is about.
    pub(super) fn of(self, name: &[u8]) -> Error {
        let cut = name.get(..SHOWN).unwrap_or(name);
        Error::Tree {
            name: format!("{:?}", String::from_utf8_lossy(cut)),
            why: self,
        }
    }
}

/// For `map_err`: an I/O error with what was tried on what.
pub(super) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { what, path, source }
}
