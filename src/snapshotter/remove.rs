//! Remove: a snapshot is gone, its files go later.

use std::sync::Arc;

use crate::snapshotter::model::Key;
use crate::snapshotter::{Error, Inner, blocking};
use crate::store::{Change, Step};

impl Inner {
    /// Final once the record is marked, which needs no free disk space: that the database cannot
    /// be written just now does not stop a removal, or a full disk could never be emptied.
    pub(super) async fn remove(self: Arc<Self>, key: &Key) -> Result<(), Error> {
        let _held = self.locks.hold(&[key], None).await;
        let record = Arc::clone(self.table.read().removable(key)?);
        self.fault(Step::RemoveStart)?;
        let (inner, id) = (Arc::clone(&self), record.id);
        blocking(move || inner.mark(id)).await?;
        if let Err(error) = self.store.apply(Change::Forget(id)).await {
            tracing::warn!(%key, %error, "removed, though the database cannot be written now");
        }
        self.table.write().remove(key);
        self.health.forget(id);
        self.removed.notify_one();
        // Too late to refuse; a test may still kill us here.
        let _ = self.fault(Step::RemoveDone);
        Ok(())
    }

    fn mark(&self, id: u64) -> Result<(), Error> {
        let folder = self.snapshots.folder(id);
        folder.mark_removed()?;
        self.fault(Step::RemoveMarked)
            .inspect_err(|_| folder.unmark())
    }
}
