//! The lazy answer: a Prepare that names a layer becomes a committed snapshot that is a mount.
//!
//! Order: say what is coming (the image's layers are then read side by side), mount in a new
//! folder, enter it in the books, answer. Nothing is locked while the network is waited for, so
//! parent and target are looked at again before the snapshot is entered.

use std::path::PathBuf;
use std::sync::Arc;

use crate::layer::{LayerRecord, NotLazy};
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
        let given = labels.clone().into_iter().collect();
        let layer = match LayerLabels::parse(&given) {
            Ok(layer) => layer,
            Err(_) if self.has_target(target, parent) => return Ok(true),
            Err(error) => {
                let text = labels
                    .get(label::LAYER_DIGEST)
                    .map_or("unknown", String::as_str);
                log_refusal(text, target, &Refusal::NotLazy(error.into()));
                return Ok(false);
            }
        };
        if self.has_target(target, parent) {
            self.note_source(target, parent, &layer).await;
            return Ok(true);
        }
        self.layers.announce(&layer);
        let flight = (target.to_owned(), parent.cloned());
        let landed = self.lazy.join(&flight, || {
            let inner = Arc::clone(self);
            let (layer, parent, labels) = (layer.clone(), parent.cloned(), labels.clone());
            async move {
                inner
                    .make_lazy(layer, parent, labels)
                    .await
                    .map_err(Arc::new)
            }
        });
        match landed.await {
            Some(Ok(())) => {
                self.note_source(target, parent, &layer).await;
                Ok(true)
            }
            Some(Err(refusal)) => {
                log_refusal(&layer.layer.to_string(), target, &refusal);
                Ok(false)
            }
            None => {
                tracing::error!(layer = %layer.layer, target, "lazy prepare panicked");
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
        let target = labels.get(label::SNAPSHOT_REF).cloned().unwrap_or_default();
        if self.has_target(&target, parent.as_ref()) {
            // An attempt ended between the caller's look and this one's begin.
            return Ok(());
        }
        let making = self.new_id();
        let entered = match self.mount_layer(&making, &layer, parent.as_ref()).await {
            Ok(lazy) => {
                self.enter_lazy(making.id, lazy, &target, parent, labels)
                    .await
            }
            Err(refusal) => Err(refusal),
        };
        match entered {
            Ok(true) => {
                tracing::info!(layer = %layer.layer, id = making.id, "layer is served lazily");
                Ok(())
            }
            Ok(false) => {
                self.discard(making.id).await;
                Ok(())
            }
            Err(refusal) => {
                self.discard(making.id).await;
                Err(refusal)
            }
        }
    }

    async fn mount_layer(
        self: &Arc<Self>,
        making: &Making<'_>,
        layer: &LayerLabels,
        parent: Option<&Key>,
    ) -> Result<LayerRecord, Refusal> {
        let (inner, id) = (Arc::clone(self), making.id);
        blocking(move || {
            inner.snapshots.folder(id).create(Kind::Committed, None)?;
            inner.fault(Step::LazyFolder)
        })
        .await?;
        let fs = self.snapshots.folder(id).fs();
        let mounted = self.layers.mount(layer, &fs).await;
        let mut lazy = mounted.map_err(Refusal::NotLazy)?;
        let below = self.stack(parent)?;
        let unlisted = self.layers.inherit(&fs, &below).await;
        lazy.unlisted = unlisted.map_err(Refusal::NotLazy)?;
        self.fault(Step::LazyMounted)?;
        Ok(lazy)
    }

    /// The folders with the files of `parent` and of all below it, topmost first.
    pub(super) fn stack(&self, parent: Option<&Key>) -> Result<Vec<PathBuf>, Error> {
        let Some(parent) = parent else {
            return Ok(Vec::new());
        };
        let table = self.table.read();
        let record = table.get(parent)?;
        let below = table.parents(record)?;
        let all = std::iter::once(record).chain(&below);
        Ok(all
            .map(|record| self.snapshots.folder(record.id).fs())
            .collect())
    }

    /// False if the target is there by now.
    async fn enter_lazy(
        self: &Arc<Self>,
        id: u64,
        lazy: LayerRecord,
        target: &str,
        parent: Option<Key>,
        labels: Labels,
    ) -> Result<bool, Refusal> {
        let name = lazy_name(target, parent.as_ref(), 1)?;
        let _held = self.locks.hold(&[&name], parent.as_ref()).await;
        let key = {
            let table = self.table.read();
            table.check_parent(parent.as_ref())?;
            if table.target(target, parent.as_ref()).is_some() {
                return Ok(false);
            }
            let mut key = name.clone();
            let mut number = 1;
            while table.contains(&key) {
                number += 1;
                key = lazy_name(target, parent.as_ref(), number)?;
            }
            key
        };
        let usage = self
            .layers
            .usage(&self.snapshots.folder(id).fs())
            .unwrap_or_default();
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
        Ok(true)
    }
}

/// The name of a lazy snapshot, which the protocol leaves to us: always the same for a target and
/// parent, with a number if that is taken. Names that containerd gives begin with a namespace and
/// a number.
fn lazy_name(target: &str, parent: Option<&Key>, number: u32) -> Result<Key, Error> {
    let parent = Digest::of(parent.map_or("", Key::as_str).as_bytes()).hex();
    let parent: String = parent.chars().take(16).collect();
    match number {
        1 => Key::new(format!("lazy/{target}/{parent}")),
        number => Key::new(format!("lazy/{target}/{parent}/{number}")),
    }
}

/// The one line that says which layer is not lazy, and why.
fn log_refusal(layer: &str, target: &str, refusal: &Refusal) {
    let reason = refusal.name();
    tracing::warn!(layer, target, reason, why = %refusal, "layer is not lazy, containerd unpacks it");
}
