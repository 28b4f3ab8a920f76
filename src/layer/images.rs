//! The images being pulled: each manifest is read once, whichever layer is asked for first.
//!
//! containerd offers an image's layers one after another, each by a `Prepare` of its own, and says
//! of the others at most a hint. So the first one to come makes crfs read the manifest itself, from
//! containerd's content store or else from the registry, and with it start on all layers at once: their
//! round trips overlap instead of adding up.

use std::sync::Arc;
use std::time::Duration;

use crate::layer::NotLazy;
use crate::layer::flight::{Flights, Outcome};
use crate::layer::guess::Program;
use crate::layer::resolve::Resolver;
use crate::layer::stored::ContentStore;
use crate::oci::{Descriptor, Digest, LayerLabels, MAX_MANIFEST, Manifest, Platform, Reference};
use crate::registry::{self, FindError};

/// How long a manifest is kept after it was asked for: an image's layers come within seconds, and
/// a pull that stalls longer reads the few kilobytes again.
const KEEP_MANIFEST: Duration = Duration::from_secs(600);

/// Largest config of an image that is read: a few kilobytes are usual.
const MAX_CONFIG: u64 = 1 << 20;

/// Reads manifests, verified by their digest.
pub(super) struct Images {
    client: registry::Client,
    store: Arc<ContentStore>,
    resolver: Arc<Resolver>,
    manifests: Flights<(Reference, Digest), Arc<Manifest>>,
}

impl Images {
    pub(super) fn new(
        client: registry::Client,
        store: ContentStore,
        resolver: Arc<Resolver>,
    ) -> Self {
        Self {
            client,
            store: Arc::new(store),
            resolver,
            manifests: Flights::new(KEEP_MANIFEST),
        }
    }

    /// Starts reading the manifest, and then all of its layers, unless that is under way.
    pub(super) fn announce(&self, labels: &LayerLabels) {
        drop(self.manifest(labels));
    }

    /// The descriptor of the layer that `labels` name, from the verified manifest.
    pub(super) async fn descriptor(&self, labels: &LayerLabels) -> Result<Descriptor, NotLazy> {
        let manifest = self.manifest(labels).await?;
        let layer = manifest
            .layers
            .iter()
            .find(|layer| layer.digest == labels.layer);
        layer.cloned().ok_or(NotLazy::NotInManifest {
            manifest: labels.manifest,
        })
    }

    /// The layers that can be lazy, by what the manifest promises of them, lowest first.
    pub(super) async fn lazy_layers(
        &self,
        labels: &LayerLabels,
    ) -> Result<Vec<Descriptor>, NotLazy> {
        let manifest = self.manifest(labels).await?;
        let image = labels.image.with_digest(labels.manifest);
        let all = manifest.layers.iter();
        let lazy = all.filter(|layer| self.resolver.can_be_lazy(&image, layer));
        Ok(lazy.cloned().collect())
    }

    /// The program that the image starts, if its config can be had and says one.
    pub(super) async fn program(&self, labels: &LayerLabels) -> Option<Program> {
        let manifest = self.manifest(labels).await.ok()?;
        let image = labels.image.with_digest(labels.manifest);
        let (namespace, at) = (labels.namespace.as_deref(), &manifest.config);
        let config = match self.store.read(namespace, at.digest, MAX_CONFIG).await {
            Some(config) => Ok(config),
            None => self.client.blob_bytes(&image, at, MAX_CONFIG).await,
        };
        match config {
            Ok(config) => Program::of_config(&config),
            Err(error) => {
                // Nothing depends on it, and containerd has read it before.
                tracing::debug!(%image, %error, "the image's config cannot be had");
                None
            }
        }
    }

    fn manifest(&self, labels: &LayerLabels) -> Outcome<Arc<Manifest>> {
        let image = labels.image.with_digest(labels.manifest);
        let key = (image.clone(), labels.manifest);
        let (client, resolver) = (self.client.clone(), Arc::clone(&self.resolver));
        let (store, namespace, digest) = (
            Arc::clone(&self.store),
            labels.namespace.clone(),
            labels.manifest,
        );
        self.manifests.join(key, async move {
            let stored = store.read(namespace.as_deref(), digest, MAX_MANIFEST).await;
            let stored = stored.and_then(|bytes| Manifest::parse(&bytes).ok());
            let manifest = Arc::new(match stored {
                Some(manifest) => manifest,
                None => read_manifest(&client, &image).await?,
            });
            for layer in &manifest.layers {
                resolver.start(&image, layer);
            }
            Ok(manifest)
        })
    }
}

/// The manifest of `image` for this machine, whichever its tag leads to now, and its digest.
pub(super) async fn manifest_of(
    client: &registry::Client,
    image: &Reference,
) -> Result<(Digest, Manifest), NotLazy> {
    let found = client.find(image, &Platform::this_machine()).await;
    let found = found.map_err(|error| match error {
        FindError::Registry(error) => error.into(),
        FindError::Unfound(error) => NotLazy::Invalid(error.to_string()),
    })?;
    Ok((found.document.digest, found.manifest))
}

/// `image` is pinned to a digest, so what comes back has been verified against it.
async fn read_manifest(client: &registry::Client, image: &Reference) -> Result<Manifest, NotLazy> {
    let fetched = client.manifest(image).await?;
    Manifest::parse(&fetched.bytes).map_err(|e| NotLazy::Invalid(e.to_string()))
}
