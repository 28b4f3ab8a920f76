//! The layers of an image, bottom first: each is offered to the snapshotter, which serves it lazily or
//! has it unpacked.
//!
//! From the first that has to be unpacked on, the blobs of those above that do not promise to be lazy
//! are fetched meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::image::Image;
use super::store::{Labels, Store};
use super::{AT_ONCE, Error, Info, LayerProgress, Outcome, Progress, Report, Stage};
use crate::containerd::{Mounts, Prepared};
use crate::oci::{Descriptor, Digest, LayerLabels, Reference, annotation};

/// The tar that a layer's blob was unpacked to, as containerd notes it.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// How often a layer that is there and is not found is offered again (as containerd does).
const TRIES: usize = 3;

/// How long a snapshotter that containerd does not reach is waited for: longer than containerd's first
/// pauses between attempts.
const REACH: Duration = Duration::from_secs(5);

/// A blob that is being fetched; given up when dropped.
type Fetch = AbortOnDropHandle<Result<Option<u64>, Error>>;

/// The layers of one image on their way.
pub(super) struct Layers<'a> {
    store: &'a Arc<Store>,
    image: &'a Image,
    snapshotter: &'a str,
    name: &'a Reference,
    progress: &'a dyn Progress,
    turns: Arc<Semaphore>,
}

impl<'a> Layers<'a> {
    pub(super) fn new(
        store: &'a Arc<Store>,
        image: &'a Image,
        snapshotter: &'a str,
        name: &'a Reference,
        progress: &'a dyn Progress,
    ) -> Self {
        Self {
            store,
            image,
            snapshotter,
            name,
            progress,
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Has every layer in place.
    pub(super) async fn place(&self) -> Result<Vec<Report>, Error> {
        let mut ahead = None;
        let mut reports = Vec::new();
        for number in 0..self.image.manifest.layers.len() {
            reports.push(self.layer(number, &mut ahead).await?);
        }
        Ok(reports)
    }

    async fn layer(
        &self,
        number: usize,
        ahead: &mut Option<HashMap<Digest, Fetch>>,
    ) -> Result<Report, Error> {
        let began = Instant::now();
        let layer = &self.image.manifest.layers[number];
        let progress = self.begin(number);
        progress.stage(Stage::Offer, layer.size);
        let (outcome, fetched) = match self.offer(number).await? {
            Offered::InPlace(outcome) => (outcome, 0),
            Offered::Unpack(key, mounts) => {
                let ahead = ahead.get_or_insert_with(|| self.fetch_ahead(number + 1));
                let unpacking =
                    self.unpack(number, &key, mounts, &progress, ahead.remove(&layer.digest));
                match unpacking.await {
                    Ok(fetched) => (Outcome::Unpacked, fetched),
                    Err(error) => {
                        let containerd = self.store.containerd();
                        // The lease has it too, so it goes in any case.
                        let _ = containerd.remove_snapshot(self.snapshotter, &key).await;
                        return Err(error);
                    }
                }
            }
        };
        let report = Report {
            digest: layer.digest,
            size: layer.size,
            outcome,
            fetched,
            seconds: began.elapsed().as_secs_f64(),
        };
        progress.done(&report);
        Ok(report)
    }

    fn begin(&self, number: usize) -> Arc<dyn LayerProgress> {
        let layer = &self.image.manifest.layers[number];
        self.progress.layer(&Info {
            number: number + 1,
            of: self.image.manifest.layers.len(),
            digest: layer.digest,
            size: layer.size,
        })
    }

    /// Offers a layer to the snapshotter.
    async fn offer(&self, number: usize) -> Result<Offered, Error> {
        let containerd = self.store.containerd();
        let (labels, parent) = (self.labels(number), self.parent(number));
        let own = self.image.chain_ids[number].to_string();
        let was_there = containerd.has_snapshot(self.snapshotter, &own).await?;
        for _ in 0..TRIES {
            let key = key(&own);
            match self.prepare(&key, &parent, &labels).await? {
                Prepared::Unpack(mounts) => return Ok(Offered::Unpack(key, mounts)),
                Prepared::InPlace if containerd.has_snapshot(self.snapshotter, &own).await? => {
                    return Ok(Offered::InPlace(match was_there {
                        true => Outcome::Present,
                        false => Outcome::Lazy,
                    }));
                }
                Prepared::InPlace => {}
            }
        }
        Err(Error::Lost {
            layer: self.image.manifest.layers[number].digest,
            snapshotter: self.snapshotter.to_owned(),
        })
    }

    /// Prepares a snapshot. containerd asks a snapshotter that was down only after a pause again.
    async fn prepare(
        &self,
        key: &str,
        parent: &str,
        labels: &HashMap<String, String>,
    ) -> Result<Prepared, Error> {
        let (containerd, began) = (self.store.containerd(), Instant::now());
        loop {
            let prepared = containerd.prepare(self.snapshotter, key, parent, labels);
            match prepared.await {
                Err(error) if error.is_out_of_reach() && began.elapsed() < REACH => {
                    tokio::time::sleep(REACH / 10).await;
                }
                other => return Ok(other?),
            }
        }
    }

    /// Fetches a layer and has it unpacked; gives how many bytes were fetched.
    async fn unpack(
        &self,
        number: usize,
        key: &str,
        mounts: Mounts,
        progress: &Arc<dyn LayerProgress>,
        under_way: Option<Fetch>,
    ) -> Result<u64, Error> {
        let layer = &self.image.manifest.layers[number];
        let fetched = match under_way {
            Some(fetch) => {
                progress.stage(Stage::Fetch, layer.size);
                fetch.await.map_err(|_| Error::Died(layer.digest))??
            }
            None => self.store.fetch(layer, &**progress).await?,
        };
        progress.stage(Stage::Unpack, layer.size);
        let containerd = self.store.containerd();
        let (expected, own) = (self.image.diff_ids[number], self.image.chain_ids[number]);
        let got = containerd.apply(layer, mounts).await?;
        if got != expected {
            return Err(Error::WrongTar {
                layer: layer.digest,
                expected,
                got,
            });
        }
        let labels = self.labels(number);
        let own = own.to_string();
        containerd
            .commit(self.snapshotter, &own, key, &labels)
            .await?;
        let noted = Labels::from([(UNCOMPRESSED.to_owned(), expected.to_string())]);
        self.store.label(layer.digest, &noted).await?;
        Ok(fetched.unwrap_or(0))
    }

    /// Begins to fetch the layers from `first` on that do not promise to be lazy.
    fn fetch_ahead(&self, first: usize) -> HashMap<Digest, Fetch> {
        let above = self.image.manifest.layers.iter().skip(first);
        let plain = above.filter(|layer| !layer.annotations.contains_key(annotation::TOC_DIGEST));
        let mut fetches = HashMap::new();
        for layer in plain {
            fetches
                .entry(layer.digest)
                .or_insert_with(|| self.fetch(layer.clone()));
        }
        fetches
    }

    fn fetch(&self, layer: Descriptor) -> Fetch {
        let (store, turns) = (Arc::clone(self.store), Arc::clone(&self.turns));
        AbortOnDropHandle::new(tokio::spawn(async move {
            // Never closed.
            let _turn = turns.acquire_owned().await;
            store.fetch(&layer, &super::Silent).await
        }))
    }

    fn parent(&self, number: usize) -> String {
        let below = number.checked_sub(1);
        let below = below.map(|below| self.image.chain_ids[below].to_string());
        below.unwrap_or_default()
    }

    fn labels(&self, number: usize) -> HashMap<String, String> {
        let layers = &self.image.manifest.layers;
        let named = LayerLabels {
            image: self.name.clone(),
            manifest: self.image.digest,
            layer: layers[number].digest,
            namespace: None,
        };
        named.offer(layers, number, self.image.chain_ids[number])
    }
}

enum Offered {
    InPlace(Outcome),
    /// By this key.
    Unpack(String, Mounts),
}

/// The key of a snapshot that is being unpacked, as containerd's client forms it.
fn key(chain_id: &str) -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let unique = since.unwrap_or_default().as_nanos();
    format!("extract-{unique}-crfs{} {chain_id}", std::process::id())
}
