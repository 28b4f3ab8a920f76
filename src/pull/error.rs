//! Why an image was not pulled or not completed.

use crate::containerd;
use crate::oci::{Digest, ManifestError};
use crate::registry::{self, Unfound};

/// Why an image was not pulled or not completed. What was fetched until then is used by the next attempt.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// containerd or its snapshotter.
    #[error(transparent)]
    Containerd(#[from] containerd::Error),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// What the name leads to has no such image, or a document of it does not parse.
    #[error("{unfound}{hint}", unfound = .0, hint = choice(.0))]
    Unfound(#[from] Unfound),
    /// Config and manifest do not fit together.
    #[error("image {digest}: {why}")]
    Inconsistent {
        /// The manifest.
        digest: Digest,
        /// What does not fit.
        why: String,
    },
    /// A layer's tar is another one than the config says.
    #[error("layer {layer}: its tar has digest {got}, the image's config says {expected}")]
    WrongTar {
        /// The layer's blob.
        layer: Digest,
        /// What the config says.
        expected: Digest,
        /// What came of it.
        got: Digest,
    },
    /// A snapshotter said that a layer is there, and it is not.
    #[error(
        "layer {layer}: snapshotter {snapshotter} says that it is there, but has no snapshot of it (crfs fsck looks at what \
         it has)"
    )]
    Lost {
        /// The layer's blob.
        layer: Digest,
        /// The snapshotter.
        snapshotter: String,
    },
    /// Somebody else has been writing the same blob for too long.
    #[error(
        "blob {digest}: another client of containerd has been fetching it for {minutes} minutes without an end"
    )]
    Busy {
        /// The blob.
        digest: Digest,
        /// How long was waited.
        minutes: u64,
    },
    /// The blob that came is not the one that was asked for, twice.
    #[error("blob {digest} of {image}: the registry sends other bytes: {why}")]
    WrongBlob {
        /// The blob.
        digest: Digest,
        /// Where it came from.
        image: String,
        /// What containerd says.
        why: String,
    },
    /// containerd has no such image.
    #[error(
        "containerd has no image {name} in namespace {namespace}: pull it first (ctr -n {namespace} image ls lists them)"
    )]
    NoImage {
        /// Its name.
        name: String,
        /// The namespace.
        namespace: String,
    },
    /// Nothing says where the image came from.
    #[error("image {0}: its name is not that of a registry, and nothing says where it came from")]
    NoSource(String),
    /// A task died.
    #[error("blob {0}: the task that fetched it died")]
    Died(Digest),
}

impl Error {
    /// For `map_err`: a document does not parse.
    pub(super) fn manifest(digest: Digest) -> impl FnOnce(ManifestError) -> Self {
        move |source| Self::Unfound(Unfound::Manifest { digest, source })
    }

    /// Whether another attempt may go on where this one has stopped.
    pub(super) fn may_go_on(&self) -> bool {
        match self {
            Self::Registry(error) => error.is_transient(),
            Self::Busy { .. } => true,
            _ => false,
        }
    }
}

/// How to choose another image of the same name.
const fn choice(unfound: &Unfound) -> &'static str {
    match unfound {
        Unfound::Platform { .. } => " (--platform chooses)",
        _ => "",
    }
}
