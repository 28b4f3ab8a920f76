//! Images in registries.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{self, StreamExt as _};
use tempfile::NamedTempFile;

use crate::convert::Error;
use crate::convert::store::{Bytestream, Document, ImageSink, ImageSource};
use crate::oci::{Descriptor, Digest, Reference};
use crate::registry::{Client, Payload};

/// One image of a registry, to be read.
pub struct RemoteSource {
    client: Client,
    image: Reference,
}

/// One image of a registry, to be written.
pub struct RemoteSink {
    client: Client,
    image: Reference,
    staging: PathBuf,
}

impl RemoteSource {
    /// An image that has not been asked for yet.
    #[must_use]
    pub fn new(client: Client, image: Reference) -> Self {
        Self { client, image }
    }

    async fn fetch(&self, image: &Reference) -> Result<Document, Error> {
        let fetched = self.client.manifest(image).await?;
        Ok(Document {
            media_type: fetched.media_type,
            bytes: fetched.bytes.into(),
        })
    }
}

impl ImageSource for RemoteSource {
    fn root(&self) -> BoxFuture<'_, Result<Document, Error>> {
        self.fetch(&self.image).boxed()
    }

    fn manifest<'a>(&'a self, at: &'a Descriptor) -> BoxFuture<'a, Result<Document, Error>> {
        async move { self.fetch(&self.image.with_digest(at.digest)).await }.boxed()
    }

    fn blob<'a>(&'a self, at: &'a Descriptor) -> BoxFuture<'a, Result<Bytestream, Error>> {
        async move {
            if at.size == 0 {
                return Ok(stream::empty().boxed());
            }
            let blob = self.client.blob(&self.image, at.digest, at.size)?;
            let pieces = blob.range(0..at.size).await?;
            Ok(pieces.map(|piece| piece.map_err(Error::from)).boxed())
        }
        .boxed()
    }
}

impl RemoteSink {
    /// An image that has not been written yet. Temporary files go where the system keeps them
    /// (`TMPDIR`).
    #[must_use]
    pub fn new(client: Client, image: Reference) -> Self {
        Self {
            client,
            image,
            staging: std::env::temp_dir(),
        }
    }
}

impl ImageSink for RemoteSink {
    fn staging(&self) -> &Path {
        &self.staging
    }

    fn has_blob(&self, digest: Digest) -> BoxFuture<'_, Result<bool, Error>> {
        async move { Ok(self.client.has_blob(&self.image, digest).await?) }.boxed()
    }

    fn put_blob(
        &self,
        digest: Digest,
        size: u64,
        file: NamedTempFile,
    ) -> BoxFuture<'_, Result<(), Error>> {
        async move {
            let payload = Payload::File {
                path: file.path().to_owned(),
                size,
            };
            self.client
                .push_blob(&self.image, digest, &payload, None)
                .await?;
            Ok(())
        }
        .boxed()
    }

    fn put_bytes(&self, digest: Digest, bytes: Bytes) -> BoxFuture<'_, Result<(), Error>> {
        async move {
            let payload = Payload::Bytes(bytes);
            self.client
                .push_blob(&self.image, digest, &payload, None)
                .await?;
            Ok(())
        }
        .boxed()
    }

    fn put_manifest(&self, digest: Digest, document: Document) -> BoxFuture<'_, Result<(), Error>> {
        async move {
            let image = self.image.with_digest(digest);
            let Document { media_type, bytes } = document;
            self.client.put_manifest(&image, &media_type, bytes).await?;
            Ok(())
        }
        .boxed()
    }

    fn put_root(&self, _: Digest, document: Document) -> BoxFuture<'_, Result<(), Error>> {
        async move {
            let Document { media_type, bytes } = document;
            self.client
                .put_manifest(&self.image, &media_type, bytes)
                .await?;
            Ok(())
        }
        .boxed()
    }
}
