//! Layers that mount nothing but remember what is mounted.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::fs::Unlisted;
use crate::layer::{LayerRecord, LayerUsage, Layers, NotLazy, Reason};
use crate::oci::{Digest, LayerLabels, Reference};
use crate::snapshotter::tests::digest;

/// The fake.
#[derive(Default)]
pub(super) struct FakeLayers {
    mounted: Mutex<BTreeSet<PathBuf>>,
    refused: Mutex<BTreeMap<Digest, NotLazy>>,
    /// Images of which no layer can be lazy.
    refused_images: Mutex<BTreeSet<String>>,
    /// What was not mounted when another layer was to inherit from it.
    absent: Mutex<Vec<PathBuf>>,
    /// What a predecessor has left.
    handed_over: Mutex<BTreeSet<PathBuf>>,
    unrestorable: Mutex<BTreeSet<Digest>>,
    delay: Mutex<Duration>,
    announce_delay: Mutex<Duration>,
    calls: Mutex<Vec<&'static str>>,
    swept: Mutex<Vec<LayerRecord>>,
}

impl FakeLayers {
    /// From now on this layer cannot be lazy.
    pub(super) fn refuse(&self, layer: char, why: NotLazy) {
        self.refused
            .lock()
            .insert(digest(layer).parse().unwrap(), why);
    }

    /// From now on no layer of this image can be lazy.
    pub(super) fn refuse_image(&self, image: &str) {
        self.refused_images.lock().insert(image.to_owned());
    }

    /// What a layer should have inherited from and could not.
    pub(super) fn absent(&self) -> Vec<PathBuf> {
        self.absent.lock().clone()
    }

    /// Whether this layer can be mounted again.
    pub(super) fn restorable(&self, layer: char, can: bool) {
        let digest = digest(layer).parse().unwrap();
        let mut unrestorable = self.unrestorable.lock();
        if can {
            unrestorable.remove(&digest);
        } else {
            unrestorable.insert(digest);
        }
    }

    /// From now on mounting takes this long.
    pub(super) fn slow_down(&self, delay: Duration) {
        *self.delay.lock() = delay;
    }

    /// From now on announcing takes this long, without giving the thread free.
    pub(super) fn announce_slowly(&self, delay: Duration) {
        *self.announce_delay.lock() = delay;
    }

    /// A predecessor has left a mount here that nobody serves.
    pub(super) fn hand_over(&self, target: &Path) {
        self.handed_over.lock().insert(target.to_owned());
    }

    /// The node was restarted.
    pub(super) fn forget_mounts(&self) {
        self.mounted.lock().clear();
    }

    pub(super) fn mounted(&self) -> usize {
        self.mounted.lock().len()
    }

    pub(super) fn is_mounted(&self, target: &Path) -> bool {
        self.mounted.lock().contains(target)
    }

    /// How often `what` (announce, mount, restore) was called.
    pub(super) fn calls(&self, what: &str) -> usize {
        self.calls
            .lock()
            .iter()
            .filter(|call| **call == what)
            .count()
    }

    /// What the last sweep was told to keep.
    pub(super) fn swept(&self) -> Vec<LayerRecord> {
        self.swept.lock().clone()
    }

    fn mount_now(&self, target: &Path) {
        assert!(target.is_dir(), "the mount point exists");
        let fresh = self.mounted.lock().insert(target.to_owned());
        assert!(fresh, "nothing is mounted twice");
    }
}

impl Layers for FakeLayers {
    fn announce(&self, _: &LayerLabels) {
        self.calls.lock().push("announce");
        let delay = *self.announce_delay.lock();
        std::thread::sleep(delay);
    }

    fn mount<'a>(
        &'a self,
        labels: &'a LayerLabels,
        target: &'a Path,
    ) -> BoxFuture<'a, Result<LayerRecord, NotLazy>> {
        self.calls.lock().push("mount");
        async move {
            let delay = *self.delay.lock();
            tokio::time::sleep(delay).await;
            if let Some(why) = self.refused.lock().get(&labels.layer) {
                return Err(why.clone());
            }
            let image = labels.image.to_string();
            if self.refused_images.lock().contains(&image) {
                return Err(NotLazy::NoTocDigest);
            }
            self.mount_now(target);
            Ok(LayerRecord {
                image: labels.image.to_string(),
                also: Vec::new(),
                manifest: labels.manifest,
                layer: labels.layer,
                size: 1000,
                toc: Digest::of(b"toc"),
                unlisted: Vec::new(),
            })
        }
        .boxed()
    }

    fn inherit<'a>(
        &'a self,
        _: &'a Path,
        below: &'a [PathBuf],
    ) -> BoxFuture<'a, Result<Vec<Unlisted>, NotLazy>> {
        let absent = below.iter().filter(|path| !self.is_mounted(path));
        self.absent.lock().extend(absent.cloned());
        async { Ok(Vec::new()) }.boxed()
    }

    fn add_source(&self, target: &Path, _: &Reference) {
        assert!(self.is_mounted(target));
        self.calls.lock().push("source");
    }

    fn restore<'a>(
        &'a self,
        record: &'a LayerRecord,
        target: &'a Path,
    ) -> BoxFuture<'a, Result<(), NotLazy>> {
        self.calls.lock().push("restore");
        async move {
            if self.unrestorable.lock().contains(&record.layer) {
                return Err(NotLazy::Registry {
                    reason: Reason::Unreachable,
                    why: "down".to_owned(),
                });
            }
            self.mount_now(target);
            Ok(())
        }
        .boxed()
    }

    fn is_handed_over(&self, target: &Path) -> bool {
        self.handed_over.lock().contains(target)
    }

    fn is_serving(&self, target: &Path) -> bool {
        self.is_mounted(target)
    }

    fn unmount<'a>(&'a self, target: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        self.mounted.lock().remove(target);
        async { Ok(()) }.boxed()
    }

    fn usage(&self, target: &Path) -> Option<LayerUsage> {
        let usage = LayerUsage {
            bytes: 1234,
            inodes: 5,
        };
        self.is_mounted(target).then_some(usage)
    }

    fn sweep<'a>(&'a self, live: &'a [LayerRecord]) -> BoxFuture<'a, io::Result<()>> {
        *self.swept.lock() = live.to_vec();
        async { Ok(()) }.boxed()
    }
}
