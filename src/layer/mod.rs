//! Live layers: resolve, open, mount, health, unmount, restore.
//!
//! [`Layers`] is all the snapshotter knows of lazy layers. What it must persist to mount a layer
//! again without a network is a [`LayerRecord`].

mod devices;
mod flight;
mod guess;
mod images;
mod live;
mod opened;
pub mod profile;
mod reason;
mod resolve;
mod spool;
mod start;
mod stored;
mod sweep;
#[cfg(test)]
mod testing;
mod toc;

use std::path::{Path, PathBuf};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::blob::ByteSize;
use crate::fs::Unlisted;
use crate::oci::{Digest, LayerLabels, Reference};
use crate::stargz::Limits;

pub use devices::{Health, is_layer, unmount};
pub use live::{Judged, LiveLayers, MountReport, Parts, Sums};
pub use reason::{NotLazy, Reason};

/// Most images that are kept of a layer beside the first.
const MAX_ALSO: usize = 7;

/// Section `[layers]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Repositories (`host/name`) whose layers may be read lazily although nothing promises their
    /// content: legacy stargz, or eStargz without the TOC digest annotation. Default: none.
    pub allow_unverified: Vec<String>,
    /// The longest table of contents of a layer, uncompressed, in bytes; above it a layer is not
    /// lazy. A million files need about 310 MB. Default: 1 GiB.
    pub max_toc: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            allow_unverified: Vec::new(),
            max_toc: ByteSize(Limits::default().toc_json),
        }
    }
}

/// What has to be known of a lazy layer to mount it again: after a restart, without a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// The image it was pulled as part of, as text (`host/name:tag`).
    pub image: String,
    /// Other images that it was pulled as part of since, one of a repository: it is read as part of
    /// one of them where it cannot be as part of `image`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
    /// The manifest that names the layer.
    pub manifest: Digest,
    /// The compressed blob.
    pub layer: Digest,
    /// Size of the compressed blob in bytes.
    pub size: u64,
    /// Digest of the verified TOC; the layer's index is stored under it. A legacy stargz layer has
    /// no promised one: then it is the digest of the TOC that was read first.
    pub toc: Digest,
    /// What the layers below it in this image say of folders that it does not list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unlisted: Vec<Unlisted>,
}

impl LayerRecord {
    /// The record with one more image that the layer was pulled as part of; `None` if that says
    /// nothing new, or if there are enough.
    #[must_use]
    pub fn pulled_as(&self, image: &Reference) -> Option<Self> {
        let known = self.images();
        let is_known = known
            .iter()
            .any(|known| known.host() == image.host() && known.repository() == image.repository());
        (!is_known && self.also.len() < MAX_ALSO).then(|| {
            let mut record = self.clone();
            record.also.push(image.to_string());
            record
        })
    }

    /// All images that it was pulled as part of, pinned to its manifest; the first one first.
    fn images(&self) -> Vec<Reference> {
        let all = std::iter::once(&self.image).chain(&self.also);
        let parsed = all.filter_map(|text| text.parse::<Reference>().ok());
        parsed
            .map(|image| image.with_digest(self.manifest))
            .collect()
    }
}

/// The folder within a snapshot's folder that has mounts for whoever compares files, and no containers': on these every
/// question about extended attributes is answered ([`NoXattrs::Absent`](crate::fs::NoXattrs)).
pub const OWN_LAYERS: &str = "lower";

/// What a lazy layer holds on this node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerUsage {
    /// Bytes of disk: its index and the cached content only it has brought in.
    pub bytes: u64,
    /// Inodes of its tree.
    pub inodes: u64,
}

/// Lazy layers as the snapshotter sees them. All methods may be called at the same time; the
/// caller sees to it that those about one `target` do not overlap.
pub trait Layers: Send + Sync {
    /// Starts reading what the layers of an image need (manifest, every footer and TOC), without
    /// waiting for it. Called first of all by each lazy `Prepare`; does nothing the second time.
    fn announce(&self, labels: &LayerLabels);

    /// Makes a layer readable (TOC verified, index durable) and mounts it at `target`, an existing
    /// empty folder. When it returns the mount serves. When it fails nothing is left mounted.
    fn mount<'a>(
        &'a self,
        labels: &'a LayerLabels,
        target: &'a Path,
    ) -> BoxFuture<'a, Result<LayerRecord, NotLazy>>;

    /// Tells the layer mounted at `target` what it lies on: the files of `below`, topmost first, are
    /// at these folders. Gives what its record has to keep of that. To be called before anybody
    /// looks into the mount.
    fn inherit<'a>(
        &'a self,
        target: &'a Path,
        below: &'a [PathBuf],
    ) -> BoxFuture<'a, Result<Vec<Unlisted>, NotLazy>> {
        let _ = (target, below);
        std::future::ready(Ok(Vec::new())).boxed()
    }

    /// A container is about to start on the layers mounted at these folders, topmost first; folders
    /// that are no layers' are passed over. Does not wait for anything.
    fn starting(&self, stack: &[PathBuf]) {
        let _ = stack;
    }

    /// The blobs of `image`'s layers, as its manifest for this machine names them: asks its registry.
    fn layers_of<'a>(
        &'a self,
        image: &'a Reference,
    ) -> BoxFuture<'a, Result<Vec<Digest>, NotLazy>> {
        let _ = image;
        std::future::ready(Ok(Vec::new())).boxed()
    }

    /// The layer mounted at `target` was pulled as part of `image` too: it may be read as that, with
    /// the credentials for that.
    fn add_source(&self, target: &Path, image: &Reference) {
        let _ = (target, image);
    }

    /// Mounts a layer again from its record; never needs the network if the index is there. If it
    /// is not, the layer is mounted as soon as it can be had, and until then is degraded.
    fn restore<'a>(
        &'a self,
        record: &'a LayerRecord,
        target: &'a Path,
    ) -> BoxFuture<'a, Result<(), NotLazy>>;

    /// Whether the layer mounted at `target` still answers: false if nothing was mounted there by
    /// this process, if somebody else has unmounted it or mounted something over it, or if its
    /// connection was aborted. Asks the file system nothing and does not wait.
    fn is_serving(&self, target: &Path) -> bool;

    /// Whether a mount at `target` was handed over by the server before and waits to be restored: who
    /// uses it waits as well.
    fn is_handed_over(&self, target: &Path) -> bool {
        let _ = target;
        false
    }

    /// Takes the mount at `target` down, also a dead one; no mount there is not an error. Files
    /// that are open in it stay readable until they are closed.
    fn unmount<'a>(&'a self, target: &'a Path) -> BoxFuture<'a, std::io::Result<()>>;

    /// Owner (uid, gid) of the root of the layer mounted at `target`, if one is: a snapshot on top
    /// of it gets the same, and nobody in this process may ask the mount itself.
    fn root_owner(&self, target: &Path) -> Option<(u32, u32)> {
        let _ = target;
        None
    }

    /// What the layer mounted at `target` holds, if one is.
    fn usage(&self, target: &Path) -> Option<LayerUsage>;

    /// Forgets indexes and cached content that no record of `live` needs.
    fn sweep<'a>(&'a self, live: &'a [LayerRecord]) -> BoxFuture<'a, std::io::Result<()>>;
}
