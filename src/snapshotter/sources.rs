//! What else a lazy layer was pulled as part of: each image is a place to read it from, with the
//! credentials for that image.
//!
//! containerd offers a layer that another image brought again only to another namespace. Within one
//! it finds the snapshot by itself, so what kubelet pulls is told by the proxy of the CRI.

use std::sync::Arc;

use crate::layer::LayerRecord;
use crate::oci::{LayerLabels, Reference};
use crate::snapshotter::model::{Key, Record};
use crate::snapshotter::persist::Steps;
use crate::snapshotter::{Inner, Snapshotter};
use crate::store::Step;

/// A further source is kept as an Update is.
const UPDATE: Steps = Steps {
    record: Step::UpdateRecord,
    stored: Step::UpdateStored,
    done: Step::UpdateDone,
};

impl Snapshotter {
    /// `image` was pulled to this node: those of its layers that are here may be read as its too.
    /// They are as lazy without it, so a failure is only logged.
    pub async fn pulled(&self, image: &Reference) {
        let inner = &self.0;
        let layers = match inner.layers.layers_of(image).await {
            Ok(layers) => layers,
            Err(error) => {
                tracing::warn!(%image, %error, "a pulled image is not a source of its layers");
                return;
            }
        };
        let keys: Vec<Key> = {
            let table = inner.table.read();
            let lazy = |record: &&Arc<Record>| {
                let layer = record.lazy.as_ref().map(|lazy| lazy.layer);
                layer.is_some_and(|layer| layers.contains(&layer))
            };
            table
                .iter()
                .filter(lazy)
                .map(|record| record.key.clone())
                .collect()
        };
        for key in keys {
            let found = || {
                let table = inner.table.read();
                let record = table.get(&key).ok()?;
                Some((Arc::clone(record), record.lazy.as_ref()?.pulled_as(image)?))
            };
            inner.add_source(&found, image).await;
        }
    }
}

impl Inner {
    /// Keeps that the layer was pulled as part of another image too.
    pub(super) async fn note_source(
        self: &Arc<Self>,
        target: &str,
        parent: Option<&Key>,
        layer: &LayerLabels,
    ) {
        let find = || {
            let table = self.table.read();
            let record = table.get(table.target(target, parent)?).ok()?;
            let lazy = record
                .lazy
                .as_ref()
                .filter(|lazy| lazy.layer == layer.layer)?;
            Some((Arc::clone(record), lazy.pulled_as(&layer.image)?))
        };
        self.add_source(&find, &layer.image).await;
    }

    /// Adds `image` to what `find` finds, if that is so before and under its lock.
    async fn add_source(
        self: &Arc<Self>,
        find: &(impl Fn() -> Option<(Arc<Record>, LayerRecord)> + Sync),
        image: &Reference,
    ) {
        let Some((record, _)) = find() else {
            return;
        };
        let _held = self.locks.hold(&[&record.key], None).await;
        let Some((old, lazy)) = find() else {
            return;
        };
        self.layers
            .add_source(&self.snapshots.folder(old.id).fs(), image);
        let layer = lazy.layer;
        let record = Record {
            revision: self.new_revision(),
            lazy: Some(lazy),
            ..(*old).clone()
        };
        if let Err(error) = self.persist(record, Some(old), UPDATE).await {
            tracing::warn!(%layer, %image, %error, "a layer's further source is not kept");
        }
    }
}
