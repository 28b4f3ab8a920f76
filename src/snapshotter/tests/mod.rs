//! The snapshotter over fake layers: states, the lazy answer, failures, damage, and a model.

mod damage;
mod failures;
mod fake;
mod lazy;
mod model;
mod states;
mod views;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::oci::label;
use crate::overlay::options::{Features, Mount};
use crate::snapshotter::filter::Filters;
use crate::snapshotter::{Error, Key, Labels, Parts, Prepared, Snapshotter, labels};
use crate::store::{Faults, Root};

use fake::FakeLayers;

/// A snapshotter on a root folder of its own, closed and opened at will.
struct Bed {
    dir: tempfile::TempDir,
    layers: Arc<FakeLayers>,
    snapshotter: Option<Snapshotter>,
}

impl Bed {
    async fn new() -> Self {
        Self::with(Faults::none()).await
    }

    async fn with(faults: Faults) -> Self {
        let mut bed = Self {
            dir: tempfile::tempdir().unwrap(),
            layers: Arc::default(),
            snapshotter: None,
        };
        bed.open(faults).await;
        bed
    }

    fn root(&self) -> &Path {
        self.dir.path()
    }

    async fn open(&mut self, faults: Faults) {
        let parts = Parts {
            root: Root::claim(self.root()).unwrap(),
            layers: Arc::clone(&self.layers) as _,
            overlay: Features { index: false },
            faults,
        };
        self.snapshotter = Some(Snapshotter::open(parts).await.unwrap());
    }

    /// Closes; what was mounted is gone, as after a reboot.
    async fn close(&mut self) {
        if let Some(snapshotter) = self.snapshotter.take() {
            snapshotter.close().await;
        }
        self.layers.forget_mounts();
        // Background tasks hold the root for a moment longer.
        while Root::claim(self.root()).is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn reopen(&mut self) {
        self.close().await;
        self.open(Faults::none()).await;
    }

    fn s(&self) -> &Snapshotter {
        self.snapshotter.as_ref().unwrap()
    }

    async fn prepare(&self, name: &str, parent: &str) -> Result<Vec<Mount>, Error> {
        let prepared = self
            .s()
            .prepare(key(name), Key::optional(parent), Labels::new());
        match prepared.await? {
            Prepared::Mounts(mounts) => Ok(mounts),
            Prepared::Lazy => panic!("nobody asked for a lazy answer"),
        }
    }

    async fn view(&self, name: &str, parent: &str) -> Result<Vec<Mount>, Error> {
        let parent = Key::optional(parent);
        self.s().view(key(name), parent, Labels::new()).await
    }

    async fn commit(&self, name: &str, from: &str) -> Result<(), Error> {
        self.s().commit(key(name), key(from), Labels::new()).await
    }

    /// A committed snapshot with one file in it.
    async fn layer(&self, name: &str, parent: &str) {
        let active = format!("{name}-active");
        self.prepare(&active, parent).await.unwrap();
        let record = self.s().stat(&key(&active)).unwrap();
        std::fs::write(self.s().files(&record).join("file"), name).unwrap();
        self.commit(name, &active).await.unwrap();
    }

    /// Asks for a lazy snapshot; true if the answer was lazy.
    async fn pull(&self, name: &str, layer: char, parent: &str) -> Result<bool, Error> {
        let labels = target_labels(layer);
        let prepared = self
            .s()
            .prepare(key(name), Key::optional(parent), labels)
            .await?;
        Ok(matches!(prepared, Prepared::Lazy))
    }

    /// What containerd looks for after a lazy answer.
    fn find(&self, layer: char, parent: &str) -> Vec<String> {
        let target = target(layer);
        let filter = format!(
            "labels.\"containerd.io/snapshot.ref\"=={target},parent==\"{parent}\",kind==committed"
        );
        self.names(&[filter])
    }

    fn names(&self, filters: &[String]) -> Vec<String> {
        let found = self.s().list(&Filters::parse(filters).unwrap());
        found
            .iter()
            .map(|record| record.key.as_str().to_owned())
            .collect()
    }

    fn folders(&self) -> usize {
        std::fs::read_dir(self.root().join("snapshots"))
            .unwrap()
            .count()
    }
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn digest(layer: char) -> String {
    let hex = u32::from(layer).to_string();
    format!(
        "sha256:{}",
        hex.repeat(64).chars().take(64).collect::<String>()
    )
}

fn target(layer: char) -> String {
    format!("sha256:chain-of-{layer}")
}

/// The labels of a Prepare for a layer.
fn target_labels(layer: char) -> Labels {
    let pairs = [
        (label::SNAPSHOT_REF, target(layer)),
        (label::IMAGE_REF, "r.io/image:tag".to_owned()),
        (label::MANIFEST_DIGEST, digest('m')),
        (label::LAYER_DIGEST, digest(layer)),
    ];
    let given: HashMap<String, String> = pairs.map(|(k, v)| (k.to_owned(), v)).into();
    labels(given).unwrap()
}
