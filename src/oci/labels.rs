//! The labels by which containerd tells a remote snapshotter what a snapshot is about.
//!
//! Source: containerd `core/unpack/unpacker.go` and `pkg/snapshotters/annotations.go`. All of them
//! may be missing, and with annotations switched off an image's author can set most of them: they
//! are hints until the manifest they lead to has been verified.

use std::collections::HashMap;

use crate::oci::{Digest, Reference};

/// Label keys of a snapshot.
pub mod label {
    /// The chain id that a committed snapshot will have; its presence asks for a lazy answer.
    pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
    /// The reference as it was pulled.
    pub const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";
    /// Digest of the manifest the layer belongs to.
    pub const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";
    /// Digest of the compressed layer blob.
    pub const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
    /// Digest of the eStargz TOC, from the layer descriptor's annotation of the same name.
    pub const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
}

/// Annotation keys of a layer descriptor.
pub mod annotation {
    /// Digest of the TOC's JSON, uncompressed (stargz-snapshotter `docs/estargz.md`).
    pub const TOC_DIGEST: &str = super::label::TOC_DIGEST;
    /// Where the TOC begins in the blob, in bytes, as decimal text: a hint that saves a request. crfs
    /// writes it; readers that do not know it miss nothing.
    pub const TOC_OFFSET: &str = "containerd.io/snapshot/crfs/toc.offset";
    /// Size of the layer's tar, uncompressed, in bytes, as decimal text.
    pub const UNCOMPRESSED_SIZE: &str = "io.containers.estargz.uncompressed-size";
}

/// Why a snapshot's labels do not name a layer that could be read lazily.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// A label is missing: containerd was not told to send annotations.
    #[error(
        "label {0} is missing (does containerd have enable_remote_snapshot_annotations = \"true\" \
         for this plugin, or CRI disable_snapshot_annotations = false?)"
    )]
    Missing(&'static str),
    /// A label's value cannot be parsed.
    #[error("label {key} is malformed: {why}")]
    Malformed {
        /// Which label.
        key: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// The layer that a `Prepare` is about, as containerd's labels name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerLabels {
    /// The image it is pulled as part of.
    pub image: Reference,
    /// The manifest it belongs to.
    pub manifest: Digest,
    /// The compressed blob.
    pub layer: Digest,
}

impl LayerLabels {
    /// Reads the labels of one `Prepare`.
    ///
    /// # Errors
    /// A label is missing or malformed; either way the layer has to be unpacked by containerd.
    pub fn parse(labels: &HashMap<String, String>) -> Result<Self, LabelError> {
        Ok(Self {
            image: required(labels, label::IMAGE_REF)?,
            manifest: required(labels, label::MANIFEST_DIGEST)?,
            layer: required(labels, label::LAYER_DIGEST)?,
        })
    }
}

fn required<T>(labels: &HashMap<String, String>, key: &'static str) -> Result<T, LabelError>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let text = labels.get(key).ok_or(LabelError::Missing(key))?;
    text.parse().map_err(|error: T::Err| LabelError::Malformed {
        key,
        why: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn a_complete_set_names_the_layer() {
        let parsed = LayerLabels::parse(&labels(&[
            (label::IMAGE_REF, "r.io/a:t"),
            (label::MANIFEST_DIGEST, D),
            (label::LAYER_DIGEST, D),
        ]));
        assert_eq!(parsed.unwrap().image.to_string(), "r.io/a:t");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let missing = LayerLabels::parse(&labels(&[(label::IMAGE_REF, "r.io/a:t")]));
        assert_eq!(missing, Err(LabelError::Missing(label::MANIFEST_DIGEST)));
        let malformed = LayerLabels::parse(&labels(&[
            (label::IMAGE_REF, "r.io/a:t"),
            (label::MANIFEST_DIGEST, "sha256:../.."),
        ]));
        assert!(
            malformed
                .unwrap_err()
                .to_string()
                .contains("cri.manifest-digest is malformed")
        );
    }
}
