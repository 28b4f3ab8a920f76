//! From what a name leads to, to the one image that is meant; its documents end up in containerd.

use serde_json::Map;

use super::Error;
use super::store::{Labels, Store};
use crate::oci::{
    Descriptor, Digest, ImageConfig, Index, MAX_MANIFEST, Manifest, MediaType, Platform, chain_ids,
};

/// Indexes within indexes are followed so far.
pub(super) const MAX_DEPTH: usize = 4;

/// A parsed document.
pub(super) struct Document {
    media_type: MediaType,
    pub(super) digest: Digest,
    bytes: Vec<u8>,
    pub(super) content: Content,
}

pub(super) enum Content {
    Index(Index),
    Manifest(Box<Manifest>),
}

/// One image of one platform, whose documents are in containerd.
pub(super) struct Image {
    /// Its manifest's digest.
    pub(super) digest: Digest,
    pub(super) manifest: Manifest,
    /// The digests of its layers' tars, bottom first: as many as there are layers.
    pub(super) diff_ids: Vec<Digest>,
    pub(super) chain_ids: Vec<Digest>,
}

impl Document {
    /// Reads a document whose digest was checked before.
    pub(super) fn parse(
        media_type: MediaType,
        digest: Digest,
        bytes: Vec<u8>,
    ) -> Result<Self, Error> {
        let refused = Error::manifest(digest);
        let content = if media_type.is_index() {
            Content::Index(Index::parse(&bytes).map_err(refused)?)
        } else if media_type.is_manifest() {
            Content::Manifest(Box::new(Manifest::parse(&bytes).map_err(refused)?))
        } else {
            return Err(Error::Unsupported {
                digest,
                media_type: media_type.as_str().to_owned(),
            });
        };
        Ok(Self {
            media_type,
            digest,
            bytes,
            content,
        })
    }

    pub(super) fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest,
            size: self.bytes.len() as u64,
            annotations: std::collections::BTreeMap::new(),
            platform: None,
            extra: Map::new(),
        }
    }

    /// Has containerd keep it, and `children` as long as it keeps this.
    pub(super) async fn store(
        &self,
        store: &Store,
        children: &[(&str, Digest)],
    ) -> Result<(), Error> {
        store.put(&self.descriptor(), self.bytes.clone()).await?;
        store.refer(self.digest, children).await
    }
}

/// A manifest or index that another document names: from containerd, else from the registry.
pub(super) async fn document(store: &Store, at: &Descriptor) -> Result<Document, Error> {
    if let Some(bytes) = store.held(at.digest, MAX_MANIFEST).await? {
        return Document::parse(at.media_type.clone(), at.digest, bytes);
    }
    let pinned = store.image().with_digest(at.digest);
    let fetched = store.client().manifest(&pinned).await?;
    store.count(fetched.bytes.len() as u64);
    Document::parse(fetched.media_type, fetched.digest, fetched.bytes)
}

/// Finds the image for a platform, and stores all documents on the way to it.
pub(super) async fn resolve(
    store: &Store,
    root: Document,
    platform: &Platform,
) -> Result<Image, Error> {
    let mut document = root;
    for _ in 0..MAX_DEPTH {
        let next = match &document.content {
            Content::Manifest(_) => return image(store, document).await,
            Content::Index(index) => chosen(index, platform)?.clone(),
        };
        document.store(store, &[("m", next.digest)]).await?;
        document = self::document(store, &next).await?;
    }
    Err(Error::TooDeep(document.digest))
}

/// The manifest of an index for a platform.
pub(super) fn chosen<'a>(index: &'a Index, platform: &Platform) -> Result<&'a Descriptor, Error> {
    index.for_platform(platform).ok_or_else(|| {
        let all = index.manifests.iter().filter_map(|d| d.platform.as_ref());
        Error::Platform {
            platform: platform.to_string(),
            there: all.map(Platform::to_string).collect(),
        }
    })
}

async fn image(store: &Store, document: Document) -> Result<Image, Error> {
    let digest = document.digest;
    let Content::Manifest(manifest) = &document.content else {
        return Err(Error::TooDeep(digest));
    };
    let inconsistent = |why: String| Error::Inconsistent { digest, why };
    if !manifest.config.media_type.is_config() {
        let media_type = manifest.config.media_type.as_str();
        return Err(inconsistent(format!(
            "it is no container image: its config is {media_type:?}"
        )));
    }
    document.store(store, &children(manifest)).await?;
    let config = match store.held(manifest.config.digest, MAX_MANIFEST).await? {
        Some(bytes) => bytes,
        None => {
            let fetched = store
                .client()
                .blob_bytes(store.image(), &manifest.config, MAX_MANIFEST);
            let bytes = fetched.await?;
            store.count(bytes.len() as u64);
            store.put(&manifest.config, bytes.clone()).await?;
            bytes
        }
    };
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
        manifest: (**manifest).clone(),
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
