//! The labels by which containerd tells a remote snapshotter what a snapshot is about.
//!
//! Source: containerd `core/unpack/unpacker.go` and `pkg/snapshotters/annotations.go`. All of them
//! may be missing, and with annotations switched off an image's author can set most of them: they
//! are hints until the manifest they lead to has been verified.

use std::collections::HashMap;

use crate::oci::{Descriptor, Digest, Reference};

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
    /// Digests of this layer and those above it, as many as a label has room for.
    pub const IMAGE_LAYERS: &str = "containerd.io/snapshot/cri.image-layers";
    /// What the keys of labels begin with that containerd passes on to a snapshotter.
    pub const FOR_SNAPSHOTTERS: &str = "containerd.io/snapshot/";
    /// Longest key and value together, in bytes (containerd `pkg/labels/validate.go`).
    pub const MAX: usize = 4096;
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
    /// The containerd namespace that it is pulled in, where that is known. No label says so, but the snapshot's key.
    pub namespace: Option<String>,
}

impl LayerLabels {
    /// The labels by which a snapshotter is offered layer `number` of `layers`, which will have this
    /// chain id: these, and what the layer's own annotations say to snapshotters.
    #[must_use]
    pub fn offer(
        &self,
        layers: &[Descriptor],
        number: usize,
        chain_id: Digest,
    ) -> HashMap<String, String> {
        let above = layers.get(number..).unwrap_or_default();
        let own = above.first().map(|layer| &layer.annotations);
        let fits = |(key, value): &(&String, &String)| {
            key.starts_with(label::FOR_SNAPSHOTTERS) && key.len() + value.len() <= label::MAX
        };
        let own = own.into_iter().flatten().filter(fits);
        let mut labels: HashMap<String, String> = own
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let mut list = String::new();
        for layer in above {
            let digest = layer.digest.to_string();
            if label::IMAGE_LAYERS.len() + list.len() + 1 + digest.len() > label::MAX {
                break;
            }
            if !list.is_empty() {
                list.push(',');
            }
            list.push_str(&digest);
        }
        let said = [
            (label::SNAPSHOT_REF, chain_id.to_string()),
            (label::IMAGE_REF, self.image.to_string()),
            (label::MANIFEST_DIGEST, self.manifest.to_string()),
            (label::LAYER_DIGEST, self.layer.to_string()),
            (label::IMAGE_LAYERS, list),
        ];
        labels.extend(said.map(|(key, value)| (key.to_owned(), value)));
        labels
    }

    /// Reads the labels of one `Prepare`.
    ///
    /// # Errors
    /// A label is missing or malformed; either way the layer has to be unpacked by containerd.
    pub fn parse(labels: &HashMap<String, String>) -> Result<Self, LabelError> {
        Ok(Self {
            image: required(labels, label::IMAGE_REF)?,
            manifest: required(labels, label::MANIFEST_DIGEST)?,
            layer: required(labels, label::LAYER_DIGEST)?,
            namespace: None,
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

    #[test]
    fn what_is_offered_is_what_is_read() {
        let of = |number: usize, annotations: &str| {
            let digest = Digest::of(&number.to_be_bytes());
            let json = format!(
                r#"{{"mediaType":"x","digest":"{digest}","size":1,"annotations":{{{annotations}}}}}"#
            );
            serde_json::from_str::<Descriptor>(&json).unwrap()
        };
        let annotations = format!(r#""other":"no","{}":"{D}""#, label::TOC_DIGEST);
        let mut layers = vec![of(0, ""), of(1, &annotations)];
        layers.extend((2..100).map(|number| of(number, "")));
        let named = LayerLabels {
            image: "r.io/a:t".parse().unwrap(),
            manifest: D.parse().unwrap(),
            layer: layers[1].digest,
            namespace: None,
        };
        let labels = named.offer(&layers, 1, D.parse().unwrap());
        assert_eq!(LayerLabels::parse(&labels), Ok(named));
        assert_eq!(labels.get(label::TOC_DIGEST).map(String::as_str), Some(D));
        assert_eq!((labels.len(), &*labels[label::SNAPSHOT_REF]), (6, D));
        let list = &labels[label::IMAGE_LAYERS];
        assert!(list.starts_with(&layers[1].digest.to_string()), "{list}");
        let room = label::MAX - label::IMAGE_LAYERS.len();
        assert!(
            list.len() <= room && list.len() > room - 80,
            "{}",
            list.len()
        );
    }
}
