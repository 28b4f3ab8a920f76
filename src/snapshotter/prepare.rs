//! Prepare and View: a new snapshot on top of a committed one, or of nothing.

use std::sync::Arc;

use crate::oci::label;
use crate::overlay::options::Mount;
use crate::snapshotter::model::{Key, Kind, Labels, Record, Refused, Stamp};
use crate::snapshotter::persist::Steps;
use crate::snapshotter::{Error, Inner, blocking};
use crate::store::Step;

const STEPS: Steps = Steps {
    record: Step::PrepareRecord,
    stored: Step::PrepareStored,
    done: Step::PrepareDone,
};

/// What a Prepare ends with.
#[derive(Debug)]
pub enum Prepared {
    /// An active snapshot; containerd unpacks the layer into it, or runs a container on it.
    Mounts(Vec<Mount>),
    /// The layer that was asked for is there as a committed snapshot, to be read lazily. There is
    /// no snapshot of the given key.
    Lazy,
}

/// An ordinary snapshot that is to be made.
pub(super) struct New {
    pub(super) kind: Kind,
    pub(super) key: Key,
    pub(super) labels: Labels,
    /// Why it is not a lazy one, if that was asked for.
    pub(super) refused: Option<Refused>,
}

impl Inner {
    pub(super) async fn prepare(
        self: Arc<Self>,
        key: Key,
        parent: Option<Key>,
        labels: Labels,
    ) -> Result<Prepared, Error> {
        {
            let table = self.table.read();
            table.check_free(&key)?;
            table.check_parent(parent.as_ref())?;
        }
        let refused = match labels.get(label::SNAPSHOT_REF) {
            None => None,
            Some(target) => match self
                .answer_lazily(&key, target, parent.as_ref(), &labels)
                .await
            {
                None => {
                    self.counts.count_lazy();
                    return Ok(Prepared::Lazy);
                }
                refused => refused,
            },
        };
        let new = New {
            kind: Kind::Active,
            key,
            labels,
            refused,
        };
        let mounts = self.create(new, parent).await?;
        Ok(Prepared::Mounts(mounts))
    }

    /// Makes an ordinary snapshot.
    pub(super) async fn create(
        self: Arc<Self>,
        new: New,
        parent: Option<Key>,
    ) -> Result<Vec<Mount>, Error> {
        let New {
            kind,
            key,
            labels,
            refused,
        } = new;
        // Before anything is made: what cannot be mounted would be left behind.
        self.ensure_chain(parent.as_ref()).await?;
        let _held = self.locks.hold(&[&key], parent.as_ref()).await;
        {
            let table = self.table.read();
            table.check_free(&key)?;
            table.check_parent(parent.as_ref())?;
        }
        self.fault(Step::PrepareStart)?;
        let making = self.new_id();
        let now = Stamp::now();
        let record = Record {
            id: making.id,
            revision: self.new_revision(),
            kind,
            key: key.clone(),
            parent,
            labels,
            created: now,
            updated: now,
            usage: None,
            lazy: None,
            refused,
        };
        let id = making.id;
        let view = (kind == Kind::View).then_some(id);
        let made = match self.make_folder(&record).await {
            Ok(()) if view.is_some() => {
                let parents = self.table.read().parents(&record);
                match parents {
                    Ok(parents) => self.mount_own_layers(id, &parents).await,
                    Err(error) => Err(error),
                }
            }
            made => made,
        };
        let entered = match made {
            Ok(()) => self.persist(record, None, STEPS).await,
            Err(error) => Err(error),
        };
        let record = match entered {
            Ok(record) => record,
            Err(error) => {
                self.discard(id).await;
                return Err(error);
            }
        };
        if !record.labels.contains_key(label::SNAPSHOT_REF) {
            // Nothing is unpacked into it, so a container will start on it.
            self.layers.starting(&self.stack(record.parent.as_ref())?);
        }
        self.mounts_of(&record, view)
    }

    /// Sees to it that the lazy layers from `parent` down are mounted.
    pub(super) async fn ensure_chain(self: &Arc<Self>, parent: Option<&Key>) -> Result<(), Error> {
        let parent = parent.and_then(|parent| self.table.read().get(parent).cloned().ok());
        let Some(parent) = parent else {
            // Found out, and said, under the locks.
            return Ok(());
        };
        self.ensure_mounted(&parent).await?;
        self.ensure_parents_mounted(&parent).await
    }

    async fn make_folder(self: &Arc<Self>, record: &Record) -> Result<(), Error> {
        let parent = record.parent.as_ref();
        let parent = parent.and_then(|parent| self.table.read().get(parent).cloned().ok());
        let (inner, id, kind) = (Arc::clone(self), record.id, record.kind);
        blocking(move || {
            let owner = match parent {
                Some(parent) => inner.owner(&parent)?,
                None => None,
            };
            inner.snapshots.folder(id).create(kind, owner)?;
            inner.fault(Step::PrepareFolder)
        })
        .await
    }

    /// Owner of the root of a parent's files, which a snapshot on top of it takes over.
    fn owner(&self, parent: &Record) -> Result<Option<(u32, u32)>, Error> {
        let folder = self.snapshots.folder(parent.id);
        if parent.lazy.is_some() {
            return Ok(self.layers.root_owner(&folder.fs()));
        }
        folder.owner().map(Some)
    }
}
