//! What a pull tells its caller while it runs.

use std::sync::Arc;

use serde::Serialize;

use crate::oci::Digest;

/// Hears of a pull as it goes on; called from several threads.
pub trait Progress: Send + Sync {
    /// Work on a layer, or another blob, begins.
    fn layer(&self, layer: &Info) -> Arc<dyn LayerProgress>;
}

/// Hears of one layer.
pub trait LayerProgress: Send + Sync {
    /// It is now at this stage, of `total` bytes.
    fn stage(&self, stage: Stage, total: u64);

    /// So many bytes of the stage are done.
    fn at(&self, done: u64);

    /// It is done.
    fn done(&self, report: &Report);
}

/// What happens to a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The snapshotter is offered it.
    Offer,
    /// Somebody else fetches it.
    Wait,
    /// It comes from the registry.
    Fetch,
    /// containerd unpacks it.
    Unpack,
}

/// Which blob it is.
#[derive(Debug, Clone)]
pub struct Info {
    /// Its number in its image, from 1; the config, which has none, is 0.
    pub number: usize,
    /// How many layers the image has.
    pub of: usize,
    /// The blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// What became of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is served lazily: nothing of it was downloaded.
    Lazy,
    /// It was there before.
    Present,
    /// It was fetched and unpacked.
    Unpacked,
    /// It was fetched.
    Fetched,
}

/// What became of a blob, and what that took.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// What became of it.
    pub outcome: Outcome,
    /// Bytes of it that were fetched: fewer than `size` where an earlier attempt had some.
    pub fetched: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn layer(&self, _: &Info) -> Arc<dyn LayerProgress> {
        Arc::new(Self)
    }
}

impl LayerProgress for Silent {
    fn stage(&self, _: Stage, _: u64) {}

    fn at(&self, _: u64) {}

    fn done(&self, _: &Report) {}
}
