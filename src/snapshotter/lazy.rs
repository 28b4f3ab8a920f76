//! The lazy answer: a Prepare that names a layer becomes a committed snapshot that is a mount.
//!
//! Order: say what is coming (the image's layers are then read side by side), mount in a new
//! folder, enter it in the books, answer. Nothing is locked while the network is waited for, so
//! parent and target are looked at again before the snapshot is entered.

use std::sync::Arc;

use crate::layer::NotLazy;
use crate::oci::{Digest, LayerLabels, label};
use crate::snapshotter::model::{Key, Kind, Labels, Record, Stamp, Usage};
use crate::snapshotter::persist::Steps;
use crate::snapshotter::{Error, Inner, Making, blocking};
use crate::store::Step;

const STEPS: Steps = Steps {
    record: Step::LazyRecord,
    stored: Step::LazyStored,
    done: Step::LazyDone,
};

/// Why a layer is not served lazily.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// The layer, or its registry, does not allow it.
    #[error(transparent)]
    NotLazy(NotLazy),
    /// This node does not.
    #[error(transparent)]
    Failed(#[from] Error),
}

impl Refusal {
    fn name(&self) -> &'static str {
        match self {
            Self::NotLazy(reason) => reason.name(),
            Self::Failed(_) => "local",
        }
    }
}

impl Inner {
    /// True if the target is there as a lazy snapshot on this parent, perhaps since this call.
    /// False if containerd has to unpack it; one log line has said why.
    pub(super) async fn answer_lazily(
        self: &Arc<Self>,
        target: &str,
        parent: Option<&Key>,
        labels: &Labels,
    ) -> Result<bool, Error> {
        if self.has_target(target, parent) {
            return Ok(true);
        }
        let given = labels.clone().into_iter().collect();
        let layer = match LayerLabels::parse(&given) {
            Ok(layer) => layer,
            Err(error) => {
                let text = labels
                    .get(label::LAYER_DIGEST)
                    .map_or("unknown", String::as_str);
                log_refusal(text, target, &Refusal::NotLazy(error.into()));
                return Ok(false);
            }
        };
        self.layers.announce(&layer);
        let digest = layer.layer;
        let flight = (target.to_owned(), parent.cloned());
        let landed = self.lazy.join(&flight, || {
            let inner = Arc::clone(self);
            let (parent, labels) = (parent.cloned(), labels.clone());
            async move {
                inner
                    .make_lazy(layer, parent, labels)
                    .await
                    .map_err(Arc::new)
            }
        });
        match landed.await {
            Some(Ok(())) => Ok(true),
            Some(Err(refusal)) => {
                log_refusal(&digest.to_string(), target, &refusal);
                Ok(false)
            }
            None => {
                tracing::error!(layer = %digest, target, "lazy prepare panicked");
                Ok(false)
            }
        }
    }

    fn has_target(&self, target: &str, parent: Option<&Key>) -> bool {
        self.table.read().target(target, parent).is_some()
    }

    async fn make_lazy(
        self: Arc<Self>,
        layer: LayerLabels,
        parent: Option<Key>,
        labels: Labels,
    ) -> Result<(), Refusal> {
        let making = self.new_id();
        let made = self.mount_and_enter(&making, &layer, parent, labels).await;
        if made.is_err() {
            self.discard(making.id).await;
        }
        made
    }

    async fn mount_and_enter(
        self: &Arc<Self>,
        making: &Making<'_>,
        layer: &LayerLabels,
        parent: Option<Key>,
        labels: Labels,
    ) -> Result<(), Refusal> {
        let (inner, id) = (Arc::clone(self), making.id);
        blocking(move || {
            inner.snapshots.folder(id).create(Kind::Committed, None)?;
            inner.fault(Step::LazyFolder)
        })
        .await?;
        let fs = self.snapshots.folder(id).fs();
        let mounted = self.layers.mount(layer, &fs).await;
        let lazy = mounted.map_err(Refusal::NotLazy)?;
        self.fault(Step::LazyMounted)?;
        let usage = self.layers.usage(&fs).unwrap_or_default();
        let target = labels.get(label::SNAPSHOT_REF).cloned().unwrap_or_default();
        let key = self.free_name(&target, parent.as_ref())?;
        let _held = self.locks.hold(&[&key], parent.as_ref()).await;
        {
            let table = self.table.read();
            table.check_free(&key)?;
            table.check_parent(parent.as_ref())?;
        }
        let now = Stamp::now();
        let record = Record {
            id,
            revision: self.new_revision(),
            kind: Kind::Committed,
            key,
            parent,
            labels,
            created: now,
            updated: now,
            usage: Some(Usage {
                bytes: usage.bytes,
                inodes: usage.inodes,
            }),
            lazy: Some(lazy),
        };
        self.persist(record, None, STEPS).await?;
        tracing::info!(layer = %layer.layer, id, "layer is served lazily");
        Ok(())
    }

    /// The name of a lazy snapshot, which the protocol leaves to us: always the same for a target
    /// and parent. Names that containerd gives begin with a namespace and a number.
    fn free_name(&self, target: &str, parent: Option<&Key>) -> Result<Key, Error> {
        let parent = Digest::of(parent.map_or("", Key::as_str).as_bytes()).hex();
        let parent: String = parent.chars().take(16).collect();
        let table = self.table.read();
        let mut number = 1;
        loop {
            let name = match number {
                1 => format!("lazy/{target}/{parent}"),
                n => format!("lazy/{target}/{parent}/{n}"),
            };
            let key = Key::new(name)?;
            if !table.contains(&key) {
                return Ok(key);
            }
            number += 1;
        }
    }
}

/// The one line that says which layer is not lazy, and why.
fn log_refusal(layer: &str, target: &str, refusal: &Refusal) {
    let reason = refusal.name();
    tracing::warn!(layer, target, reason, why = %refusal, "layer is not lazy, containerd unpacks it");
}
