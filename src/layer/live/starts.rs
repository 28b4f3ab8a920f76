//! What goes on around a start: layers opened before they are mounted, profiles applied, reads
//! recorded.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::blob::Blob;
use crate::fs::Index;
use crate::layer::flight::Outcome;
use crate::layer::live::{LiveLayers, local};
use crate::layer::profile::{Image, StartedLayer, key};
use crate::layer::start::Start;
use crate::layer::{LayerRecord, NotLazy};
use crate::oci::{Descriptor, Digest, LayerLabels};

/// How long a start is remembered, so that it is not begun again with each layer, and how long the
/// content of a layer that is not mounted after all goes on being fetched.
pub(super) const KEEP: Duration = Duration::from_secs(60);

/// A mounted layer of a stack.
struct Mounted {
    record: LayerRecord,
    index: Arc<Index>,
    blob: Arc<Blob>,
}

impl LiveLayers {
    /// The start of the image that `labels` name: begun now, unless it was lately.
    pub(super) fn start_of(&self, labels: &LayerLabels) -> Outcome<Arc<Start>> {
        let (me, wanted) = (self.me.clone(), labels.clone());
        self.starts.join(labels.manifest, async move {
            let this = me.upgrade().ok_or_else(|| local("stopping"))?;
            this.begin(wanted).await
        })
    }

    async fn begin(self: Arc<Self>, labels: LayerLabels) -> Result<Arc<Start>, NotLazy> {
        let layers = self.images.lazy_layers(&labels).await?;
        let digests = layers.iter().map(|layer| layer.digest).collect();
        let start = self.load(labels.image.to_string(), digests).await;
        let this = Arc::clone(&self);
        let opening = Arc::clone(&start);
        if start.needs_guess() {
            let (labels, this, start) = (labels.clone(), Arc::clone(&self), Arc::clone(&start));
            tokio::spawn(async move { start.starts(this.images.program(&labels).await) });
        }
        tokio::spawn(async move { this.open_early(labels, layers, opening).await });
        Ok(start)
    }

    /// A start with the profile that there is for it.
    async fn load(&self, image: String, layers: Vec<Digest>) -> Arc<Start> {
        let mut profile = None;
        if self.parts.profile.apply {
            let (folder, key) = (Arc::clone(&self.profiles), key(&layers));
            let read = tokio::task::spawn_blocking(move || folder.load_for(&key, &image)).await;
            profile = match read {
                Ok(Ok(profile)) => profile,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "starting without a profile");
                    None
                }
                Err(error) => {
                    tracing::error!(%error, "starting without a profile");
                    None
                }
            };
        }
        Start::new(Arc::clone(&self.parts.fetcher), profile, layers)
    }

    /// Opens each layer as soon as its index is there: containerd has them mounted one after the
    /// other, which takes longer than much of what is needed first.
    async fn open_early(
        self: Arc<Self>,
        labels: LayerLabels,
        layers: Vec<Descriptor>,
        start: Arc<Start>,
    ) {
        let opened = layers.iter().map(|layer| async {
            if let Err(error) = self.open_one(&labels, layer, &start).await {
                // Said again, and louder, when the layer is to be mounted.
                tracing::debug!(layer = %layer.digest, %error, "not opened ahead of its mount");
            }
        });
        futures::future::join_all(opened).await;
        tokio::time::sleep(KEEP).await;
        for layer in layers {
            self.early.lock().remove(&layer.digest);
        }
    }

    async fn open_one(
        &self,
        labels: &LayerLabels,
        layer: &Descriptor,
        start: &Arc<Start>,
    ) -> Result<(), NotLazy> {
        let image = labels.image.with_digest(labels.manifest);
        let toc = self.resolver.resolve(&[image], layer).await?;
        let record = LayerRecord {
            image: labels.image.to_string(),
            also: Vec::new(),
            manifest: labels.manifest,
            layer: layer.digest,
            size: layer.size,
            toc,
            unlisted: Vec::new(),
        };
        let index = self.index(&record).map_err(local)?;
        let blob = {
            // Under the lock that is held while a mount is entered: it is held here or there.
            let mounts = self.mounts.lock();
            let blob = self.blob(&record, &index)?;
            let is_mounted = mounts.values().any(|mount| Arc::ptr_eq(&mount.blob, &blob));
            if !is_mounted {
                self.early.lock().insert(layer.digest, Arc::clone(&blob));
            }
            blob
        };
        start.opened(layer.digest, &index, &blob);
        Ok(())
    }

    /// A container starts on this stack, topmost first: fetches what is known to be needed and is not
    /// here, and records what is read.
    pub(super) fn started(&self, stack: &[PathBuf]) {
        let (mut cold, mut read) = (true, true);
        let mounted: Vec<Mounted> = {
            let mut mounts = self.mounts.lock();
            let lowest_first = stack.iter().rev();
            let layers = lowest_first.filter_map(|path| {
                let mount = mounts.get_mut(path)?;
                let is_started = std::mem::replace(&mut mount.is_started, true);
                (cold, read) = (cold && !is_started, read && is_started);
                Some(Mounted {
                    record: mount.record.clone(),
                    index: Arc::clone(mount.tree.index()),
                    blob: Arc::clone(&mount.blob),
                })
            });
            layers.collect()
        };
        let Some(top) = mounted.last().map(|top| top.record.clone()) else {
            return;
        };
        let digests: Vec<_> = mounted.iter().map(|mount| mount.record.layer).collect();
        let image = Image {
            name: top.image.clone(),
            manifest: top.manifest,
        };
        self.recorder.begin(image, &digests, cold, || {
            let layers = mounted.iter().map(|mount| StartedLayer {
                layer: mount.record.layer,
                index: Arc::clone(&mount.index),
                reads: mount.blob.record_reads(),
            });
            layers.collect()
        });
        let Some(this) = self.me.upgrade() else {
            return;
        };
        let start = self.starts.join(top.manifest, async move {
            let start = this.load(top.image, digests).await;
            for mount in mounted {
                start.opened(mount.record.layer, &mount.index, &mount.blob);
            }
            Ok(start)
        });
        tokio::spawn(async move {
            if let Ok(start) = start.await {
                start.container(read).await;
            }
        });
    }

    /// A layer of an image was unmounted: a start of the image after it is another one.
    pub(super) fn forget_start(&self, record: &LayerRecord) {
        self.starts.forget(&record.manifest);
        self.early.lock().remove(&record.layer);
    }

    /// Writes down what is being recorded. Blocks.
    pub fn save_profiles(&self) {
        self.recorder.settle();
    }
}
