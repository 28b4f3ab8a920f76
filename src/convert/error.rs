//! Why an image was not converted.

use std::path::{Path, PathBuf};

use crate::oci::{Digest, ManifestError};
use crate::registry;
use crate::stargz::write;

/// Why an image was not converted. The destination then has at most unnamed blobs more than before.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument does not name an image.
    #[error("{text:?} does not name an image: {why}")]
    Location {
        /// The argument.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// A registry cannot be read or written.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// An OCI layout is not one, or does not have the image.
    #[error("OCI layout {path}: {why}")]
    Layout {
        /// Its folder.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A manifest, index or config does not parse.
    #[error("{digest}: {source}")]
    Manifest {
        /// Which document.
        digest: Digest,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// A document is of a kind that cannot be converted.
    #[error("{digest} is neither an image nor an index, but {media_type:?}")]
    Unsupported {
        /// Which document.
        digest: Digest,
        /// What it says it is.
        media_type: String,
    },
    /// The config and the manifest of an image do not fit together.
    #[error("image {digest}: {why}")]
    Inconsistent {
        /// The manifest.
        digest: Digest,
        /// What does not fit.
        why: String,
    },
    /// Content is not what its descriptor says.
    #[error("{what} {expected} has the wrong content: {got}")]
    WrongContent {
        /// What kind of content.
        what: &'static str,
        /// The digest it should have.
        expected: Digest,
        /// What it has instead.
        got: String,
    },
    /// A layer could not be written.
    #[error("layer {layer}: {source}")]
    Layer {
        /// Which layer.
        layer: Digest,
        /// What went wrong.
        source: write::Error,
    },
    /// A task of the conversion died.
    #[error("layer {0}: the task that wrote it died")]
    Died(Digest),
    /// Indexes within indexes, deeper than any image has them.
    #[error("index {0} is nested too deeply")]
    TooDeep(Digest),
}

impl Error {
    /// Whether a file is not there.
    pub(super) fn is_missing_file(&self) -> bool {
        let not_found = std::io::ErrorKind::NotFound;
        matches!(self, Self::File { source, .. } if source.kind() == not_found)
    }

    /// For `map_err`: something went wrong with the file at `path`.
    pub(super) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::File { path, source }
    }

    /// For `map_err`: a document does not parse.
    pub(super) fn manifest(digest: Digest) -> impl FnOnce(ManifestError) -> Self {
        move |source| Self::Manifest { digest, source }
    }
}
