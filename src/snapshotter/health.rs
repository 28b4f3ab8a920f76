//! Lazy layers after a start: mounted again in the background, tried again while they cannot be.
//!
//! The API serves at once; a call that needs a layer which is not mounted yet waits for it, or is
//! told that it is not available. No layer's trouble stops another, or the start.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt as _;
use parking_lot::Mutex;

use crate::oci::Digest;
use crate::snapshotter::flights::Flights;
use crate::snapshotter::model::{Key, Record};
use crate::snapshotter::{Error, Inner};

/// Layers mounted side by side at start.
const AT_ONCE: usize = 16;
/// Pause between two rounds for what is degraded.
const RETRY: Duration = Duration::from_secs(15);
/// How long a call waits for a layer before it is told that there is none.
const PATIENCE: Duration = Duration::from_secs(20);

/// A lazy layer that is not mounted at present.
#[derive(Debug, Clone)]
pub struct Degraded {
    /// The snapshot.
    pub key: Key,
    /// Digest of the compressed blob.
    pub layer: Digest,
    /// Why the last try failed; `None` before the first one has ended.
    pub why: Option<String>,
    /// Tries so far.
    pub tries: u32,
}

/// Which lazy layers are not mounted.
#[derive(Default)]
pub(super) struct Health {
    /// By id. A layer that is not in here is mounted.
    waiting: Mutex<HashMap<u64, Waiting>>,
    restores: Flights<u64, Result<(), String>>,
}

#[derive(Default)]
struct Waiting {
    why: Option<String>,
    tries: u32,
}

impl Health {
    /// All that has to be mounted again.
    pub(super) fn new(lazy: impl Iterator<Item = u64>) -> Self {
        Self {
            waiting: Mutex::new(lazy.map(|id| (id, Waiting::default())).collect()),
            restores: Flights::default(),
        }
    }

    /// The snapshot is removed.
    pub(super) fn forget(&self, id: u64) {
        self.waiting.lock().remove(&id);
    }

    /// Whether something may be mounted in this folder at any moment.
    pub(super) fn is_restoring(&self, id: u64) -> bool {
        self.restores.has(&id)
    }

    /// What was mounted is not any more.
    fn lose(&self, id: u64) {
        self.waiting.lock().entry(id).or_default();
    }

    fn is_mounted(&self, id: u64) -> bool {
        !self.waiting.lock().contains_key(&id)
    }

    fn ids(&self) -> Vec<u64> {
        self.waiting.lock().keys().copied().collect()
    }
}

/// Mounts everything again, then keeps trying what could not be, until closed or gone.
pub(super) fn start(inner: &Arc<Inner>) {
    let weak = Arc::downgrade(inner);
    let stop = inner.stop.clone();
    tokio::spawn(async move { stop.run_until_cancelled(keep_trying(weak)).await });
}

async fn keep_trying(weak: Weak<Inner>) {
    while let Some(inner) = weak.upgrade() {
        let mut ids = inner.health.ids();
        // Containers that run wait for these; what has to be mounted anew, or fetched, comes after.
        let handed_over = |id: &u64| {
            inner
                .layers
                .is_handed_over(&inner.snapshots.folder(*id).fs())
        };
        ids.sort_by_cached_key(|id| !handed_over(id));
        futures::stream::iter(ids)
            .for_each_concurrent(AT_ONCE, |id| {
                let inner = &inner;
                async move {
                    // It is in the list of degraded layers, and in the log.
                    let _ = inner.restore(id).await;
                }
            })
            .await;
        inner.restore_own_layers().await;
        drop(inner);
        tokio::time::sleep(RETRY).await;
    }
}

impl Inner {
    /// Returns when the layer of a snapshot is mounted; at once if it is not lazy. An administrator may
    /// have unmounted it or aborted its connection: that is noticed here, and mended.
    pub(super) async fn ensure_mounted(self: &Arc<Self>, record: &Record) -> Result<(), Error> {
        let Some(lazy) = &record.lazy else {
            return Ok(());
        };
        if self.health.is_mounted(record.id) {
            let fs = self.snapshots.folder(record.id).fs();
            if self.layers.is_serving(&fs) {
                return Ok(());
            }
            tracing::error!(
                layer = %lazy.layer,
                id = record.id,
                target = %fs.display(),
                "a layer's mount was taken away or aborted from outside, mounting it again: new \
                 containers work, those that still use an aborted one have to be restarted"
            );
            self.health.lose(record.id);
        }
        let why = match tokio::time::timeout(PATIENCE, self.restore(record.id)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(why)) => why,
            Err(_) => "it is still being mounted".to_owned(),
        };
        Err(Error::Degraded {
            layer: lazy.layer,
            why,
        })
    }

    pub(super) fn degraded(&self) -> Vec<Degraded> {
        let table = self.table.read();
        let waiting = self.health.waiting.lock();
        let describe = |(id, waiting): (&u64, &Waiting)| {
            let record = table.by_id(*id)?;
            Some(Degraded {
                key: record.key.clone(),
                layer: record.lazy.as_ref()?.layer,
                why: waiting.why.clone(),
                tries: waiting.tries,
            })
        };
        waiting.iter().filter_map(describe).collect()
    }

    /// One try, shared by all who want it.
    async fn restore(self: &Arc<Self>, id: u64) -> Result<(), String> {
        let restored = self.health.restores.join(&id, || {
            let inner = Arc::clone(self);
            async move { inner.try_restore(id).await }
        });
        let panicked = || Err("mounting it panicked".to_owned());
        restored.await.unwrap_or_else(panicked)
    }

    async fn try_restore(self: Arc<Self>, id: u64) -> Result<(), String> {
        let Some(record) = self.table.read().by_id(id).cloned() else {
            self.health.forget(id);
            return Err("it has been removed".to_owned());
        };
        let Some(lazy) = &record.lazy else {
            self.health.forget(id);
            return Ok(());
        };
        let fs = self.snapshots.folder(id).fs();
        if self.layers.is_serving(&fs) {
            // Another try has ended between the caller's look and this one's begin.
            self.health.forget(id);
            return Ok(());
        }
        let result = self.layers.restore(lazy, &fs).await;
        if !self.table.read().contains_id(id) {
            // Removed meanwhile: the sweep has left the folder alone so far.
            self.removed.notify_one();
        }
        let mut waiting = self.health.waiting.lock();
        let Err(error) = result else {
            waiting.remove(&id);
            return Ok(());
        };
        let why = error.to_string();
        if let Some(waiting) = waiting.get_mut(&id) {
            waiting.tries += 1;
            if waiting.why.as_ref() != Some(&why) {
                tracing::warn!(layer = %lazy.layer, id, %why, "layer is degraded, tried again");
            }
            waiting.why = Some(why.clone());
        }
        Err(why)
    }
}
