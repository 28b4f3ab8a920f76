//! Why a layer was not written as eStargz.
//!
//! Two kinds, which a caller treats differently: an [`Unsuitable`] layer is sound, but eStargz
//! cannot carry it (or a reader would see another tree than an unpacker), so it is left as it is;
//! everything else means that the conversion failed.

use std::io;

/// Why a layer could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The layer has to be left as it is.
    #[error("{0}")]
    Unsuitable(#[from] Unsuitable),
    /// The input cannot be read, or its gzip stream is damaged.
    #[error("reading the layer: {0}")]
    Input(#[source] io::Error),
    /// The output or a temporary file cannot be written.
    #[error("writing the layer: {0}")]
    Output(#[source] io::Error),
}

/// What in a layer's tar keeps it from becoming eStargz. Names are shown with escapes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsuitable {
    /// A name, link target or xattr name is not UTF-8, and the TOC is JSON.
    #[error("{what} {text:?} is not UTF-8, which the table of contents cannot hold")]
    NotUtf8 {
        /// Which string.
        what: &'static str,
        /// The string, lossily.
        text: String,
    },
    /// The entry is a sparse file, in any of the three ways GNU tar writes them.
    #[error("{name:?} is a sparse file")]
    Sparse {
        /// The entry.
        name: String,
    },
    /// The entry is of a kind that no runtime unpacks.
    #[error("{name:?} is of the unknown kind {flag:?}")]
    UnknownKind {
        /// The entry.
        name: String,
        /// Its type flag.
        flag: char,
    },
    /// The name leaves the root, or has a part or a length that readers refuse.
    #[error("name {name:?} {why}")]
    Name {
        /// The entry.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A hard link whose target a reader would not find.
    #[error("{name:?} is a hard link to {target:?}, {why}")]
    HardLink {
        /// The link.
        name: String,
        /// What it points to.
        target: String,
        /// What is wrong with the target.
        why: &'static str,
    },
    /// A later entry replaces an earlier one in a way that a list of entries cannot express.
    #[error("{name:?} replaces {what}")]
    Replaces {
        /// The later entry.
        name: String,
        /// What it replaces.
        what: &'static str,
    },
    /// A number in a header does not fit where readers put it.
    #[error("{name:?} has a {field} that is out of range")]
    OutOfRange {
        /// The entry.
        name: String,
        /// Which field.
        field: &'static str,
    },
    /// A file of the layer has a name that the format reserves for its own files.
    #[error("{0:?} is a name the format keeps for itself")]
    Reserved(&'static str),
    /// The tar is not one that unpackers accept.
    #[error("the tar is malformed at byte {at}: {why}")]
    Malformed {
        /// Where, in the uncompressed tar.
        at: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// The table of contents would be larger than readers accept.
    #[error("its table of contents would have {0} bytes, more than readers accept")]
    TocTooLarge(u64),
}
