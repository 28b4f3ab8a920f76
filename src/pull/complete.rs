//! What a lazy pull has left out: every blob of an image that containerd does not have, so that the
//! image can be exported, pushed and committed like any other.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use futures::future::{BoxFuture, FutureExt as _};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;

use super::image;
use super::store::{self, SOURCE, Store};
use super::{AT_ONCE, Error, Info, LEASE, NAMED, Outcome, Progress, Report, Stage};
use crate::containerd::Containerd;
use crate::oci::{Descriptor, Digest, Manifest, Platform, Reference};
use crate::registry::{Client, Content, Documents as _, MAX_DEPTH, Unfound};

/// Which images of an index are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// Those for a platform.
    For(Platform),
    /// All that it names.
    All,
}

/// Completes images.
pub struct Completer {
    /// Where they are.
    pub containerd: Containerd,
    /// The namespace that they are in, by which errors name it.
    pub namespace: String,
    /// Where their blobs come from.
    pub client: Client,
    /// Which of an index.
    pub which: Which,
    /// Hears how it goes.
    pub progress: Arc<dyn Progress>,
}

/// What completing an image did.
#[derive(Debug, Clone, Serialize)]
pub struct Completed {
    /// The image's name in containerd.
    pub image: String,
    /// What the name leads to.
    pub digest: Digest,
    /// How many blobs belong to it, layers and configs.
    pub blobs: usize,
    /// Those that were missing, in the order they were finished.
    pub fetched: Vec<Report>,
    /// Bytes that were fetched from the registry, manifests among them.
    pub bytes: u64,
}

impl Completer {
    /// Fetches what is missing of an image. When this returns nothing is, and garbage collection keeps
    /// all of it as long as the image has its name.
    ///
    /// # Errors
    /// containerd does not have the image, or the registry does not have what is missing.
    pub async fn complete(&self, name: &str) -> Result<Completed, Error> {
        let full = name.parse::<Reference>().ok();
        let mut found = self.containerd.image(name).await?;
        if let Some(full) = full.as_ref().filter(|_| found.is_none()) {
            found = self.containerd.image(&full.to_string()).await?;
        }
        let image = found.ok_or_else(|| Error::NoImage {
            name: name.to_owned(),
            namespace: self.namespace.clone(),
        })?;
        let root = image.target;
        let source = self.source(&image.name, root.digest).await?;
        let purpose = format!(
            "crfs-complete-{}",
            Digest::of(image.name.as_bytes()).start(NAMED)
        );
        let lease = self.containerd.lease(&purpose, LEASE).await?;
        let store = Store::new(lease, self.client.clone(), source);
        let completed = self.complete_root(&store, &image.name, &root).await;
        store::end(&store, completed).await
    }

    async fn complete_root(
        &self,
        store: &Store,
        name: &str,
        root: &Descriptor,
    ) -> Result<Completed, Error> {
        let mut manifests = Vec::new();
        match &self.which {
            Which::All => walk(store, root, 0, &mut manifests).await?,
            Which::For(platform) => {
                let root = store.document(root).await?;
                let found = image::store_found(store, root, platform).await?;
                manifests.push(found.manifest);
            }
        }
        let mut blobs = HashMap::new();
        for manifest in &manifests {
            let of = manifest.layers.len();
            let all = std::iter::once(&manifest.config).chain(&manifest.layers);
            for (number, blob) in all.enumerate() {
                blobs.entry(blob.digest).or_insert((number, of, blob));
            }
        }
        let missing = stream::iter(blobs.values().copied().collect::<Vec<_>>());
        let fetches = missing.map(|(number, of, blob)| {
            let info = Info {
                number,
                of,
                digest: blob.digest,
                size: blob.size,
            };
            self.blob(store, blob, info)
        });
        let fetched: Vec<Option<Report>> = fetches.buffer_unordered(AT_ONCE).try_collect().await?;
        Ok(Completed {
            image: name.to_owned(),
            digest: root.digest,
            blobs: blobs.len(),
            fetched: fetched.into_iter().flatten().collect(),
            bytes: store.fetched(),
        })
    }

    /// Fetches a blob if it is missing.
    async fn blob(
        &self,
        store: &Store,
        blob: &Descriptor,
        info: Info,
    ) -> Result<Option<Report>, Error> {
        if store.has(blob.digest).await? {
            return Ok(None);
        }
        let began = Instant::now();
        let progress = self.progress.layer(&info);
        progress.stage(Stage::Fetch, blob.size);
        let fetched = store.fetch(blob, &*progress).await?;
        let report = Report {
            digest: blob.digest,
            size: blob.size,
            outcome: fetched.map_or(Outcome::Present, |_| Outcome::Fetched),
            fetched: fetched.unwrap_or(0),
            seconds: began.elapsed().as_secs_f64(),
        };
        progress.done(&report);
        Ok(Some(report))
    }

    /// Where the image's blobs are: what containerd has noted, else what its name says.
    async fn source(&self, name: &str, root: Digest) -> Result<Reference, Error> {
        let stored = self.containerd.stored(root).await?;
        let labels = stored.map(|stored| stored.labels).unwrap_or_default();
        source(name, &labels).ok_or_else(|| Error::NoSource(name.to_owned()))
    }
}

/// Finds all manifests, and stores them and all above them; their labels lead to all that belongs to them,
/// also to what is still missing.
fn walk<'a>(
    store: &'a Store,
    at: &'a Descriptor,
    depth: usize,
    manifests: &'a mut Vec<Manifest>,
) -> BoxFuture<'a, Result<(), Error>> {
    async move {
        if depth >= MAX_DEPTH {
            return Err(Unfound::TooDeep(at.digest).into());
        }
        let document = store.document(at).await?;
        match document.content()? {
            Content::Manifest(manifest) => {
                image::keep(store, &document, &image::children(&manifest)).await?;
                manifests.push(*manifest);
            }
            Content::Index(index) => {
                let all = &index.manifests;
                let children: Vec<_> = all.iter().map(|one| ("m", one.digest)).collect();
                image::keep(store, &document, &children).await?;
                for one in all {
                    walk(store, one, depth + 1, manifests).await?;
                }
            }
        }
        Ok(())
    }
    .boxed()
}

/// Where content with these labels came from; of several places that of the image's name. The labels
/// say no port: it is that of the name if the host is the same.
pub(super) fn source(name: &str, labels: &HashMap<String, String>) -> Option<Reference> {
    let own = name.parse::<Reference>().ok();
    let whole = |host: &str| {
        let own = own.as_ref().filter(|own| own.host_name() == host);
        own.map_or_else(|| host.to_owned(), |own| own.host().to_owned())
    };
    let noted = labels.iter().flat_map(|(key, repositories)| {
        let host = key.strip_prefix(SOURCE).map(whole).into_iter();
        host.flat_map(|host| repositories.split(',').map(move |r| format!("{host}/{r}")))
    });
    let mut noted: Vec<Reference> = noted.filter_map(|place| place.parse().ok()).collect();
    noted.sort_by_key(ToString::to_string);
    let is_own = |place: &Reference| {
        let own = own.as_ref();
        own.is_some_and(|own| (own.host(), own.repository()) == (place.host(), place.repository()))
    };
    match noted.iter().any(is_own) {
        true => own,
        false => noted.into_iter().next().or(own),
    }
}
