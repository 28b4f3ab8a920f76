//! Commit: an active snapshot becomes a committed one, under another name.
//!
//! The folder stays where it is, so mounts that containers still have on it stay valid. What was
//! written into it is made durable first: a committed layer whose files are gone after a power cut
//! would be used as if it were whole.

use std::sync::Arc;

use crate::snapshotter::model::{Key, Kind, Labels, Record, Stamp, Usage};
use crate::snapshotter::persist::Steps;
use crate::snapshotter::{Error, Inner, blocking, tree};
use crate::store::{Step, files};

const STEPS: Steps = Steps {
    record: Step::CommitRecord,
    stored: Step::CommitStored,
    done: Step::CommitDone,
};

impl Inner {
    /// Created and updated are set anew, and labels come from the call alone.
    pub(super) async fn commit(
        self: Arc<Self>,
        name: Key,
        key: Key,
        labels: Labels,
    ) -> Result<(), Error> {
        let _held = self.locks.hold(&[&key, &name], None).await;
        let old = {
            let table = self.table.read();
            let old = Arc::clone(table.active(&key)?);
            table.check_free(&name)?;
            old
        };
        self.fault(Step::CommitStart)?;
        let usage = self.sync_and_count(old.id).await?;
        let now = Stamp::now();
        let record = Record {
            revision: self.new_revision(),
            kind: Kind::Committed,
            key: name,
            labels,
            created: now,
            updated: now,
            usage: Some(usage),
            ..(*old).clone()
        };
        self.persist(record, Some(old), STEPS).await?;
        Ok(())
    }

    async fn sync_and_count(self: &Arc<Self>, id: u64) -> Result<Usage, Error> {
        let inner = Arc::clone(self);
        blocking(move || {
            let fs = inner.snapshots.folder(id).fs();
            files::sync_file_system(&fs)?;
            let usage = tree::usage(&fs).map_err(Error::io("count", &fs))?;
            inner.fault(Step::CommitSynced)?;
            Ok(usage)
        })
        .await
    }
}
