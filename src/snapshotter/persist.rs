//! Putting a record on disk, twice, in the order that makes it durable.

use std::sync::Arc;

use crate::snapshotter::model::Record;
use crate::snapshotter::{Error, Inner, blocking};
use crate::store::{Change, Step};

/// The three moments of one kind of call at which a test may want to strike.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    /// The record is written under a temporary name.
    pub(super) record: Step,
    /// The database has it.
    pub(super) stored: Step,
    /// It has its name.
    pub(super) done: Step,
}

impl Inner {
    /// Makes `record` durable and then visible. `old` is what there was before, if anything. On an
    /// error the old state holds, on disk and in memory.
    pub(super) async fn persist(
        self: &Arc<Self>,
        record: Record,
        old: Option<Arc<Record>>,
        steps: Steps,
    ) -> Result<Arc<Record>, Error> {
        let record = Arc::new(record);
        let (inner, fresh) = (Arc::clone(self), Arc::clone(&record));
        blocking(move || inner.write_fresh(&fresh, steps.record)).await?;
        if let Err(error) = self.enter(&record, steps).await {
            self.take_back(&record, old).await;
            return Err(error);
        }
        self.table.write().insert(Arc::clone(&record));
        Ok(record)
    }

    fn write_fresh(&self, record: &Record, step: Step) -> Result<(), Error> {
        let folder = self.snapshots.folder(record.id);
        let written = folder
            .write_fresh(record)
            .and_then(|()| self.snapshots.sync())
            .and_then(|()| self.fault(step));
        if written.is_err() {
            folder.drop_fresh();
        }
        written
    }

    async fn enter(self: &Arc<Self>, record: &Arc<Record>, steps: Steps) -> Result<(), Error> {
        let change = Change::Put(record.id, Arc::clone(record));
        self.store.apply(change).await?;
        self.fault(steps.stored)?;
        let (inner, id) = (Arc::clone(self), record.id);
        blocking(move || {
            inner.snapshots.folder(id).accept_fresh()?;
            inner.fault(steps.done)
        })
        .await
    }

    /// The database first: while it has the newer version, start-up would take that one.
    async fn take_back(self: &Arc<Self>, record: &Arc<Record>, old: Option<Arc<Record>>) {
        let change = match &old {
            Some(old) => Change::Put(old.id, Arc::clone(old)),
            None => Change::Forget(record.id),
        };
        if let Err(error) = self.store.apply(change).await {
            tracing::warn!(id = record.id, %error, "metadata not taken back");
        }
        let (inner, id) = (Arc::clone(self), record.id);
        let back = blocking(move || inner.snapshots.folder(id).restore_record(old.as_deref()));
        if let Err(error) = back.await {
            tracing::warn!(id = record.id, %error, "record not taken back");
        }
    }
}
