//! The lazy answer: a Prepare that names a layer becomes a committed snapshot that is a mount.
//!
//! Order: say what is coming (the image's layers are then read side by side), mount in a new
//! folder, take over from the layers below what this one does not list (they have to be mounted for
//! that), enter it in the books, answer. Nothing is locked while the network is waited for, so
//! parent and target are looked at again before the snapshot is entered.

use std::path::PathBuf;
use std::sync::Arc;

use crate::layer::{LayerRecord, NotLazy};
use crate::oci::{Digest, LayerLabels, label};
use crate::snapshotter::model::{Key, Kind, Labels, Record, Refused, Stamp, Usage};
use crate::snapshotter::persist::Steps;
use crate::snapshotter::{Error, Inner, Making, blocking};
use crate::store::Step;

const STEPS: Steps = Steps {
    record: Step::LazyRecord,
    stored: Step::LazyStored,
    done: Step::LazyDone,
};

/// An attempt that failed.
pub(super) struct Failed {
    /// Whose it was: others have joined that want the same snapshot.
    layer: LayerLabels,
    why: NotLazy,
}

/// A failure of this node's.
impl From<Error> for NotLazy {
    fn from(error: Error) -> Self {
        match error {
            Error::Internal(why) => Self::Internal(why),
            error => Self::Local(error.to_string()),
        }
    }
}

impl Inner {
    /// `None` if the target is there as a lazy snapshot on this parent, perhaps since this call.
    /// Otherwise containerd has to unpack it: one log line has said why, and it is counted.
    pub(super) async fn answer_lazily(
        self: &Arc<Self>,
        key: &Key,
        target: &str,
        parent: Option<&Key>,
        labels: &Labels,
    ) -> Option<Refused> {
        let given = labels.clone().into_iter().collect();
        let layer = match LayerLabels::parse(&given) {
            Ok(layer) => LayerLabels {
                namespace: key.namespace().map(str::to_owned),
                ..layer
            },
            Err(_) if self.has_target(target, parent) => return None,
            Err(error) => return Some(self.refuse(&error.into(), target, labels)),
        };
        if self.has_target(target, parent) {
            self.note_source(target, parent, &layer).await;
            return None;
        }
        self.layers.announce(&layer);
        match self.attempt(target, parent, &layer, labels).await {
            Ok(()) => {
                self.note_source(target, parent, &layer).await;
                None
            }
            Err(why) => Some(self.refuse(&why, target, labels)),
        }
    }

    /// Makes the snapshot, together with all who want it now. If that fails at another's image, which may be
    /// elsewhere or have another blob, this one's is tried.
    async fn attempt(
        self: &Arc<Self>,
        target: &str,
        parent: Option<&Key>,
        layer: &LayerLabels,
        labels: &Labels,
    ) -> Result<(), NotLazy> {
        let flight = (target.to_owned(), parent.cloned());
        loop {
            let landed = self.lazy.join(&flight, || {
                let inner = Arc::clone(self);
                let (layer, parent, labels) = (layer.clone(), parent.cloned(), labels.clone());
                async move {
                    let made = inner.make_lazy(layer.clone(), parent, labels).await;
                    made.map_err(|why| Arc::new(Failed { layer, why }))
                }
            });
            let panicked = || NotLazy::Internal("the lazy prepare panicked".to_owned());
            match landed.await.ok_or_else(panicked)? {
                Err(failed) if failed.layer != *layer => {}
                landed => return landed.map_err(|failed| failed.why.clone()),
            }
        }
    }

    /// The one line that says which layer is not lazy, and why; what is kept of it.
    fn refuse(&self, why: &NotLazy, target: &str, labels: &Labels) -> Refused {
        let reason = why.reason();
        self.counts.count_refused(reason);
        let layer = labels.get(label::LAYER_DIGEST);
        let layer = layer.map_or("unknown", String::as_str);
        let name = reason.name();
        tracing::warn!(layer, target, reason = name, %why, "layer is not lazy, containerd unpacks it");
        Refused::new(reason, &why.to_string(), labels)
    }

    fn has_target(&self, target: &str, parent: Option<&Key>) -> bool {
        self.table.read().target(target, parent).is_some()
    }

    async fn make_lazy(
        self: Arc<Self>,
        layer: LayerLabels,
        parent: Option<Key>,
        labels: Labels,
    ) -> Result<(), NotLazy> {
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
            Err(why) => Err(why),
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
            Err(why) => {
                self.discard(making.id).await;
                Err(why)
            }
        }
    }

    async fn mount_layer(
        self: &Arc<Self>,
        making: &Making<'_>,
        layer: &LayerLabels,
        parent: Option<&Key>,
    ) -> Result<LayerRecord, NotLazy> {
        let (inner, id) = (Arc::clone(self), making.id);
        blocking(move || {
            inner.snapshots.folder(id).create(Kind::Committed, None)?;
            inner.fault(Step::LazyFolder)
        })
        .await?;
        let fs = self.snapshots.folder(id).fs();
        let mounted = self.layers.mount(layer, &fs).await;
        let mut lazy = mounted?;
        // An empty mount point lists no folders, and what is inherited is kept for good.
        self.ensure_chain(parent).await?;
        let below = self.stack(parent)?;
        let unlisted = self.layers.inherit(&fs, &below).await;
        lazy.unlisted = unlisted?;
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
    ) -> Result<bool, NotLazy> {
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
            refused: None,
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
