//! What the node does and why, in the words of the control API (`proto/control.proto`): for
//! `crfs status`, `why`, `layers` and `top`, and for metrics.
//!
//! Promise: asking changes nothing and waits for no mount. Only [`Node::why`] of an image that is not
//! here asks a registry.

mod layers;
mod status;
#[cfg(test)]
mod tests;
mod why;

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::layer::{LiveLayers, Reason, Sums};
use crate::snapshotter::{Counts, Degraded, Kind, Record, Snapshotter};

pub use status::{Tallies, TrackedSnapshots};
pub use why::Error;

#[allow(
    missing_docs,
    clippy::allow_attributes_without_reason,
    reason = "generated; what it means is in proto/control.proto"
)]
pub mod api {
    //! The messages of the control API.
    include!(concat!(env!("OUT_DIR"), "/crfs.control.v1.rs"));
}

/// What became of the last reload of the configuration.
#[derive(Debug, Clone)]
pub struct Reloaded {
    /// When.
    pub at: Instant,
    /// Keys that hold now.
    pub applied: Vec<String>,
    /// Keys whose new value needs a restart.
    pub refused: Vec<String>,
    /// Why the file was not used at all.
    pub error: Option<String>,
}

/// A node to ask; clones are the same one.
#[derive(Clone)]
pub struct Node(Arc<Parts>);

struct Parts {
    snapshotter: Snapshotter,
    layers: Arc<LiveLayers>,
    started: Instant,
    reloaded: Mutex<Option<Reloaded>>,
}

impl Node {
    /// A node that starts to serve now.
    #[must_use]
    pub fn new(snapshotter: Snapshotter, layers: Arc<LiveLayers>) -> Self {
        Self(Arc::new(Parts {
            snapshotter,
            layers,
            started: Instant::now(),
            reloaded: Mutex::default(),
        }))
    }

    /// Notes what became of a reload, for the status.
    pub fn reloaded(&self, reloaded: Reloaded) {
        *self.0.reloaded.lock() = Some(reloaded);
    }

    /// Everything there is a number of.
    #[must_use]
    pub fn tallies(&self) -> Tallies {
        let records = self.0.snapshotter.records();
        Tallies {
            uptime: self.0.started.elapsed(),
            snapshots: TrackedSnapshots::count(&records),
            answers: self.0.snapshotter.counts(),
            degraded: self.0.snapshotter.degraded().len() as u64,
            health: self.0.layers.health(),
            sums: self.0.layers.sums(),
        }
    }
}

/// Why a committed snapshot is not a lazy layer: what was kept, or what can be told without.
fn reason_of(record: &Record) -> Option<(Reason, String)> {
    if record.lazy.is_some() || record.kind == Kind::View {
        return None;
    }
    let asked = record.labels.contains_key(crate::oci::label::SNAPSHOT_REF);
    Some(match &record.refused {
        Some(refused) => (refused.reason, refused.why.clone()),
        None if asked => (
            Reason::Unknown,
            "unpacked by a crfs that kept no reason".to_owned(),
        ),
        None => (
            Reason::NotAsked,
            "containerd did not say that this is a layer (no label containerd.io/snapshot.ref)"
                .to_owned(),
        ),
    })
}
