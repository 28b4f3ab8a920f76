//! From what a name leads to, to the one image that is meant.
//!
//! An index need not say which platform an entry is for, and may name further indexes. As for
//! containerd, an entry that says nothing may be what is looked for: then its image's config tells.

use std::sync::Arc;

use super::{Client, Error, Fetched};
use crate::oci::{
    Descriptor, Digest, ImageConfig, Index, MAX_MANIFEST, Manifest, ManifestError, Platform,
    Reference,
};

/// So many documents lie on the way to an image at most, its manifest among them.
pub const MAX_DEPTH: usize = 4;
/// So many documents are read at most until an image is found.
const MAX_READ: usize = 64;

/// Why an image is not found in what its name leads to.
#[derive(Debug, thiserror::Error)]
pub enum Unfound {
    /// A document does not parse.
    #[error("{digest}: {source}")]
    Manifest {
        /// Which document.
        digest: Digest,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// A document is no image.
    #[error("{digest} is neither an image nor an index, but {media_type:?}")]
    Unsupported {
        /// Which document.
        digest: Digest,
        /// What it says it is.
        media_type: String,
    },
    /// There is nothing for the platform.
    #[error("the image has nothing for {platform}: it is for {}", said(there))]
    Platform {
        /// What was asked for.
        platform: String,
        /// What there is.
        there: Vec<String>,
    },
    /// Indexes within indexes, deeper than any image has them.
    #[error("index {0} is nested too deeply")]
    TooDeep(Digest),
    /// Too many entries say nothing of their platform.
    #[error("index {0} names more images without their platform than are looked at")]
    TooMany(Digest),
}

/// Why an image is not had from a registry.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] Error),
    /// What it has.
    #[error(transparent)]
    Unfound(#[from] Unfound),
}

/// Where documents are read from while an image is looked for.
pub trait Documents: Sync {
    /// Why one cannot be read, or that there is no such image.
    type Error: From<Unfound> + Send;

    /// A manifest or an index, verified.
    fn document(
        &self,
        at: &Descriptor,
    ) -> impl Future<Output = Result<Fetched, Self::Error>> + Send;

    /// An image's config, verified.
    fn config(&self, at: &Descriptor) -> impl Future<Output = Result<Vec<u8>, Self::Error>> + Send;
}

/// The image that was looked for.
#[derive(Debug)]
pub struct FoundImage {
    /// The indexes that lead to it, from the top.
    pub above: Vec<Arc<Fetched>>,
    /// Its manifest as it came.
    pub document: Fetched,
    /// The same, parsed.
    pub manifest: Manifest,
}

/// A parsed document.
#[derive(Debug)]
pub enum Content {
    /// An index of images.
    Index(Index),
    /// The manifest of one image.
    Manifest(Box<Manifest>),
}

impl Fetched {
    /// Parses it.
    ///
    /// # Errors
    /// It is malformed, or neither manifest nor index.
    pub fn content(&self) -> Result<Content, Unfound> {
        let digest = self.digest;
        let malformed = |source| Unfound::Manifest { digest, source };
        if self.media_type.is_index() {
            return Ok(Content::Index(
                Index::parse(&self.bytes).map_err(malformed)?,
            ));
        }
        if self.media_type.is_manifest() {
            let manifest = Manifest::parse(&self.bytes).map_err(malformed)?;
            return Ok(Content::Manifest(Box::new(manifest)));
        }
        Err(Unfound::Unsupported {
            digest,
            media_type: self.media_type.as_str().to_owned(),
        })
    }
}

/// Finds the image for a platform. What `root` itself is was asked for: a manifest there is taken as it is.
///
/// # Errors
/// There is none, or a document on the way to it cannot be read.
pub async fn find<D: Documents>(
    documents: &D,
    root: Fetched,
    platform: &Platform,
) -> Result<FoundImage, D::Error> {
    let top = root.digest;
    let mut there = Vec::new();
    let mut open: Vec<(Vec<Arc<Fetched>>, Descriptor)> = Vec::new();
    let (mut above, mut document, mut says_platform) = (Vec::new(), root, true);
    for _ in 0..MAX_READ {
        match document.content()? {
            Content::Manifest(manifest) => {
                if says_platform || fits(documents, &manifest, platform, &mut there).await? {
                    return Ok(FoundImage {
                        above,
                        document,
                        manifest: *manifest,
                    });
                }
            }
            Content::Index(_) if above.len() + 1 >= MAX_DEPTH => {
                return Err(Unfound::TooDeep(document.digest).into());
            }
            Content::Index(index) => {
                there.extend(index.platforms().map(Platform::to_string));
                above.push(Arc::new(document));
                let choices = index.choices(platform).into_iter().rev();
                open.extend(choices.map(|at| (above.clone(), at.clone())));
            }
        }
        let Some((on_the_way, at)) = open.pop() else {
            let platform = platform.to_string();
            return Err(Unfound::Platform { platform, there }.into());
        };
        document = documents.document(&at).await?;
        (above, says_platform) = (on_the_way, at.platform.is_some());
    }
    Err(Unfound::TooMany(top).into())
}

/// Whether an image of which the index did not say it is for a platform, by its config.
async fn fits<D: Documents>(
    documents: &D,
    manifest: &Manifest,
    platform: &Platform,
    there: &mut Vec<String>,
) -> Result<bool, D::Error> {
    let at = &manifest.config;
    if !at.media_type.is_config() {
        return Ok(false);
    }
    let config = documents.config(at).await?;
    let config = ImageConfig::parse(&config).map_err(|source| Unfound::Manifest {
        digest: at.digest,
        source,
    })?;
    let Some(own) = config.platform() else {
        return Ok(true);
    };
    there.push(own.to_string());
    Ok(own.serves(platform))
}

struct Remote<'a> {
    client: &'a Client,
    image: &'a Reference,
}

impl Documents for Remote<'_> {
    type Error = FindError;

    async fn document(&self, at: &Descriptor) -> Result<Fetched, FindError> {
        let pinned = self.image.with_digest(at.digest);
        Ok(self.client.manifest(&pinned).await?)
    }

    async fn config(&self, at: &Descriptor) -> Result<Vec<u8>, FindError> {
        let bytes = self.client.blob_bytes(self.image, at, MAX_MANIFEST);
        Ok(bytes.await?)
    }
}

impl Client {
    /// The image for a platform among those that a name leads to.
    ///
    /// # Errors
    /// The registry does not give the documents, or has no such image.
    pub async fn find(
        &self,
        image: &Reference,
        platform: &Platform,
    ) -> Result<FoundImage, FindError> {
        let root = self.manifest(image).await?;
        let client = self;
        find(&Remote { client, image }, root, platform).await
    }
}

fn said(platforms: &[String]) -> String {
    match platforms {
        [] => "none".to_owned(),
        some => some.join(", "),
    }
}
