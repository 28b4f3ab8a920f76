//! What a layer's content is read from, and how far ahead the kernel reads of it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::blob::Blob;
use crate::fs::{self, Index};
use crate::layer::live::{LiveLayers, local};
use crate::layer::{LayerRecord, NotLazy};
use crate::oci::{Descriptor, Digest, MediaType, Reference, annotation};
use crate::overlay::DeviceId;
use crate::registry::Sources;

/// The kernel's read-ahead on the mounts of a layer all of which is here, in bytes: also its largest
/// request.
const COMPLETE_READ_AHEAD: u32 = 1 << 20;
/// When it is first looked whether a layer is complete, and how rarely in the end.
const FIRST_LOOK: Duration = Duration::from_millis(250);
const LONGEST_LOOK: Duration = Duration::from_secs(10);

/// What a layer's content is known by: its blob, and the TOC that says what is in it and verifies it. An image
/// names both, and another image may name the same blob with another TOC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Named {
    layer: Digest,
    toc: Digest,
}

impl Named {
    pub(super) const fn by(record: &LayerRecord) -> Self {
        Self {
            layer: record.layer,
            toc: record.toc,
        }
    }
}

impl LiveLayers {
    /// A record as the manifest described the layer, and the images that it is read as part of: enough
    /// to read its blob.
    pub(super) fn described(
        &self,
        record: &LayerRecord,
    ) -> Result<(Vec<Reference>, Descriptor), NotLazy> {
        let first: Reference = record.image.parse().map_err(local)?;
        let mut images = record.images();
        // What may be read unverified from one repository may not be from another.
        let allowed = |image: &Reference| {
            let name = format!("{}/{}", image.host(), image.repository());
            self.parts.config.allow_unverified.contains(&name)
        };
        if allowed(&first) {
            images.retain(allowed);
        }
        let annotations = [(annotation::TOC_DIGEST.to_owned(), record.toc.to_string())];
        let descriptor = Descriptor {
            media_type: MediaType::OciTarGzip,
            digest: record.layer,
            size: record.size,
            annotations: annotations.into(),
            platform: None,
            extra: serde_json::Map::new(),
        };
        Ok((images, descriptor))
    }

    /// The layer's content: the one that other mounts of it use, or a new one.
    pub(super) fn blob(
        &self,
        record: &LayerRecord,
        index: &Arc<Index>,
    ) -> Result<Arc<Blob>, NotLazy> {
        let (images, descriptor) = self.described(record)?;
        let mut blobs = self.blobs.lock();
        blobs.retain(|_, (blob, _)| blob.strong_count() > 0);
        if let Some((blob, sources)) = blobs.get(&Named::by(record))
            && let Some(blob) = blob.upgrade()
        {
            for image in &images {
                add(sources, image);
            }
            return Ok(blob);
        }
        let sources = self.resolver.sources(&images, &descriptor)?;
        let blob = Arc::new(Blob::new(
            &self.parts.fetcher,
            Arc::new(sources.clone()),
            Arc::clone(index) as _,
        ));
        if self.parts.serve.passes_through(&index.summary()) {
            blob.pass_through();
        }
        blobs.insert(Named::by(record), (Arc::downgrade(&blob), sources));
        Ok(blob)
    }
}

/// Lets the kernel read far ahead on a mount as soon as all of the layer is here. Before, a fault in
/// a mapped file would fetch a megabyte for a page; after, requests of a megabyte are what makes
/// reading fast.
pub(super) async fn read_ahead(blob: Weak<Blob>, device: DeviceId) {
    let mut pause = FIRST_LOOK;
    loop {
        let Some(blob) = blob.upgrade() else { return };
        if blob.is_complete() {
            // Only speed depends on it, and a container may see a read-only /sys.
            if let Err(error) = fs::set_read_ahead(device, COMPLETE_READ_AHEAD) {
                tracing::warn!(%device, %error, "the mount's read-ahead could not be set");
            }
            return;
        }
        drop(blob);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_LOOK);
    }
}

pub(super) fn add(sources: &Sources, image: &Reference) {
    if let Err(error) = sources.add(image) {
        tracing::warn!(%image, %error, "not a source of its layers");
    }
}
