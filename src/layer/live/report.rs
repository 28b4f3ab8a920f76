//! What the layers of this node hold and do, for people and for metrics.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::blob::cache::CacheStats;
use crate::blob::fetch::FetchStats;
use crate::blob::{Blob, LayerStats};
use crate::fs::{Counts, Totals};
use crate::keeper::protocol::FdName;
use crate::layer::devices::name_of;
use crate::layer::live::LiveLayers;
use crate::layer::{LayerRecord, NotLazy, images};
use crate::oci::{Digest, Reference};

/// One mounted layer.
#[derive(Debug, Clone)]
pub struct MountReport {
    /// Where it is mounted.
    pub target: PathBuf,
    /// What it is.
    pub record: LayerRecord,
    /// Bytes in all of its files.
    pub content: u64,
    /// Bytes of its index on disk.
    pub index: u64,
    /// Bytes of its content that the cache holds. What layers share counts for each.
    pub held: u64,
    /// What was fetched and read of it since it was opened, by all of its mounts.
    pub stats: LayerStats,
    /// What happened on this mount.
    pub counts: Counts,
    /// Large files that are open; `None` where the kernel opens files without asking.
    pub open: Option<u64>,
    /// How long ago the last read came that the kernel did not answer itself.
    pub since_last_read: Option<Duration>,
}

/// The sums over all layers since the start of this process.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    /// Requests of the kernel, those to mounts that are gone included.
    pub requests: Totals,
    /// What was fetched.
    pub fetch: FetchStats,
    /// The cache.
    pub cache: CacheStats,
    /// Size, free and available bytes of the disk with the cache; zeros if it does not say.
    pub disk: (u64, u64, u64),
    /// HTTP requests, those for tokens and manifests included.
    pub http_requests: u64,
    /// Bytes of their answers.
    pub http_received: u64,
    /// Members of mounted layers.
    pub members: u64,
    /// Those of them that the background has still to go through.
    pub background_left: u64,
}

/// A layer of an image, by what its manifest says.
#[derive(Debug, Clone)]
pub struct Judged {
    /// Digest of the compressed blob.
    pub layer: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Why it cannot be lazy; `None` if it can, as far as the manifest tells.
    pub refusal: Option<NotLazy>,
}

impl LiveLayers {
    /// What would become of the layers of `image`, lowest first, as its manifest for this machine
    /// tells, and the digest of that: asks its registry.
    ///
    /// # Errors
    /// The manifest cannot be had.
    pub async fn judge(&self, image: &Reference) -> Result<(Digest, Vec<Judged>), NotLazy> {
        let (digest, manifest) = images::manifest_of(&self.parts.client, image).await?;
        let layers = manifest.layers.iter().map(|layer| Judged {
            layer: layer.digest,
            size: layer.size,
            refusal: self.resolver.refusal(image, layer),
        });
        Ok((digest, layers.collect()))
    }

    /// What each mounted layer holds. Goes over the chunks of all: not for an asynchronous thread.
    #[must_use]
    pub fn mounts(&self) -> Vec<MountReport> {
        let (mut reports, blobs): (Vec<_>, Vec<_>) = {
            let mounts = self.mounts.lock();
            let mounts = mounts.iter().map(|(target, mount)| {
                let summary = mount.tree.index().summary();
                let report = MountReport {
                    target: target.clone(),
                    record: mount.record.clone(),
                    content: summary.content,
                    index: summary.index,
                    held: 0,
                    stats: LayerStats::default(),
                    counts: mount.served.counts(),
                    open: None,
                    since_last_read: mount.served.since_last_read(),
                };
                let passes = self.parts.serve.passes_through(&summary);
                (report, (Arc::clone(&mount.blob), passes))
            });
            mounts.unzip()
        };
        for (report, (blob, passes)) in reports.iter_mut().zip(blobs) {
            report.held = blob.held();
            report.stats = blob.stats();
            if passes && let Ok(name) = name_of(&report.target) {
                report.open = Some(self.open_files(&name));
            }
        }
        reports.sort_by(|one, other| one.target.cmp(&other.target));
        reports
    }

    /// What all layers together have done.
    #[must_use]
    pub fn sums(&self) -> Sums {
        let fetcher = &self.parts.fetcher;
        let traffic = self.parts.client.traffic();
        let (mut members, mut left) = (0, 0);
        for stats in self.contents().iter().map(|blob| blob.stats()) {
            members += stats.members;
            left += stats.background_left;
        }
        Sums {
            requests: self.parts.serve.tally.totals(),
            fetch: fetcher.stats(),
            cache: fetcher.cache().stats(),
            disk: fetcher.cache().disk().unwrap_or_default(),
            http_requests: traffic.requests(),
            http_received: traffic.received(),
            members,
            background_left: left,
        }
    }

    /// From now on another `[fetch] rate_limit`, in bytes per second; 0 is none.
    pub fn set_rate_limit(&self, rate: u64) {
        self.parts.fetcher.set_rate_limit(rate);
    }

    fn contents(&self) -> Vec<Arc<Blob>> {
        let blobs = self.blobs.lock();
        let live = blobs.values().filter_map(|(blob, _)| blob.upgrade());
        live.collect()
    }

    fn open_files(&self, name: &FdName) -> u64 {
        self.parts.state.open_files(name).len() as u64
    }
}
