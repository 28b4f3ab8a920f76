//! One layer on its way: fetched and verified, written again, put into the destination.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt as _;
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt as _;

use crate::convert::progress::{LayerInfo, LayerProgress, LayerReport, Stage};
use crate::convert::{Converter, Error};
use crate::oci::{Descriptor, Digest, Hasher, MediaType, annotation};
use crate::stargz::write;

/// A layer as the converted image names it.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) descriptor: Descriptor,
    /// Digest of the new tar; `None` if the layer was left as it is.
    pub(super) diff_id: Option<Digest>,
    /// Digest of the source's tar, where it was read.
    pub(super) source_diff_id: Option<Digest>,
}

/// What is to be done with a layer of some media type.
enum Treatment {
    Convert,
    /// The blob is copied, for this reason.
    Copy(&'static str),
    /// The blob is not even copied: it is not distributable.
    Leave(&'static str),
}

impl Converter {
    /// Brings one layer into the destination.
    pub(super) async fn layer(&self, at: &Descriptor, info: &LayerInfo) -> Result<Layer, Error> {
        let start = Instant::now();
        let progress = self.progress.layer(info);
        let (layer, left) = match treatment(&at.media_type) {
            Treatment::Convert => self.convert_layer(at, &progress).await?,
            Treatment::Copy(why) => {
                self.copy_blob(at, &*progress).await?;
                (unchanged(at), Some(why.to_owned()))
            }
            Treatment::Leave(why) => (unchanged(at), Some(why.to_owned())),
        };
        let report = LayerReport {
            source: at.digest,
            source_size: at.size,
            digest: layer.descriptor.digest,
            size: layer.descriptor.size,
            left,
            seconds: start.elapsed().as_secs_f64(),
        };
        progress.done(&report);
        self.reports.lock().push(report);
        Ok(layer)
    }

    /// Copies a blob as it is.
    pub(super) async fn copy_blob(
        &self,
        at: &Descriptor,
        progress: &dyn LayerProgress,
    ) -> Result<(), Error> {
        if self.sink.has_blob(at.digest).await? {
            return Ok(());
        }
        let file = self.fetch(at, progress).await?;
        progress.stage(Stage::Push, at.size);
        self.sink.put_blob(at.digest, at.size, file).await
    }

    async fn convert_layer(
        &self,
        at: &Descriptor,
        progress: &Arc<dyn LayerProgress>,
    ) -> Result<(Layer, Option<String>), Error> {
        let input = self.fetch(at, &**progress).await?;
        let output = temporary(self.sink.staging())?;
        let written = self
            .write(at, &input, &output, Arc::clone(progress))
            .await?;
        let written = match written {
            Ok(written) => written,
            Err(why) => {
                progress.stage(Stage::Push, at.size);
                if !self.sink.has_blob(at.digest).await? {
                    self.sink.put_blob(at.digest, at.size, input).await?;
                }
                return Ok((unchanged(at), Some(why.to_string())));
            }
        };
        drop(input);
        progress.stage(Stage::Push, written.size);
        self.sink
            .put_blob(written.digest, written.size, output)
            .await?;
        Ok((rewritten(at, &written), None))
    }

    /// Writes the layer on threads that may block; an unsuitable one is no error.
    async fn write(
        &self,
        at: &Descriptor,
        input: &NamedTempFile,
        output: &NamedTempFile,
        progress: Arc<dyn LayerProgress>,
    ) -> Result<Result<write::Written, write::Unsuitable>, Error> {
        // Each layer uses all cores; a second one fills the gaps at the first one's ends.
        let _permit = self
            .writers
            .acquire()
            .await
            .map_err(|_| Error::Died(at.digest))?;
        progress.stage(Stage::Convert, at.size);
        let reopen = |file: &NamedTempFile| file.reopen().map_err(Error::file(file.path()));
        let (input, output): (File, File) = (reopen(input)?, reopen(output)?);
        let options = self.options.clone();
        let task = move || write::write(&input, output, &options, &|done| progress.at(done));
        let written = tokio::task::spawn_blocking(task).await;
        match written.map_err(|_| Error::Died(at.digest))? {
            Ok(written) => Ok(Ok(written)),
            Err(write::Error::Unsuitable(why)) => Ok(Err(why)),
            Err(source) => Err(Error::Layer {
                layer: at.digest,
                source,
            }),
        }
    }

    /// Fetches a blob into a temporary file of the destination and verifies it.
    async fn fetch(
        &self,
        at: &Descriptor,
        progress: &dyn LayerProgress,
    ) -> Result<NamedTempFile, Error> {
        progress.stage(Stage::Fetch, at.size);
        let file = temporary(self.sink.staging())?;
        let target = file.reopen().map_err(Error::file(file.path()))?;
        let mut target = tokio::fs::File::from_std(target);
        let mut pieces = self.source.blob(at).await?;
        let (mut size, mut hash) = (0_u64, Hasher::new());
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            size = size.saturating_add(piece.len() as u64);
            if size > at.size {
                break;
            }
            hash.update(&piece);
            target
                .write_all(&piece)
                .await
                .map_err(Error::file(file.path()))?;
            progress.at(size);
        }
        target.flush().await.map_err(Error::file(file.path()))?;
        let got = match (size.cmp(&at.size), hash.finish()) {
            (std::cmp::Ordering::Equal, digest) if digest == at.digest => return Ok(file),
            (std::cmp::Ordering::Equal, digest) => format!("digest {digest}"),
            (std::cmp::Ordering::Less, _) => format!("{size} of {} bytes", at.size),
            (std::cmp::Ordering::Greater, _) => format!("more than {} bytes", at.size),
        };
        Err(Error::WrongContent {
            what: "blob",
            expected: at.digest,
            got,
        })
    }
}

fn treatment(media_type: &MediaType) -> Treatment {
    match media_type {
        MediaType::OciTar
        | MediaType::DockerTar
        | MediaType::OciTarGzip
        | MediaType::DockerTarGzip => Treatment::Convert,
        MediaType::OciTarZstd => Treatment::Copy("it is compressed with zstd"),
        MediaType::Other(other)
            if other.contains("foreign") || other.contains("nondistributable") =>
        {
            Treatment::Leave("it is not distributable")
        }
        _ => Treatment::Copy("its media type is not one of a tar"),
    }
}

fn unchanged(at: &Descriptor) -> Layer {
    Layer {
        descriptor: at.clone(),
        diff_id: None,
        source_diff_id: None,
    }
}

fn rewritten(at: &Descriptor, written: &write::Written) -> Layer {
    let mut descriptor = at.clone();
    descriptor.media_type = match at.media_type {
        MediaType::DockerTar | MediaType::DockerTarGzip => MediaType::DockerTarGzip,
        _ => MediaType::OciTarGzip,
    };
    descriptor.digest = written.digest;
    descriptor.size = written.size;
    // Both are about the old content.
    descriptor.extra.remove("urls");
    descriptor.extra.remove("data");
    descriptor.annotations.extend([
        (
            annotation::TOC_DIGEST.to_owned(),
            written.toc_digest.to_string(),
        ),
        (
            annotation::TOC_OFFSET.to_owned(),
            written.toc_offset.to_string(),
        ),
        (
            annotation::UNCOMPRESSED_SIZE.to_owned(),
            written.tar_size.to_string(),
        ),
    ]);
    Layer {
        descriptor,
        diff_id: Some(written.diff_id),
        source_diff_id: Some(written.input_diff_id),
    }
}

fn temporary(dir: &Path) -> Result<NamedTempFile, Error> {
    let file = tempfile::Builder::new().prefix(".crfs-").tempfile_in(dir);
    file.map_err(Error::file(dir))
}
