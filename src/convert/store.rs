//! The seam between a conversion and where images are kept.

use std::path::Path;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tempfile::NamedTempFile;

use crate::convert::Error;
use crate::oci::{Descriptor, Digest, MediaType};

/// The bytes of a blob as they arrive, not verified.
pub type Bytestream = BoxStream<'static, Result<Bytes, Error>>;

/// A manifest or index, not verified beyond what its store does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What it is.
    pub media_type: MediaType,
    /// Its bytes.
    pub bytes: Bytes,
}

/// One image to read, with all that belongs to it.
pub trait ImageSource: Send + Sync {
    /// The manifest or index the image's name leads to.
    fn root(&self) -> BoxFuture<'_, Result<Document, Error>>;

    /// A manifest or index that another one names.
    fn manifest<'a>(&'a self, at: &'a Descriptor) -> BoxFuture<'a, Result<Document, Error>>;

    /// A blob.
    fn blob<'a>(&'a self, at: &'a Descriptor) -> BoxFuture<'a, Result<Bytestream, Error>>;
}

/// Where an image is written. Manifests come after what they name, the root last of all: whoever
/// reads the name meanwhile finds the old image or the new one.
pub trait ImageSink: Send + Sync {
    /// Folder for temporary files that may become blobs.
    fn staging(&self) -> &Path;

    /// Whether a blob is there already.
    fn has_blob(&self, digest: Digest) -> BoxFuture<'_, Result<bool, Error>>;

    /// Adds a blob from a file of [`ImageSink::staging`].
    fn put_blob(
        &self,
        digest: Digest,
        size: u64,
        file: NamedTempFile,
    ) -> BoxFuture<'_, Result<(), Error>>;

    /// Adds a small blob.
    fn put_bytes(&self, digest: Digest, bytes: Bytes) -> BoxFuture<'_, Result<(), Error>>;

    /// Adds a manifest or index that another one names.
    fn put_manifest(&self, digest: Digest, document: Document) -> BoxFuture<'_, Result<(), Error>>;

    /// Adds the image's own manifest or index and gives it its name.
    fn put_root(&self, digest: Digest, document: Document) -> BoxFuture<'_, Result<(), Error>>;
}
