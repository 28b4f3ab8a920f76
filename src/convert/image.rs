//! Indexes, manifests and configs: what names the layers, written again so that it names the new
//! ones.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::Serialize;
use tokio::sync::OnceCell;

use crate::convert::layer::Layer;
use crate::convert::progress::{LayerInfo, Silent};
use crate::convert::store::Document;
use crate::convert::{Converter, Error};
use crate::oci::{
    Descriptor, Digest, ImageConfig, Index, MAX_MANIFEST, Manifest, ManifestError, MediaType,
    Platform,
};

/// How deep indexes may be nested.
const MAX_DEPTH: u32 = 4;
/// Layers under way at once: one is fetched and one pushed while two are written.
const LAYERS_AT_ONCE: usize = 4;
/// Marks an index entry that says something about another one (buildkit, "Image attestation
/// storage").
const ATTESTATION: &str = "vnd.docker.reference.digest";

impl Converter {
    /// Converts what a document names, brings that into the destination, and returns the document
    /// that names the result. The caller puts it where it belongs.
    pub(super) fn document<'a>(
        &'a self,
        document: Document,
        platform: Option<&'a Platform>,
        depth: u32,
    ) -> BoxFuture<'a, Result<Document, Error>> {
        async move {
            let digest = Digest::of(&document.bytes);
            match &document.media_type {
                kind if kind.is_index() && depth < MAX_DEPTH => {
                    self.index(digest, document, depth).await
                }
                kind if kind.is_index() => Err(Error::TooDeep(digest)),
                kind if kind.is_manifest() => self.manifest(digest, document, platform).await,
                other => Err(Error::Unsupported {
                    digest,
                    media_type: other.as_str().to_owned(),
                }),
            }
        }
        .boxed()
    }

    async fn index(
        &self,
        digest: Digest,
        document: Document,
        depth: u32,
    ) -> Result<Document, Error> {
        let mut index = Index::parse(&document.bytes).map_err(Error::manifest(digest))?;
        let mut kept = Vec::new();
        let mut missing = None;
        for mut at in std::mem::take(&mut index.manifests) {
            if let Some(subject) = at.annotations.get(ATTESTATION) {
                self.note(format!(
                    "{} is left out: it attests to {subject}, which is another image now",
                    at.digest
                ));
                continue;
            }
            if !at.media_type.is_index() && !at.media_type.is_manifest() {
                self.note(format!(
                    "{} is left out: its media type {:?} is not one of an image",
                    at.digest,
                    at.media_type.as_str()
                ));
                continue;
            }
            let child = match self.source.manifest(&at).await {
                // containerd exports an index in full, and of its images those of one platform.
                Err(error) if error.is_missing_file() => {
                    self.note(left_out(&at));
                    missing = Some(error);
                    continue;
                }
                child => child?,
            };
            verify("manifest", &at, &child.bytes)?;
            let child = Document {
                media_type: at.media_type.clone(),
                ..child
            };
            let child = self
                .document(child, at.platform.as_ref(), depth + 1)
                .await?;
            at.digest = Digest::of(&child.bytes);
            at.size = child.bytes.len() as u64;
            at.extra.remove("data");
            self.sink.put_manifest(at.digest, child).await?;
            kept.push(at);
        }
        if let Some(error) = missing.filter(|_| kept.is_empty()) {
            return Err(error);
        }
        index.manifests = kept;
        Ok(Document {
            bytes: json(&index, digest)?,
            ..document
        })
    }

    async fn manifest(
        &self,
        digest: Digest,
        document: Document,
        platform: Option<&Platform>,
    ) -> Result<Document, Error> {
        let mut manifest = Manifest::parse(&document.bytes).map_err(Error::manifest(digest))?;
        let config_type = &manifest.config.media_type;
        if !matches!(config_type, MediaType::OciConfig | MediaType::DockerConfig) {
            self.note(format!("{digest} is copied as it is: it is not an image"));
            self.copy_artifact(&manifest).await?;
            return Ok(document);
        }
        let config = self.small_blob(&manifest.config).await?;
        let mut image =
            ImageConfig::parse(&config).map_err(Error::manifest(manifest.config.digest))?;
        if image.rootfs.diff_ids.len() != manifest.layers.len() {
            let (ids, layers) = (image.rootfs.diff_ids.len(), manifest.layers.len());
            let why = format!("its config lists {ids} layers, its manifest {layers}");
            return Err(Error::Inconsistent { digest, why });
        }
        let layers = self.layers(&manifest.layers, platform).await?;
        for ((at, diff_id), layer) in manifest
            .layers
            .iter_mut()
            .zip(&mut image.rootfs.diff_ids)
            .zip(layers)
        {
            check_diff_id(at.digest, *diff_id, layer.source_diff_id)?;
            *diff_id = layer.diff_id.unwrap_or(*diff_id);
            *at = Descriptor {
                annotations: merge(&at.annotations, &layer),
                ..layer.descriptor
            };
        }
        let config = json(&image, digest)?;
        manifest.config.digest = Digest::of(&config);
        manifest.config.size = config.len() as u64;
        manifest.config.extra.remove("data");
        self.sink.put_bytes(manifest.config.digest, config).await?;
        Ok(Document {
            bytes: json(&manifest, digest)?,
            ..document
        })
    }

    /// The layers of one image, bottom first; a blob that several images share is converted once.
    async fn layers(
        &self,
        layers: &[Descriptor],
        platform: Option<&Platform>,
    ) -> Result<Vec<Layer>, Error> {
        let one = |(i, at): (usize, &Descriptor)| {
            let info = LayerInfo {
                number: i + 1,
                of: layers.len(),
                platform: platform.map(|p| match &p.variant {
                    Some(variant) => format!("{}/{}/{variant}", p.os, p.architecture),
                    None => format!("{}/{}", p.os, p.architecture),
                }),
                digest: at.digest,
                size: at.size,
            };
            let at = at.clone();
            async move {
                let key = (at.digest, at.media_type.as_str().to_owned());
                let cell = Arc::clone(self.layers.lock().entry(key).or_default());
                cell.get_or_try_init(|| self.layer(&at, &info))
                    .await
                    .cloned()
            }
        };
        let work: Vec<_> = layers.iter().enumerate().map(one).collect();
        stream::iter(work)
            .buffered(LAYERS_AT_ONCE)
            .try_collect()
            .await
    }

    async fn copy_artifact(&self, manifest: &Manifest) -> Result<(), Error> {
        for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
            self.copy_blob(blob, &Silent).await?;
        }
        Ok(())
    }

    async fn small_blob(&self, at: &Descriptor) -> Result<Vec<u8>, Error> {
        if at.size > MAX_MANIFEST {
            let got = format!("{} bytes", at.size);
            return Err(Error::WrongContent {
                what: "config",
                expected: at.digest,
                got,
            });
        }
        let mut pieces = self.source.blob(at).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece?);
            if bytes.len() as u64 > at.size {
                break;
            }
        }
        verify("config", at, &bytes)?;
        Ok(bytes)
    }

    fn note(&self, line: String) {
        self.progress.note(&line);
        self.notes.lock().push(line);
    }
}

fn left_out(at: &Descriptor) -> String {
    let platform = at.platform.as_ref();
    let of = platform.map_or_else(String::new, |platform| format!(" ({platform})"));
    format!("{}{of} is left out: the layout does not have it", at.digest)
}

/// Layers that have been converted, or are being, by blob and media type.
pub(super) type Known = std::collections::HashMap<(Digest, String), Arc<OnceCell<Layer>>>;

pub(super) fn verify(what: &'static str, at: &Descriptor, bytes: &[u8]) -> Result<(), Error> {
    let got = Digest::of(bytes);
    let got = match bytes.len() as u64 == at.size {
        true if got == at.digest => return Ok(()),
        true => format!("digest {got}"),
        false => format!("another size than {} bytes", at.size),
    };
    Err(Error::WrongContent {
        what,
        expected: at.digest,
        got,
    })
}

/// A config that names another tar than the blob holds belongs to another image.
fn check_diff_id(layer: Digest, says: Digest, has: Option<Digest>) -> Result<(), Error> {
    match has {
        Some(has) if has != says => Err(Error::WrongContent {
            what: "layer",
            expected: layer,
            got: format!("uncompressed it has digest {has}, the image's config says {says}"),
        }),
        _ => Ok(()),
    }
}

/// A layer's own annotations in this image, with what the conversion says about its blob.
fn merge(
    own: &std::collections::BTreeMap<String, String>,
    layer: &Layer,
) -> std::collections::BTreeMap<String, String> {
    use crate::oci::annotation::{TOC_DIGEST, TOC_OFFSET, UNCOMPRESSED_SIZE};
    let mut merged = own.clone();
    let said = layer.descriptor.annotations.iter();
    let said =
        said.filter(|(key, _)| [TOC_DIGEST, TOC_OFFSET, UNCOMPRESSED_SIZE].contains(&key.as_str()));
    merged.extend(said.map(|(key, value)| (key.clone(), value.clone())));
    merged
}

fn json<T: Serialize>(document: &T, digest: Digest) -> Result<Bytes, Error> {
    serde_json::to_vec(document)
        .map(Bytes::from)
        .map_err(|source| {
            Error::manifest(digest)(ManifestError::Malformed {
                what: "document",
                source,
            })
        })
}
