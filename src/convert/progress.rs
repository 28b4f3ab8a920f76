//! What a conversion tells its caller while it runs.

use std::sync::Arc;

use serde::Serialize;

use crate::oci::Digest;

/// Hears of a conversion as it goes on; called from several threads.
pub trait Progress: Send + Sync {
    /// Work on a layer begins.
    fn layer(&self, layer: &LayerInfo) -> Arc<dyn LayerProgress>;

    /// Something that is worth a line: what was left out, and why.
    fn note(&self, line: &str);
}

/// Hears of one layer.
pub trait LayerProgress: Send + Sync {
    /// A stage of `total` bytes begins.
    fn stage(&self, stage: Stage, total: u64);

    /// So many bytes of the stage are done.
    fn at(&self, done: u64);

    /// The layer is done.
    fn done(&self, report: &LayerReport);
}

/// What happens to a layer, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It comes from the source.
    Fetch,
    /// It is written again.
    Convert,
    /// It goes to the destination.
    Push,
}

/// Which layer it is.
#[derive(Debug, Clone)]
pub struct LayerInfo {
    /// Its number in its image, from 1.
    pub number: usize,
    /// How many layers the image has.
    pub of: usize,
    /// The image's platform, if the source says.
    pub platform: Option<String>,
    /// The layer's blob.
    pub digest: Digest,
    /// The blob's size in bytes.
    pub size: u64,
}

/// What became of a layer.
#[derive(Debug, Clone, Serialize)]
pub struct LayerReport {
    /// The source's blob.
    pub source: Digest,
    /// Its size in bytes.
    pub source_size: u64,
    /// The destination's blob; the same if the layer was left as it is.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Why the layer was left as it is, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left: Option<String>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn layer(&self, _: &LayerInfo) -> Arc<dyn LayerProgress> {
        Arc::new(Self)
    }

    fn note(&self, _: &str) {}
}

impl LayerProgress for Silent {
    fn stage(&self, _: Stage, _: u64) {}

    fn at(&self, _: u64) {}

    fn done(&self, _: &LayerReport) {}
}
