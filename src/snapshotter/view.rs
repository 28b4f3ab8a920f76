//! The mounts that views have for themselves.
//!
//! On the mount of a layer without extended attributes the kernel is told so once, and asks no more: containers on
//! overlayfs look up a file with half the requests. But containerd's diff, which makes a layer of a container
//! (`commit`), compares files by an attribute, and takes "not supported" for a failure. It looks at two
//! trees: a view of what the container began with, made for this and removed after it, and the container's mounts. So a
//! view has mounts of its own of the lazy layers below it, on which each question is answered; and as long as there is a
//! view, the mounts of active snapshots beside it lead to these too. Whoever was told so mounts them a moment later, so
//! a view that is removed meanwhile leaves its folder to the sweep only after [`LENT`].
//!
//! # Crash behaviour
//! They are mounts like all others of lazy layers: taken over by the next daemon, which keeps trying what it cannot
//! serve at once, and made again when they are asked for and gone. They lie in the view's folder and go with it; a
//! start does not know what was lent and sweeps at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::snapshotter::model::{Key, Kind, Record};
use crate::snapshotter::{Error, Inner, blocking};

/// How long the mounts of a view stay for who was told to use them: a runtime mounts them long before that.
pub(super) const LENT: Duration = Duration::from_secs(60);

impl Inner {
    /// Mounts for the view in folder `id` whatever of the lazy layers below it is not mounted yet.
    pub(super) async fn mount_own_layers(
        self: &Arc<Self>,
        id: u64,
        parents: &[Arc<Record>],
    ) -> Result<(), Error> {
        for parent in parents {
            let Some(lazy) = &parent.lazy else { continue };
            let (inner, layer) = (Arc::clone(self), parent.id);
            let target = self.snapshots.folder(id).lower(layer);
            if self.layers.is_serving(&target) {
                continue;
            }
            blocking(move || inner.snapshots.folder(id).make_lower(layer).map(drop)).await?;
            let mounted = self.layers.restore(lazy, &target).await;
            mounted.map_err(|why| Error::Degraded {
                layer: lazy.layer,
                why: why.to_string(),
            })?;
        }
        Ok(())
    }

    /// The same for a view that exists already, which may have lost them.
    pub(super) async fn ensure_own_layers(self: &Arc<Self>, key: &Key) -> Result<(), Error> {
        let _held = self.locks.hold(&[key], None).await;
        let (record, parents) = {
            let table = self.table.read();
            let record = Arc::clone(table.get(key)?);
            let parents = table.parents(&record)?;
            (record, parents)
        };
        self.mount_own_layers(record.id, &parents).await
    }

    /// One try to serve what a predecessor has left mounted in views and nobody serves yet: containers beside them
    /// wait for it, and need not ask for mounts ever again.
    pub(super) async fn restore_own_layers(self: &Arc<Self>) {
        let views: Vec<Key> = {
            let table = self.table.read();
            let views = table.iter().filter(|record| record.kind == Kind::View);
            let left = views.filter(|view| {
                let parents = table.parents(view).unwrap_or_default();
                let mut lazy = parents.iter().filter(|parent| parent.lazy.is_some());
                lazy.any(|parent| self.is_left_unserved(&self.lower_of(view.id, parent)))
            });
            left.map(|view| view.key.clone()).collect()
        };
        for key in views {
            if let Err(error) = self.ensure_own_layers(&key).await {
                tracing::debug!(view = %key, %error, "its own mounts are not served yet");
            }
        }
    }

    fn is_left_unserved(&self, target: &Path) -> bool {
        self.layers.is_handed_over(target) && !self.layers.is_serving(target)
    }

    /// Takes down what [`Self::mount_own_layers`] has mounted in folder `id`.
    pub(super) async fn unmount_own_layers(self: &Arc<Self>, id: u64) -> Result<(), Error> {
        let inner = Arc::clone(self);
        let layers = blocking(move || inner.snapshots.folder(id).own_layers()).await?;
        for layer in layers {
            let target = self.snapshots.folder(id).lower(layer);
            let unmounted = self.layers.unmount(&target).await;
            unmounted.map_err(Error::io("unmount", &target))?;
        }
        Ok(())
    }

    /// A view on the same parent as `record`, an active snapshot, if all of its own mounts are there. They stay for
    /// a while from now.
    pub(super) fn borrow_view(&self, record: &Record, parents: &[Arc<Record>]) -> Option<u64> {
        // Noted under the table's lock: whoever finds the view removed finds it lent.
        let table = self.table.read();
        let mut views = table.iter().filter(|other| {
            other.kind == Kind::View && other.parent == record.parent && other.parent.is_some()
        });
        let serves = |view: &u64| {
            let mut lazy = parents.iter().filter(|parent| parent.lazy.is_some());
            lazy.all(|parent| self.layers.is_serving(&self.lower_of(*view, parent)))
        };
        let view = views.by_ref().map(|view| view.id).find(serves)?;
        self.lent.lock().insert(view, Instant::now() + LENT);
        Some(view)
    }

    /// Whether somebody may be about to use what is mounted in folder `id`.
    pub(super) fn is_lent(&self, id: u64) -> bool {
        let lent = self.lent.lock();
        lent.get(&id).is_some_and(|until| *until > Instant::now())
    }

    /// Whether there is any such folder. Forgets those that are not any longer.
    pub(super) fn is_any_lent(&self) -> bool {
        let (mut lent, now) = (self.lent.lock(), Instant::now());
        lent.retain(|_, until| *until > now);
        !lent.is_empty()
    }

    /// Where the files of `parent` are for the view in folder `id`, or for who is beside it.
    pub(super) fn lower_of(&self, id: u64, parent: &Record) -> PathBuf {
        match parent.lazy {
            Some(_) => self.snapshots.folder(id).lower(parent.id),
            None => self.snapshots.folder(parent.id).fs(),
        }
    }
}
