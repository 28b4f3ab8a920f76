//! OCI image layouts (image-spec 1.1, image-layout.md): a folder with `oci-layout`, `index.json`
//! and `blobs/sha256/`.
//!
//! Crash behaviour: every file is written under a temporary name, synced and renamed; `index.json`
//! comes last. A conversion that dies leaves temporary files (`.crfs-*`) and blobs without a name,
//! and the image as it was before.
//!
//! Locking: `index.json` is read, changed and replaced under an exclusive lock of `oci-layout`, so
//! that two conversions into one folder both end up in it.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{self, StreamExt as _};
use tempfile::NamedTempFile;
use tokio::io::AsyncReadExt as _;

use crate::convert::Error;
use crate::convert::store::{Bytestream, Document, ImageSink, ImageSource};
use crate::oci::{Descriptor, Digest, Index, MAX_MANIFEST};

/// The annotation of an entry in `index.json` that is the image's name (annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const LAYOUT: &str = "oci-layout";
const INDEX: &str = "index.json";
/// How much of a blob is read at once, in bytes.
const PIECE: usize = 256 << 10;

/// One image of a layout, to be read.
pub struct LayoutSource {
    dir: PathBuf,
    root: Descriptor,
}

/// One image of a layout, to be written.
pub struct LayoutSink {
    dir: PathBuf,
    tag: String,
}

impl LayoutSource {
    /// Finds the image of that name, or the only one.
    ///
    /// # Errors
    /// There is no layout, or no such image in it.
    pub fn open(dir: &Path, tag: Option<&str>) -> Result<Self, Error> {
        let index = read_index(dir)?;
        let named = |d: &&Descriptor| d.annotations.get(REF_NAME).map(String::as_str) == tag;
        let root = match (tag, index.manifests.as_slice()) {
            (None, [only]) => Some(only),
            (None, _) => None,
            (Some(_), all) => all.iter().rfind(named),
        };
        let root = root.cloned().ok_or_else(|| Error::Layout {
            path: dir.to_owned(),
            why: missing(&index, tag),
        })?;
        Ok(Self {
            dir: dir.to_owned(),
            root,
        })
    }
}

impl ImageSource for LayoutSource {
    fn root(&self) -> BoxFuture<'_, Result<Document, Error>> {
        self.manifest(&self.root)
    }

    fn manifest<'a>(&'a self, at: &'a Descriptor) -> BoxFuture<'a, Result<Document, Error>> {
        async move {
            let path = blob_path(&self.dir, at.digest);
            let file = tokio::fs::File::open(&path)
                .await
                .map_err(Error::file(&path))?;
            let mut bytes = Vec::new();
            let mut file = file.take(MAX_MANIFEST + 1);
            file.read_to_end(&mut bytes)
                .await
                .map_err(Error::file(&path))?;
            let got = Digest::of(&bytes);
            if got != at.digest {
                return Err(Error::WrongContent {
                    what: "manifest",
                    expected: at.digest,
                    got: format!("digest {got}"),
                });
            }
            Ok(Document {
                media_type: at.media_type.clone(),
                bytes: bytes.into(),
            })
        }
        .boxed()
    }

    fn blob<'a>(&'a self, at: &'a Descriptor) -> BoxFuture<'a, Result<Bytestream, Error>> {
        async move {
            let path = blob_path(&self.dir, at.digest);
            let file = tokio::fs::File::open(&path)
                .await
                .map_err(Error::file(&path))?;
            let pieces = stream::try_unfold((file, path), |(mut file, path)| async move {
                let mut piece = BytesMut::with_capacity(PIECE);
                let read = file
                    .read_buf(&mut piece)
                    .await
                    .map_err(Error::file(&path))?;
                Ok((read > 0).then(|| (Bytes::from(piece), (file, path))))
            });
            Ok(pieces.boxed())
        }
        .boxed()
    }
}

impl LayoutSink {
    /// A layout in `dir`, made if there is none.
    ///
    /// # Errors
    /// The folder cannot be made, or holds something else.
    pub fn create(dir: &Path, tag: &str) -> Result<Self, Error> {
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).map_err(Error::file(&blobs))?;
        if !dir.join(LAYOUT).exists() {
            replace(dir, LAYOUT, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        if dir.join(INDEX).exists() {
            read_index(dir)?;
        }
        Ok(Self {
            dir: dir.to_owned(),
            tag: tag.to_owned(),
        })
    }

    fn name(&self, digest: Digest, document: &Document) -> Result<(), Error> {
        let path = self.dir.join(LAYOUT);
        let lock = File::open(&path).map_err(Error::file(&path))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|errno| Error::file(&path)(errno.into()))?;
        let mut index = match self.dir.join(INDEX).exists() {
            true => read_index(&self.dir)?,
            false => Index {
                schema_version: 2,
                media_type: Some(crate::oci::MediaType::OciIndex),
                manifests: Vec::new(),
                annotations: Default::default(),
                extra: Default::default(),
            },
        };
        index
            .manifests
            .retain(|d| d.annotations.get(REF_NAME) != Some(&self.tag));
        index.manifests.push(Descriptor {
            media_type: document.media_type.clone(),
            digest,
            size: document.bytes.len() as u64,
            annotations: [(REF_NAME.to_owned(), self.tag.clone())].into(),
            platform: None,
            extra: Default::default(),
        });
        let json = serde_json::to_vec(&index).map_err(|e| Error::file(&path)(e.into()))?;
        replace(&self.dir, INDEX, &json)
    }
}

impl ImageSink for LayoutSink {
    fn staging(&self) -> &Path {
        &self.dir
    }

    fn has_blob(&self, digest: Digest) -> BoxFuture<'_, Result<bool, Error>> {
        async move { Ok(blob_path(&self.dir, digest).exists()) }.boxed()
    }

    fn put_blob(
        &self,
        digest: Digest,
        _size: u64,
        file: NamedTempFile,
    ) -> BoxFuture<'_, Result<(), Error>> {
        let path = blob_path(&self.dir, digest);
        let kept = tokio::task::spawn_blocking(move || persist(file, &path));
        async move { kept.await.map_err(|_| Error::Died(digest))? }.boxed()
    }

    fn put_bytes(&self, digest: Digest, bytes: Bytes) -> BoxFuture<'_, Result<(), Error>> {
        async move { replace(&self.dir, &format!("blobs/sha256/{}", digest.hex()), &bytes) }.boxed()
    }

    fn put_manifest(&self, digest: Digest, document: Document) -> BoxFuture<'_, Result<(), Error>> {
        self.put_bytes(digest, document.bytes)
    }

    fn put_root(&self, digest: Digest, document: Document) -> BoxFuture<'_, Result<(), Error>> {
        async move {
            self.put_bytes(digest, document.bytes.clone()).await?;
            self.name(digest, &document)
        }
        .boxed()
    }
}

fn blob_path(dir: &Path, digest: Digest) -> PathBuf {
    dir.join("blobs/sha256").join(digest.hex())
}

fn read_index(dir: &Path) -> Result<Index, Error> {
    let path = dir.join(INDEX);
    let size = match path.metadata() {
        Ok(found) => found.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::Layout {
                path: dir.to_owned(),
                why: format!("no OCI layout is there: it has no {INDEX}"),
            });
        }
        Err(error) => return Err(Error::file(&path)(error)),
    };
    let broken = |why: String| Error::Layout {
        path: dir.to_owned(),
        why,
    };
    if size > MAX_MANIFEST {
        return Err(broken(format!(
            "{INDEX} is larger than {MAX_MANIFEST} bytes"
        )));
    }
    let json = std::fs::read(&path).map_err(Error::file(&path))?;
    Index::parse(&json).map_err(|e| broken(format!("{INDEX}: {e}")))
}

fn missing(index: &Index, tag: Option<&str>) -> String {
    let names = index
        .manifests
        .iter()
        .filter_map(|d| d.annotations.get(REF_NAME));
    let names: Vec<&str> = names.map(String::as_str).take(10).collect();
    match (tag, names.as_slice()) {
        (Some(tag), []) => format!("no image is named {tag:?}, none has a name"),
        (Some(tag), names) => format!("no image is named {tag:?}, there is: {}", names.join(", ")),
        (None, names) => format!("it holds several images, name one of: {}", names.join(", ")),
    }
}

/// Writes `dir/name` so that it is there whole or not at all.
fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let path = dir.join(name);
    let temporary = tempfile::Builder::new().prefix(".crfs-").tempfile_in(dir);
    let mut file = temporary.map_err(Error::file(&path))?;
    file.write_all(bytes).map_err(Error::file(&path))?;
    persist(file, &path)
}

/// Temporary files are readable by their owner only; a layout is for everyone.
fn persist(file: NamedTempFile, path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::Permissions::from_mode(0o644);
    file.as_file()
        .set_permissions(mode)
        .map_err(Error::file(path))?;
    file.as_file().sync_all().map_err(Error::file(path))?;
    file.persist(path).map_err(|e| Error::file(path)(e.error))?;
    let folder = path.parent().unwrap_or(path);
    File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(Error::file(folder))
}
