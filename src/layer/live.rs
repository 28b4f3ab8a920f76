//! The layers mounted on this node.
//!
//! # Layout
//! `<root>/indexes` (see [`super::resolve`]), `<root>/cache` (see [`crate::blob`]) and
//! `<root>/profiles` (see [`super::profile`]). Each snapshot
//! has a mount of its own, even where two snapshots are of the same layer: overlayfs refuses a
//! stack that names one folder twice, and images do hold the same layer twice. What is expensive,
//! the content and its fetching, is shared by all mounts of a layer.
//!
//! # Locking
//! The map of mounts is locked to look up and change it, never across I/O, and before that of detached
//! ones and the maps of content. The snapshotter orders
//! the calls that are about one target.
//!
//! # Crash behaviour
//! Nothing here is state: mounts are taken over or made again ([`super::devices`]) from the snapshots'
//! records.

mod content;
mod detached;
mod pulse;
mod report;
mod starts;

pub use report::{Judged, MountReport, Sums};

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::blob::fetch::Fetcher;
use crate::blob::{Blob, ReadAt as _};
use crate::containerd;
use crate::fs::{self, Below, Index, LayerFs, NoXattrs, ServeOptions, Served, Turns, Unlisted};
use crate::keeper::protocol::FdName;
use crate::keeper::{Held, State};
use crate::layer::devices::Devices;
use crate::layer::flight::Flights;
use crate::layer::images::{self, Images};
use crate::layer::live::detached::Notes;
use crate::layer::opened::Opened;
use crate::layer::profile::{self, Folder, Recorder};
use crate::layer::resolve::Resolver;
use crate::layer::start::Start;
use crate::layer::stored::ContentStore;
use crate::layer::sweep::{Kept, Stays, Sweeper};
use crate::layer::{LayerRecord, LayerUsage, Layers, NotLazy, OWN_LAYERS};
use crate::oci::{Digest, LayerLabels, Reference};
use crate::overlay::{DeviceId, Mounter};
use crate::registry::{self, Sources};

/// The most folders that a lazy layer may put things into without listing them, where layers below
/// have them: they are kept in its record.
const MAX_UNLISTED: usize = 20_000;

/// What live layers are made of.
pub struct Parts {
    /// Folder of indexes, made if it is missing.
    pub indexes: PathBuf,
    /// Folder of notes on layers that were unmounted while in use.
    pub detached: PathBuf,
    /// Client for every registry.
    pub client: registry::Client,
    /// What brings content into the node's cache.
    pub fetcher: Arc<Fetcher>,
    /// How mounts are made.
    pub mounter: Arc<dyn Mounter>,
    /// What keeps mounts alive when this process dies, and what a predecessor left there.
    pub held: Arc<Held>,
    /// The same of their handshakes.
    pub state: Arc<State>,
    /// How mounts are served.
    pub serve: ServeOptions,
    /// Which layers may be lazy.
    pub config: super::Config,
    /// The containerd that pulls.
    pub containerd: containerd::Config,
    /// What starts have read.
    pub profiles: Folder,
    /// What is recorded, and what becomes of it.
    pub profile: profile::Config,
}

struct Mount {
    record: LayerRecord,
    tree: Arc<LayerFs>,
    blob: Arc<Blob>,
    served: Served,
    /// Whether anything has read it since it was mounted.
    is_started: bool,
}

/// [`Layers`] on real registries and real mounts.
pub struct LiveLayers {
    me: Weak<Self>,
    parts: Parts,
    devices: Arc<Devices>,
    /// How far each mount's queue was when it was last looked at.
    looked: Mutex<HashMap<DeviceId, Turns>>,
    resolver: Arc<Resolver>,
    images: Images,
    opened: Opened,
    mounts: Mutex<HashMap<PathBuf, Mount>>,
    /// What is served though it was unmounted, by the name of its descriptor.
    detached: Mutex<HashMap<FdName, Mount>>,
    notes: Notes,
    /// Content, shared by all mounts of it, and where it may be had.
    blobs: Mutex<HashMap<content::Named, (Weak<Blob>, Sources)>>,
    profiles: Arc<Folder>,
    recorder: Recorder,
    /// Images that are being pulled or started, by manifest.
    starts: Flights<Digest, Arc<Start>>,
    /// Content of layers that are not mounted yet.
    early: Mutex<HashMap<Digest, Arc<Blob>>>,
    /// Held for reading from the opening of an index until its mount is in the map, for writing
    /// while indexes are swept: an index in use is never taken for one that is not.
    sweeping: tokio::sync::RwLock<()>,
    sweeper: Arc<Sweeper>,
    /// Mounts taken down so far.
    unmounts: AtomicU64,
}

enum Attached {
    Mounted,
    NoIndex(fs::index::Error),
}

impl LiveLayers {
    /// No mounts yet, on these parts. Makes the folder of indexes if it is missing.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(parts: Parts) -> io::Result<Arc<Self>> {
        std::fs::create_dir_all(&parts.indexes)?;
        let (client, fetcher) = (parts.client.clone(), Arc::clone(&parts.fetcher));
        let resolver = Resolver::new(client, fetcher, parts.indexes.clone(), &parts.config);
        let store = ContentStore::new(&parts.containerd);
        let images = Images::new(parts.client.clone(), store, Arc::clone(&resolver));
        let profiles = Arc::new(parts.profiles.clone());
        if let Err(error) = profiles.sweep(parts.profile.keep) {
            tracing::warn!(%error, "old profiles stay");
        }
        let recorder = Recorder::new(Arc::clone(&profiles), parts.profile.clone());
        let notes = Notes::new(parts.detached.clone());
        let devices = Devices::new(
            Arc::clone(&parts.mounter),
            Arc::clone(&parts.held),
            Arc::clone(&parts.state),
            &notes.names(),
        );
        Ok(Arc::new_cyclic(|me| Self {
            me: me.clone(),
            profiles,
            recorder,
            starts: Flights::new(starts::KEEP),
            early: Mutex::default(),
            parts,
            devices: Arc::new(devices),
            looked: Mutex::default(),
            resolver,
            images,
            opened: Opened::default(),
            mounts: Mutex::default(),
            detached: Mutex::default(),
            notes,
            blobs: Mutex::default(),
            sweeping: tokio::sync::RwLock::default(),
            sweeper: Arc::default(),
            unmounts: AtomicU64::new(0),
        }))
    }

    /// Whether somebody waits for a mount that a predecessor left at `target`.
    pub fn is_waited_for(&self, target: &Path) -> bool {
        self.devices.is_waited_for(target)
    }

    /// Serves a mount that a predecessor left, if its index is on disk: nothing is fetched, so it is
    /// fit for the first moments of a start. `false`: it is left to [`Layers::restore`].
    pub async fn take_over(&self, record: &LayerRecord, target: &Path) -> bool {
        match self.attach(record, target, None).await {
            Ok(Attached::Mounted) => true,
            Ok(Attached::NoIndex(error)) => {
                tracing::warn!(layer = %record.layer, %error, "no usable index, not taken over yet");
                false
            }
            Err(error) => {
                tracing::warn!(layer = %record.layer, %error, "not taken over yet");
                false
            }
        }
    }

    async fn mount_named(
        &self,
        labels: &LayerLabels,
        target: &Path,
    ) -> Result<LayerRecord, NotLazy> {
        let descriptor = self.images.descriptor(labels).await?;
        let image = labels.image.with_digest(labels.manifest);
        let resolved = self.resolver.resolve(&[image], &descriptor);
        let (toc, start) = tokio::join!(resolved, self.start_of(labels));
        let (toc, start) = (toc?, start.ok());
        let record = LayerRecord {
            image: labels.image.to_string(),
            also: Vec::new(),
            manifest: labels.manifest,
            layer: labels.layer,
            size: descriptor.size,
            toc,
            unlisted: Vec::new(),
        };
        self.mount_recorded(&record, target, start.as_ref()).await?;
        Ok(record)
    }

    /// Mounts a layer from its index; if that is damaged or gone (a sweep may have come between),
    /// it is made again.
    async fn mount_recorded(
        &self,
        record: &LayerRecord,
        target: &Path,
        start: Option<&Arc<Start>>,
    ) -> Result<(), NotLazy> {
        let error = match self.attach(record, target, start).await? {
            Attached::Mounted => return Ok(()),
            Attached::NoIndex(error) => error,
        };
        tracing::warn!(layer = %record.layer, %error, "no usable index, making it again");
        let (images, descriptor) = self.described(record)?;
        self.resolver.resolve(&images, &descriptor).await?;
        match self.attach(record, target, start).await? {
            Attached::Mounted => Ok(()),
            Attached::NoIndex(error) => Err(local(error)),
        }
    }

    /// Mounts and serves a layer whose index is on disk. Nothing stays mounted if it fails.
    async fn attach(
        &self,
        record: &LayerRecord,
        target: &Path,
        start: Option<&Arc<Start>>,
    ) -> Result<Attached, NotLazy> {
        let _unswept = self.sweeping.read().await;
        let index = match self.index(record) {
            Ok(index) => index,
            Err(error) => return Ok(Attached::NoIndex(error)),
        };
        let blob = self.blob(record, &index)?;
        if let Some(start) = start {
            start.opened(record.layer, &index, &blob);
        }
        let tree = Arc::new(LayerFs::new(index, Arc::clone(&blob) as _));
        if !record.unlisted.is_empty() {
            tree.set_unlisted(record.unlisted.clone());
        }
        // Of a mount that is taken over the kernel has pages already.
        let is_started = self.devices.is_handed_over(target);
        let served = self.serve(record, &tree, target).await?;
        if start.is_none() {
            blob.prefetch_landmark();
        }
        blob.start();
        tokio::spawn(content::read_ahead(Arc::downgrade(&blob), served.device()));
        let mount = Mount {
            record: record.clone(),
            tree,
            blob,
            served,
            is_started,
        };
        let mut mounts = self.mounts.lock();
        mounts.insert(target.to_owned(), mount);
        self.early.lock().remove(&record.layer);
        Ok(Attached::Mounted)
    }

    async fn serve(
        &self,
        record: &LayerRecord,
        tree: &Arc<LayerFs>,
        target: &Path,
    ) -> Result<Served, NotLazy> {
        let tree = Arc::clone(tree);
        let (devices, mut options) = (Arc::clone(&self.devices), self.parts.serve.clone());
        if target
            .parent()
            .is_some_and(|folder| folder.ends_with(OWN_LAYERS))
        {
            options.no_xattrs = NoXattrs::Absent;
        }
        let (target, layer) = (target.to_owned(), record.layer);
        // The kernel's first message is waited for, so this is not for an asynchronous thread.
        let work = move || {
            let device = devices.open(&target, &layer).map_err(local)?;
            fs::serve(&device, tree, &options).map_err(|error| {
                // Who uses a mount that was taken over waits for a server that can; nobody uses a new one.
                if !device.is_taken_over()
                    && let Err(error) = devices.close(&target)
                {
                    tracing::error!(%error, target = %target.display(), "mount left behind");
                }
                local(error)
            })
        };
        tokio::task::spawn_blocking(work).await.map_err(local)?
    }

    /// All layers that are mounted or may be mounted again.
    fn kept(&self, live: &[LayerRecord]) -> Kept {
        let live = live.iter().map(|record| (record, None));
        let (mounts, detached) = (self.mounts.lock(), self.detached.lock());
        let mounted = mounts
            .values()
            .chain(detached.values())
            .map(|mount| (&mount.record, Some(Arc::clone(mount.tree.index()))));
        // Of two for one path the later stays: the one that is open.
        live.chain(mounted)
            .map(|(record, index)| (self.index_of(record), Stays::new(record.clone(), index)))
            .collect()
    }

    fn index_of(&self, record: &LayerRecord) -> PathBuf {
        self.resolver.index_path(&record.layer, &record.toc)
    }

    fn index(&self, record: &LayerRecord) -> Result<Arc<Index>, fs::index::Error> {
        self.opened.open(&self.index_of(record), &record.toc)
    }
}

impl Layers for LiveLayers {
    fn announce(&self, labels: &LayerLabels) {
        self.images.announce(labels);
        drop(self.start_of(labels));
    }

    fn starting(&self, stack: &[PathBuf]) {
        self.started(stack);
    }

    fn mount<'a>(
        &'a self,
        labels: &'a LayerLabels,
        target: &'a Path,
    ) -> BoxFuture<'a, Result<LayerRecord, NotLazy>> {
        self.mount_named(labels, target).boxed()
    }

    fn inherit<'a>(
        &'a self,
        target: &'a Path,
        below: &'a [PathBuf],
    ) -> BoxFuture<'a, Result<Vec<Unlisted>, NotLazy>> {
        let (tree, below) = {
            let mounts = self.mounts.lock();
            let below = below.iter().map(|path| match mounts.get(path) {
                Some(mount) => Below::Layer(Arc::clone(&mount.tree)),
                None => Below::Folder(path.clone()),
            });
            let below: Vec<_> = below.collect();
            (
                mounts.get(target).map(|mount| Arc::clone(&mount.tree)),
                below,
            )
        };
        async move {
            let tree = tree.ok_or_else(|| local("the layer is not mounted"))?;
            let work = move || {
                let all = fs::unlisted(&tree, &below).map_err(local)?;
                if all.len() > MAX_UNLISTED {
                    let count = all.len();
                    return Err(NotLazy::Invalid(format!("{count} folders are not listed")));
                }
                tree.set_unlisted(all.clone());
                Ok(all)
            };
            tokio::task::spawn_blocking(work).await.map_err(local)?
        }
        .boxed()
    }

    fn layers_of<'a>(
        &'a self,
        image: &'a Reference,
    ) -> BoxFuture<'a, Result<Vec<Digest>, NotLazy>> {
        async move {
            let (_, manifest) = images::manifest_of(&self.parts.client, image).await?;
            Ok(manifest.layers.iter().map(|layer| layer.digest).collect())
        }
        .boxed()
    }

    fn add_source(&self, target: &Path, image: &Reference) {
        let record = self
            .mounts
            .lock()
            .get(target)
            .map(|mount| mount.record.clone());
        let Some(record) = record.and_then(|record| record.pulled_as(image)) else {
            return;
        };
        let images = self.described(&record).map(|(images, _)| images);
        let blobs = self.blobs.lock();
        if let Some((_, sources)) = blobs.get(&content::Named::by(&record)) {
            for image in images.iter().flatten() {
                content::add(sources, image);
            }
        }
    }

    fn restore<'a>(
        &'a self,
        record: &'a LayerRecord,
        target: &'a Path,
    ) -> BoxFuture<'a, Result<(), NotLazy>> {
        // What this process served there is gone, or it would not be called.
        drop(self.mounts.lock().remove(target));
        self.mount_recorded(record, target, None).boxed()
    }

    fn is_handed_over(&self, target: &Path) -> bool {
        self.devices.is_handed_over(target)
    }

    fn is_serving(&self, target: &Path) -> bool {
        let device = {
            let mounts = self.mounts.lock();
            let mount = mounts.get(target);
            mount
                .filter(|mount| !mount.served.is_over())
                .map(|mount| mount.served.device())
        };
        let found = device.and_then(|_| self.parts.mounter.device_at(target).ok());
        device.is_some() && found == device
    }

    fn unmount<'a>(&'a self, target: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        async move {
            // What stays in use keeps its index.
            let _unswept = self.sweeping.read().await;
            let removed = self.mounts.lock().remove(target);
            if let Some(mount) = &removed {
                self.forget_start(&mount.record);
            }
            self.unmounts.fetch_add(1, Ordering::Relaxed);
            self.take_down(target, removed).await
        }
        .boxed()
    }

    fn usage(&self, target: &Path) -> Option<LayerUsage> {
        let mounts = self.mounts.lock();
        let mount = mounts.get(target).filter(|mount| !mount.served.is_over())?;
        let summary = mount.tree.index().summary();
        let bytes = mount.blob.space().layer.saturating_add(summary.index);
        Some(LayerUsage {
            bytes,
            inodes: summary.inodes.into(),
        })
    }

    fn sweep<'a>(&'a self, live: &'a [LayerRecord]) -> BoxFuture<'a, io::Result<()>> {
        async move {
            let sweep = self.sweeping.write().await;
            let (kept, resolver) = (self.kept(live), Arc::clone(&self.resolver));
            let images: Vec<_> = kept.values().flat_map(Stays::images).collect();
            self.parts.client.retain_credentials(&|host, repository| {
                let of =
                    |image: &Reference| image.host() == host && image.repository() == repository;
                images.iter().any(of)
            });
            let indexes = move || Sweeper::indexes(&resolver, &kept).map(|()| kept);
            let kept = tokio::task::spawn_blocking(indexes).await;
            let kept = kept.map_err(io::Error::other)??;
            drop(sweep);
            let unmounts = self.unmounts.load(Ordering::Relaxed);
            let (sweeper, cache) = (
                Arc::clone(&self.sweeper),
                Arc::clone(self.parts.fetcher.cache()),
            );
            let content = move || sweeper.content(&cache, &kept, unmounts);
            let swept = tokio::task::spawn_blocking(content).await;
            swept.map_err(io::Error::other)
        }
        .boxed()
    }
}

fn local(error: impl std::fmt::Display) -> NotLazy {
    NotLazy::Local(error.to_string())
}
