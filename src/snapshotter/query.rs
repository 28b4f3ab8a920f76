//! Mounts and Usage: what containerd asks of a snapshot beside its record.

use std::path::PathBuf;
use std::sync::Arc;

use crate::overlay::options::{Access, Mount, bind};
use crate::snapshotter::model::{Key, Kind, Record, Usage};
use crate::snapshotter::{Error, Inner, blocking, tree};

impl Inner {
    pub(super) async fn mounts(self: &Arc<Self>, key: &Key) -> Result<Vec<Mount>, Error> {
        let record = Arc::clone(self.table.read().get(key)?);
        if record.kind == Kind::Committed {
            return Err(Error::NoMounts(key.clone()));
        }
        self.ensure_parents_mounted(&record).await?;
        if record.kind == Kind::View {
            self.ensure_own_layers(key).await?;
            return self.mounts_of(&record, Some(record.id));
        }
        let parents = self.table.read().parents(&record)?;
        self.mounts_of(&record, self.borrow_view(&record, &parents))
    }

    /// Waits for lazy layers that are being mounted again: an empty mount point must never be
    /// taken for a layer.
    pub(super) async fn ensure_parents_mounted(
        self: &Arc<Self>,
        record: &Record,
    ) -> Result<(), Error> {
        let parents = self.table.read().parents(record)?;
        for parent in &parents {
            self.ensure_mounted(parent).await?;
        }
        Ok(())
    }

    /// The mounts of a snapshot whose parents are mounted; of lazy ones those that `view` has for itself, if any.
    pub(super) fn mounts_of(
        &self,
        record: &Record,
        view: Option<u64>,
    ) -> Result<Vec<Mount>, Error> {
        let parents = self.table.read().parents(record)?;
        let own = self.snapshots.folder(record.id);
        let files = |parent: &Arc<Record>| match view {
            Some(view) => self.lower_of(view, parent),
            None => self.snapshots.folder(parent.id).fs(),
        };
        let lower: Vec<PathBuf> = parents.iter().map(files).collect();
        let mount = match (record.kind, lower.as_slice()) {
            (Kind::Active, []) => bind(&own.fs(), Access::Write),
            (Kind::Active, lower) => self.overlay.overlay(lower, Some((&own.fs(), &own.work()))),
            (Kind::View | Kind::Committed, []) => bind(&own.fs(), Access::Read),
            (Kind::View | Kind::Committed, [one]) => bind(one, Access::Read),
            (Kind::View | Kind::Committed, lower) => self.overlay.overlay(lower, None),
        };
        Ok(vec![mount])
    }

    pub(super) async fn usage(self: &Arc<Self>, key: &Key) -> Result<Usage, Error> {
        let record = Arc::clone(self.table.read().get(key)?);
        let fs = self.snapshots.folder(record.id).fs();
        match record.kind {
            Kind::Committed if record.lazy.is_some() => {
                let live = self.layers.usage(&fs).map(|live| Usage {
                    bytes: live.bytes,
                    inodes: live.inodes,
                });
                Ok(live.or(record.usage).unwrap_or_default())
            }
            Kind::Committed => Ok(record.usage.unwrap_or_default()),
            Kind::Active => {
                blocking(move || tree::usage(&fs).map_err(Error::io("count", &fs))).await
            }
            // Nothing can be written into it.
            Kind::View => Ok(Usage::default()),
        }
    }
}
