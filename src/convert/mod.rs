//! An image's tar layers to eStargz, from and to registries and OCI layouts.
//!
//! The way of an image: a [`Converter`] reads the root document from an [`ImageSource`], walks down
//! through indexes to manifests (`image`), has every layer fetched, verified, written by
//! [`crate::stargz::write`] and put into an [`ImageSink`] (`layer`), and writes configs, manifests
//! and indexes again on the way up, the name last. Platforms, order, annotations and dialect stay.
//!
//! A layer that cannot become eStargz is left as it is, with a reason in the report. Nothing is
//! believed: manifests, configs and blobs are verified against the digests that lead to them, and
//! the tar of each layer against the image's config.

mod error;
mod image;
mod layer;
mod layout;
mod location;
mod progress;
mod remote;
mod store;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Semaphore;

pub use error::Error;
pub use layout::{LayoutSink, LayoutSource};
pub use location::Location;
pub use progress::{LayerInfo, LayerProgress, LayerReport, Progress, Silent, Stage};
pub use remote::{RemoteSink, RemoteSource};
pub use store::{Bytestream, Document, ImageSink, ImageSource};

use crate::oci::{Digest, MediaType};
use crate::registry::Client;
use crate::stargz::write;

/// Layers that are written at once. Each uses all cores, but not at its beginning and end.
const WRITERS: usize = 2;

/// Converts one image.
pub struct Converter {
    source: Box<dyn ImageSource>,
    sink: Box<dyn ImageSink>,
    options: write::Options,
    progress: Arc<dyn Progress>,
    writers: Semaphore,
    layers: Mutex<image::Known>,
    reports: Mutex<Vec<LayerReport>>,
    notes: Mutex<Vec<String>>,
}

/// What a conversion did.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Digest of the new manifest or index.
    pub digest: Digest,
    /// What it is.
    pub media_type: MediaType,
    /// Every blob that is a layer, once, in the order they were finished.
    pub layers: Vec<LayerReport>,
    /// What was left out, or copied as it is, and why.
    pub notes: Vec<String>,
}

impl Converter {
    /// A conversion that has not begun.
    #[must_use]
    pub fn new(
        source: Box<dyn ImageSource>,
        sink: Box<dyn ImageSink>,
        options: write::Options,
        progress: Arc<dyn Progress>,
    ) -> Self {
        Self {
            source,
            sink,
            options,
            progress,
            writers: Semaphore::new(WRITERS),
            layers: Mutex::default(),
            reports: Mutex::default(),
            notes: Mutex::default(),
        }
    }

    /// Converts the image. The destination's name leads to the new image when this returns.
    ///
    /// # Errors
    /// Something cannot be read, is not what its digest says, or cannot be written.
    pub async fn run(self) -> Result<Summary, Error> {
        let root = self.source.root().await?;
        let converted = self.document(root, None, 0).await?;
        let digest = Digest::of(&converted.bytes);
        let media_type = converted.media_type.clone();
        self.sink.put_root(digest, converted).await?;
        Ok(Summary {
            digest,
            media_type,
            layers: self.reports.into_inner(),
            notes: self.notes.into_inner(),
        })
    }
}

impl Location {
    /// The image here, to be read.
    ///
    /// # Errors
    /// An OCI layout does not exist or does not have the image.
    pub fn source(&self, client: &Client) -> Result<Box<dyn ImageSource>, Error> {
        Ok(match self {
            Self::Registry(image) => Box::new(RemoteSource::new(client.clone(), image.clone())),
            Self::Layout { dir, tag } => Box::new(LayoutSource::open(dir, tag.as_deref())?),
        })
    }

    /// The image here, to be written.
    ///
    /// # Errors
    /// An OCI layout cannot be made, or the reference names a digest, which the result would not
    /// have.
    pub fn sink(&self, client: &Client) -> Result<Box<dyn ImageSink>, Error> {
        Ok(match self {
            Self::Registry(image) if image.digest().is_some() => {
                let why = "a destination is named by a tag, not by a digest".to_owned();
                return Err(Error::Location {
                    text: self.to_string(),
                    why,
                });
            }
            Self::Registry(image) => Box::new(RemoteSink::new(client.clone(), image.clone())),
            Self::Layout { dir, tag } => {
                Box::new(LayoutSink::create(dir, tag.as_deref().unwrap_or("latest"))?)
            }
        })
    }
}
