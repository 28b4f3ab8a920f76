//! Giving back what removed snapshots held: mounts, files, cached content.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use crate::layer::LayerRecord;
use crate::snapshotter::folder::Found;
use crate::snapshotter::view::LENT;
use crate::snapshotter::{Error, Inner, blocking, tree};
use crate::store::Step;

/// How long the background sweep waits after a Remove: containerd mostly removes several and then
/// asks for a Cleanup itself.
const PAUSE: Duration = Duration::from_secs(2);

/// Sweeps at once (a crash may have left something), some time after each Remove, and once more when what was lent then
/// is not any longer, until the snapshotter is closed or gone.
pub(super) fn start(inner: &Arc<Inner>) {
    let weak = Arc::downgrade(inner);
    let stop = inner.stop.clone();
    let removed = Arc::clone(&inner.removed);
    tokio::spawn(async move {
        stop.run_until_cancelled(sweep_after_removals(weak, removed))
            .await;
    });
}

async fn sweep_after_removals(weak: Weak<Inner>, removed: Arc<Notify>) {
    while let Some(inner) = weak.upgrade() {
        let Ok(running) = Arc::clone(&inner.running).try_read_owned() else {
            return;
        };
        if let Err(error) = inner.sweep().await {
            tracing::warn!(%error, "clean-up incomplete, tried again after the next removal");
        }
        let lent = inner.is_any_lent();
        drop((running, inner));
        tokio::select! {
            () = removed.notified() => tokio::time::sleep(PAUSE).await,
            // What was lent had to stay, and nobody says when that ends.
            () = tokio::time::sleep(LENT), if lent => {}
        }
    }
}

impl Inner {
    pub(super) async fn cleanup(self: Arc<Self>) -> Result<(), Error> {
        self.sweep().await?;
        if !self.lazy.is_empty() {
            // A layer being mounted is in no record yet; its index must not go.
            return Ok(());
        }
        let live: Vec<LayerRecord> = {
            let table = self.table.read();
            table
                .iter()
                .filter_map(|record| record.lazy.clone())
                .collect()
        };
        let root = self.root.path();
        self.layers
            .sweep(&live)
            .await
            .map_err(Error::io("sweep", root))
    }

    /// Deletes every folder that belongs to no snapshot and is lent to nobody; the first error is reported after all of
    /// them have been tried.
    pub(super) async fn sweep(self: &Arc<Self>) -> Result<(), Error> {
        let _alone = self.sweeping.lock().await;
        let inner = Arc::clone(self);
        let ids = blocking(move || inner.snapshots.ids()).await?;
        let mut failed = Ok(());
        for id in ids {
            if !self.is_rubbish(id) {
                continue;
            }
            if let Err(error) = self.delete(id).await {
                tracing::warn!(id, %error, "folder of a removed snapshot not deleted");
                failed = failed.and(Err(error));
            }
        }
        failed
    }

    /// The folder was listed before this is asked, so one that is being made is known as such or
    /// entered by now.
    fn is_rubbish(&self, id: u64) -> bool {
        let made = !self.making.lock().contains(&id) && !self.health.is_restoring(id);
        made && !self.table.read().contains_id(id) && !self.is_lent(id)
    }

    /// Undoes what was made for a snapshot that is not entered in the end.
    pub(super) async fn discard(self: &Arc<Self>, id: u64) {
        if let Err(error) = self.delete(id).await {
            tracing::warn!(id, %error, "unfinished snapshot not deleted yet");
        }
    }

    /// Deletes a folder, taking down what is mounted in it.
    async fn delete(self: &Arc<Self>, id: u64) -> Result<(), Error> {
        let fs = self.snapshots.folder(id).fs();
        self.layers
            .unmount(&fs)
            .await
            .map_err(Error::io("unmount", &fs))?;
        self.unmount_own_layers(id).await?;
        let inner = Arc::clone(self);
        blocking(move || inner.delete_files(id)).await
    }

    fn delete_files(&self, id: u64) -> Result<(), Error> {
        self.fault(Step::CleanupUnmounted)?;
        let folder = self.snapshots.folder(id);
        match folder.find()? {
            Found::Damaged(broken) => {
                // It may be the only trace of a snapshot that somebody misses.
                tracing::debug!(id, %broken, "folder with an unreadable record is kept");
                return Ok(());
            }
            // Of a call that could not be taken back; half deleted it must not look alive.
            Found::Record(_) => folder.mark_removed()?,
            Found::Removed | Found::Nothing => {}
        }
        let fs = folder.fs();
        if tree::is_mounted(&fs).map_err(Error::io("stat", &fs))? {
            let busy = std::io::Error::from(std::io::ErrorKind::ResourceBusy);
            return Err(Error::io("delete", &fs)(busy));
        }
        tree::delete(folder.path(), c"removed").map_err(Error::io("delete", folder.path()))?;
        self.fault(Step::CleanupDone)
    }
}
