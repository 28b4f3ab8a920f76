//! containerd's state machine: prepare, view, commit, remove, mounts, stat, update, list, usage,
//! cleanup; and the lazy answer, by which a snapshot appears without being unpacked.
//!
//! # Layout
//! `<root>/store/` is the database, `<root>/snapshots/<id>/` each snapshot's folder with its files
//! and a second copy of its record ([`folder`]). A snapshot is its folder: without it there is no
//! snapshot, whatever the database says; a folder whose record is marked as removed is rubbish.
//!
//! # Locking
//! Calls about one key run one after the other ([`locks`]); those about different keys side by
//! side. The table in memory holds what has been acknowledged; reading calls look at nothing else.
//! Over the network nothing is locked: a lazy layer is first mounted in a folder that nobody knows
//! yet, then entered. Several lazy Prepares for the same layer share one attempt; a failure is
//! shared by those for the same image.
//!
//! # Crash behaviour
//! Every state-changing call runs in a task of its own, so a client that goes away stops nothing
//! half-way. Its steps: the folder and the new record under a temporary name, fsynced; the
//! database, flushed; the record gets its name, fsynced; the answer. A Remove is final once the
//! record is renamed to `removed`. Start-up ([`recover`]) takes the newer of the two copies, writes
//! the other anew, and deletes folders that no finished call made. [`Step`] names the
//! moments in between, and a test kills the daemon in each.

mod cleanup;
mod commit;
mod counts;
mod error;
pub mod filter;
mod flights;
mod folder;
mod fsck;
mod health;
mod lazy;
mod locks;
mod model;
mod persist;
mod prepare;
mod query;
mod reconcile;
mod recover;
mod remove;
mod sources;
mod table;
mod tree;
mod update;
mod view;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

pub use counts::Counts;
pub use error::Error;
pub use fsck::{Finding, Report, Severity, fsck};
pub use health::Degraded;
pub use model::{Key, Kind, Labels, Record, Refused, Stamp, Usage, labels};
pub use prepare::Prepared;
pub use recover::lazy_layers;
pub use update::Mask;

use crate::layer::Layers;
use crate::overlay::options::{Features, Mount};
use crate::snapshotter::filter::Filters;
use crate::snapshotter::flights::Flights;
use crate::snapshotter::folder::Snapshots;
use crate::snapshotter::health::Health;
use crate::snapshotter::locks::Locks;
use crate::snapshotter::table::Table;
use crate::store::{Faults, Root, Step, Store};

/// How long a stopping daemon waits for calls that are under way.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);

/// What a snapshotter is built from.
pub struct Parts {
    /// The root folder, claimed.
    pub root: Root,
    /// The lazy layers.
    pub layers: Arc<dyn Layers>,
    /// What the kernel's overlay understands.
    pub overlay: Features,
    /// What is to go wrong in a test.
    pub faults: Faults,
}

/// The snapshotter; clones are the same one. Needs a tokio runtime.
#[derive(Clone)]
pub struct Snapshotter(Arc<Inner>);

struct Inner {
    root: Root,
    snapshots: Snapshots,
    store: Store<Record>,
    table: RwLock<Table>,
    locks: Locks,
    /// Lazy Prepares under way, by chain id and parent.
    lazy: Flights<(String, Option<Key>), Result<(), Arc<lazy::Failed>>>,
    health: Health,
    counts: counts::Counters,
    layers: Arc<dyn Layers>,
    overlay: Features,
    faults: Faults,
    next_id: AtomicU64,
    next_revision: AtomicU64,
    /// Folders being made, which are nobody's yet and not to be swept.
    making: Mutex<HashSet<u64>>,
    /// Folders of views whose mounts somebody else was told to use, and until when they stay for that.
    lent: Mutex<HashMap<u64, Instant>>,
    /// One sweep of the folders at a time.
    sweeping: tokio::sync::Mutex<()>,
    /// Asks the background sweep to look.
    removed: Arc<tokio::sync::Notify>,
    /// Held shared by every state-changing call, exclusively by the end.
    running: Arc<tokio::sync::RwLock<()>>,
    closed: AtomicBool,
    stop: CancellationToken,
}

impl Snapshotter {
    /// Opens the root's snapshots, repairs what a crash or damage left, and starts mounting the
    /// lazy layers again in the background. Needs no network.
    ///
    /// # Errors
    /// The root cannot be read or written, or a newer program has written it.
    pub async fn open(parts: Parts) -> Result<Self, Error> {
        let inner = blocking(move || recover::open(parts)).await?;
        let snapshotter = Self(Arc::new(inner));
        health::start(&snapshotter.0);
        cleanup::start(&snapshotter.0);
        Ok(snapshotter)
    }

    /// Makes an active snapshot, or answers that the layer is there already, lazily.
    ///
    /// # Errors
    /// The key is taken, the parent missing or not committed, or the disk failed.
    pub async fn prepare(
        &self,
        key: Key,
        parent: Option<Key>,
        labels: Labels,
    ) -> Result<Prepared, Error> {
        self.task(|inner| async move { inner.prepare(key, parent, labels).await })
            .await
    }

    /// Makes a read-only view of a parent.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub async fn view(
        &self,
        key: Key,
        parent: Option<Key>,
        labels: Labels,
    ) -> Result<Vec<Mount>, Error> {
        let new = prepare::New {
            kind: Kind::View,
            key,
            labels,
            refused: None,
        };
        self.task(|inner| async move { inner.create(new, parent).await })
            .await
    }

    /// The mounts of an active snapshot or a view.
    ///
    /// # Errors
    /// There is none of this key, it is committed, or a lazy layer below it is not available.
    pub async fn mounts(&self, key: &Key) -> Result<Vec<Mount>, Error> {
        self.0.mounts(key).await
    }

    /// Turns an active snapshot into a committed one of another name. Its labels become `labels`.
    ///
    /// # Errors
    /// The name is taken, the key missing or not active, or the disk failed.
    pub async fn commit(&self, name: Key, key: Key, labels: Labels) -> Result<(), Error> {
        self.task(|inner| async move { inner.commit(name, key, labels).await })
            .await
    }

    /// Removes a snapshot. Its disk space is given back soon, or by [`Self::cleanup`].
    ///
    /// # Errors
    /// There is none of this key, others build on it, or the disk failed.
    pub async fn remove(&self, key: Key) -> Result<(), Error> {
        self.task(|inner| async move { inner.remove(&key).await })
            .await
    }

    /// What is known of a snapshot.
    ///
    /// # Errors
    /// There is none of this key.
    pub fn stat(&self, key: &Key) -> Result<Arc<Record>, Error> {
        self.0.table.read().get(key).cloned()
    }

    /// Changes labels.
    ///
    /// # Errors
    /// There is none of this key, or the disk failed.
    pub async fn update(&self, key: Key, labels: Labels, mask: Mask) -> Result<Arc<Record>, Error> {
        self.task(|inner| async move { inner.update(&key, labels, mask).await })
            .await
    }

    /// The snapshots that are asked for, by key.
    #[must_use]
    pub fn list(&self, filters: &Filters) -> Vec<Arc<Record>> {
        let table = self.0.table.read();
        let wanted = |record: &&Arc<Record>| filters.matches(record);
        table.iter().filter(wanted).cloned().collect()
    }

    /// What a snapshot holds by itself.
    ///
    /// # Errors
    /// There is none of this key, or its files cannot be counted.
    pub async fn usage(&self, key: &Key) -> Result<Usage, Error> {
        self.0.usage(key).await
    }

    /// Gives back the disk space of everything that was removed, and the mounts.
    ///
    /// # Errors
    /// Something could not be deleted; the rest was.
    pub async fn cleanup(&self) -> Result<(), Error> {
        self.task(|inner| async move { inner.cleanup().await })
            .await
    }

    /// The lazy layers that are not mounted at present, and why.
    #[must_use]
    pub fn degraded(&self) -> Vec<Degraded> {
        self.0.degraded()
    }

    /// How Prepares that named a layer were answered since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.0.counts.get()
    }

    /// All snapshots, by key.
    #[must_use]
    pub fn records(&self) -> Vec<Arc<Record>> {
        self.0.table.read().iter().cloned().collect()
    }

    /// The folder in which a snapshot's files are.
    #[must_use]
    pub fn files(&self, record: &Record) -> PathBuf {
        self.0.snapshots.folder(record.id).fs()
    }

    /// Where `view` has a mount of its own of the lazy layer of `layer`, if that is below it.
    #[must_use]
    pub fn own_mount(&self, view: &Record, layer: &Record) -> PathBuf {
        self.0.snapshots.folder(view.id).lower(layer.id)
    }

    /// The root folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.0.root.path()
    }

    /// Lets calls under way finish, refuses new ones and closes the database. Unmounts nothing.
    pub async fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
        self.0.stop.cancel();
        let drained = tokio::time::timeout(DRAIN, self.0.running.write()).await;
        if drained.is_err() {
            tracing::warn!("calls still under way are given up");
        }
        let inner = Arc::clone(&self.0);
        let closed = blocking(move || {
            inner.store.close();
            Ok(())
        });
        if let Err(error) = closed.await {
            tracing::error!(%error, "metadata store not closed");
        }
    }

    /// Runs a state-changing call to its end, whether or not anyone waits for it.
    async fn task<T, F>(&self, call: impl FnOnce(Arc<Inner>) -> F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let running = Arc::clone(&self.0.running);
        let Ok(running) = running.try_read_owned() else {
            return Err(Error::Stopping);
        };
        if self.0.closed.load(Ordering::SeqCst) {
            return Err(Error::Stopping);
        }
        let call = call(Arc::clone(&self.0));
        let call = async move {
            let _running = running;
            call.await
        };
        let task = tokio::spawn(call.in_current_span());
        task.await
            .unwrap_or_else(|error| Err(Error::Internal(error.to_string())))
    }
}

impl Inner {
    fn new_id(&self) -> Making<'_> {
        let id = self.next_id.fetch_add(1, Ordering::SeqCst);
        self.making.lock().insert(id);
        Making { inner: self, id }
    }

    fn new_revision(&self) -> u64 {
        self.next_revision.fetch_add(1, Ordering::SeqCst)
    }

    fn fault(&self, step: Step) -> Result<(), Error> {
        let path = self.snapshots.path();
        self.faults.at(step).map_err(Error::io(step.name(), path))
    }
}

/// A number for a folder that is being made. While this lives, the folder is not swept.
struct Making<'a> {
    inner: &'a Inner,
    id: u64,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.inner.making.lock().remove(&self.id);
    }
}

/// Runs file system calls where they may block.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(call)
        .await
        .unwrap_or_else(|error| Err(Error::Internal(error.to_string())))
}

#[cfg(test)]
mod tests;
