//! Images brought into containerd by crfs itself: the lazy pull that containerd before 2.1 has no
//! command for ([`Puller`]), and what a lazy pull has left out ([`Completer`]).
//!
//! Both speak to containerd as its own client does: content is written under a lease and verified by
//! containerd, gets the labels that its garbage collection follows, and the image is named last. So
//! whatever ends one half-way, containerd's state is sound, what was fetched is used again by the next
//! attempt, and without one it is collected when the lease expires ([`LEASE`]).

mod complete;
mod error;
mod image;
mod layers;
mod progress;
mod store;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

pub use complete::{Completed, Completer, Which};
pub use error::Error;
pub use progress::{Info, LayerProgress, Outcome, Progress, Report, Silent, Stage};

use crate::containerd::Containerd;
use crate::oci::{Digest, Platform, Reference};
use crate::registry::Client;
use layers::Layers;
use store::Store;

/// How long containerd keeps what an attempt has left that was not finished (as `ctr` has it).
pub const LEASE: Duration = Duration::from_secs(24 * 3600);
/// How many digits of a digest the name of a lease has.
const NAMED: usize = 16;
/// Blobs that are fetched at once.
const AT_ONCE: usize = 3;

/// Pulls images through a snapshotter.
pub struct Puller {
    /// Where they are brought.
    pub containerd: Containerd,
    /// Where they come from.
    pub client: Client,
    /// The snapshotter that is offered their layers.
    pub snapshotter: String,
    /// Which image of an index it is.
    pub platform: Platform,
    /// Hears how it goes.
    pub progress: Arc<dyn Progress>,
}

/// What a pull did.
#[derive(Debug, Clone, Serialize)]
pub struct Pulled {
    /// The image's name in containerd.
    pub image: String,
    /// What the name leads to: an index or a manifest.
    pub digest: Digest,
    /// The manifest for the platform.
    pub manifest: Digest,
    /// The platform.
    pub platform: String,
    /// What became of each layer, bottom first.
    pub layers: Vec<Report>,
    /// Bytes that were fetched from the registry.
    pub fetched: u64,
}

impl Puller {
    /// Pulls an image. When this returns, containers can be started of it.
    ///
    /// # Errors
    /// The registry does not have it or cannot be reached, or containerd or its snapshotter fail.
    pub async fn pull(&self, name: &Reference) -> Result<Pulled, Error> {
        let root = self.client.manifest(name).await?;
        let key = format!(
            "{name} {} {} {}",
            root.digest, self.platform, self.snapshotter
        );
        let purpose = format!("crfs-pull-{}", Digest::of(key.as_bytes()).start(NAMED));
        let lease = self.containerd.lease(&purpose, LEASE).await?;
        let store = Arc::new(Store::new(lease, self.client.clone(), name.clone()));
        let pulled = self.pull_root(&store, name, root).await;
        store::end(&store, pulled).await
    }

    async fn pull_root(
        &self,
        store: &Arc<Store>,
        name: &Reference,
        root: crate::registry::Fetched,
    ) -> Result<Pulled, Error> {
        store.count(root.bytes.len() as u64);
        let target = image::descriptor(&root);
        let image = image::resolve(store, root, &self.platform).await?;
        let layers = Layers::new(store, &image, &self.snapshotter, name, &*self.progress);
        let reports = layers.place().await?;
        image::keep_snapshots(store, &image, &self.snapshotter).await?;
        store
            .containerd()
            .name_image(&name.to_string(), &target)
            .await?;
        Ok(Pulled {
            image: name.to_string(),
            digest: target.digest,
            manifest: image.digest,
            platform: self.platform.to_string(),
            layers: reports,
            fetched: store.fetched(),
        })
    }
}
