//! From what a name leads to, to the one image that is meant; its documents end up in containerd.

use serde_json::Map;

use super::Error;
use super::store::{Labels, Store};
use crate::oci::{Descriptor, Digest, ImageConfig, MAX_MANIFEST, Manifest, Platform, chain_ids};
use crate::registry::{Documents, Fetched, FoundImage, find};

/// One image of one platform, whose documents are in containerd.
pub(super) struct Image {
    /// Its manifest's digest.
    pub(super) digest: Digest,
    pub(super) manifest: Manifest,
    /// The digests of its layers' tars, bottom first: as many as there are layers.
    pub(super) diff_ids: Vec<Digest>,
    pub(super) chain_ids: Vec<Digest>,
}

/// A document as others point to it.
pub(super) fn descriptor(document: &Fetched) -> Descriptor {
    Descriptor {
        media_type: document.media_type.clone(),
        digest: document.digest,
        size: document.bytes.len() as u64,
        annotations: std::collections::BTreeMap::new(),
        platform: None,
        extra: Map::new(),
    }
}

/// Has containerd keep a document, and `children` as long as it keeps this.
pub(super) async fn keep(
    store: &Store,
    document: &Fetched,
    children: &[(&str, Digest)],
) -> Result<(), Error> {
    let bytes = document.bytes.clone();
    store.put(&descriptor(document), bytes).await?;
    store.refer(document.digest, children).await
}

/// From containerd, else from the registry.
impl Documents for Store {
    type Error = Error;

    async fn document(&self, at: &Descriptor) -> Result<Fetched, Error> {
        if let Some(bytes) = self.held(at.digest, MAX_MANIFEST).await? {
            return Ok(Fetched {
                media_type: at.media_type.clone(),
                digest: at.digest,
                bytes,
            });
        }
        let pinned = self.image().with_digest(at.digest);
        let fetched = self.client().manifest(&pinned).await?;
        self.count(fetched.bytes.len() as u64);
        Ok(fetched)
    }

    async fn config(&self, at: &Descriptor) -> Result<Vec<u8>, Error> {
        if let Some(bytes) = self.held(at.digest, MAX_MANIFEST).await? {
            return Ok(bytes);
        }
        let fetched = self.client().blob_bytes(self.image(), at, MAX_MANIFEST);
        let bytes = fetched.await?;
        self.count(bytes.len() as u64);
        self.put(at, bytes.clone()).await?;
        Ok(bytes)
    }
}

/// Finds the image for a platform, and stores its manifest and all documents on the way to it.
pub(super) async fn store_found(
    store: &Store,
    root: Fetched,
    platform: &Platform,
) -> Result<FoundImage, Error> {
    let found = find(store, root, platform).await?;
    let below = found.above.iter().skip(1).map(|index| index.digest);
    let below = below.chain([found.document.digest]);
    for (index, next) in found.above.iter().zip(below) {
        keep(store, index, &[("m", next)]).await?;
    }
    keep(store, &found.document, &children(&found.manifest)).await?;
    Ok(found)
}

/// Finds the image for a platform, with all that is needed to place its layers.
pub(super) async fn resolve(
    store: &Store,
    root: Fetched,
    platform: &Platform,
) -> Result<Image, Error> {
    let found = store_found(store, root, platform).await?;
    let (digest, manifest) = (found.document.digest, found.manifest);
    let inconsistent = |why: String| Error::Inconsistent { digest, why };
    if !manifest.config.media_type.is_config() {
        let media_type = manifest.config.media_type.as_str();
        return Err(inconsistent(format!(
            "it is no container image: its config is {media_type:?}"
        )));
    }
    let config = store.config(&manifest.config).await?;
    let config = ImageConfig::parse(&config).map_err(Error::manifest(manifest.config.digest))?;
    let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids);
    if diff_ids.len() != layers {
        let why = format!(
            "it has {layers} layers, and its config speaks of {}",
            diff_ids.len()
        );
        return Err(inconsistent(why));
    }
    Ok(Image {
        digest,
        manifest,
        chain_ids: chain_ids(&diff_ids),
        diff_ids,
    })
}

/// What belongs to a manifest, with containerd's word for each.
pub(super) fn children(manifest: &Manifest) -> Vec<(&'static str, Digest)> {
    let layers = manifest.layers.iter().map(|layer| ("l", layer.digest));
    std::iter::once(("config", manifest.config.digest))
        .chain(layers)
        .collect()
}

/// Makes garbage collection keep the image's snapshots as long as its config.
pub(super) async fn keep_snapshots(
    store: &Store,
    image: &Image,
    snapshotter: &str,
) -> Result<(), Error> {
    let Some(top) = image.chain_ids.last() else {
        return Ok(());
    };
    let key = format!("containerd.io/gc.ref.snapshot.{snapshotter}");
    let labels = Labels::from([(key, top.to_string())]);
    store.label(image.manifest.config.digest, &labels).await
}
