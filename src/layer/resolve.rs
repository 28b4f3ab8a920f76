//! From a layer's descriptor to its index on disk: footer, TOC, verification, build.
//!
//! # Layout
//! `<root>/indexes/<blob digest>-<TOC digest>`, both as hex. An index is written once, whole (see
//! [`crate::fs::index`]), and never changes.
//!
//! # Crash behaviour
//! A crash leaves either no index of that name or a complete one; what else lies in the folder is
//! temporary and swept at start.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt as _;

use crate::fs::{Index, index};
use crate::layer::NotLazy;
use crate::layer::flight::{Flights, Outcome};
use crate::oci::{Descriptor, Digest, Reference, annotation};
use crate::registry::{self, RangeSource, Sources};
use crate::stargz::{Footer, Limits, Toc, inflate_toc};

/// The least that is read of a blob's end, in bytes: the TOC of a layer of a few hundred files.
const MIN_TAIL: u64 = 64 << 10;
/// The most that is read of a blob's end before its footer is known, in bytes.
const MAX_TAIL: u64 = 1 << 20;
/// The least and the most that is read of a blob's end on the word of the manifest, in bytes.
const MIN_HINTED: u64 = 4 << 10;
const MAX_HINTED: u64 = 16 << 20;
/// The longest TOC that is read, compressed, in bytes: it is held in memory until it is verified.
const MAX_TOC: u64 = 64 << 20;
/// A TOC is rarely more than this part of its blob (layers of tiny files apart); reading so much
/// of the end saves a round trip, and costs little where it is too much.
const TAIL_SHARE: u64 = 64;

/// Makes indexes, each once however many ask.
pub(super) struct Resolver {
    client: registry::Client,
    indexes: PathBuf,
    limits: Limits,
    /// Repositories (`host/name`) whose layers may be read without digests.
    allow_unverified: Vec<String>,
    layers: Flights<Digest, Digest>,
}

impl Resolver {
    pub(super) fn new(
        client: registry::Client,
        indexes: PathBuf,
        allow_unverified: Vec<String>,
    ) -> Arc<Self> {
        let layers = Flights::new(Duration::ZERO);
        Arc::new(Self {
            client,
            indexes,
            limits: Limits::default(),
            allow_unverified,
            layers,
        })
    }

    /// Where the index of a layer lies, or would.
    pub(super) fn index_path(&self, layer: &Digest, toc: &Digest) -> PathBuf {
        self.indexes.join(format!("{}-{}", layer.hex(), toc.hex()))
    }

    /// Starts on a layer, if it can be lazy at all, without waiting for it.
    pub(super) fn start(self: &Arc<Self>, image: &Reference, layer: &Descriptor) {
        if self.promise(image, layer).is_ok() {
            drop(self.resolve(std::slice::from_ref(image), layer));
        }
    }

    /// Sees to it that the layer's index is on disk; gives the digest of its TOC. It is a layer of
    /// all `images`; the first one counts where nothing promises its content.
    pub(super) fn resolve(
        self: &Arc<Self>,
        images: &[Reference],
        layer: &Descriptor,
    ) -> Outcome<Digest> {
        let this = Arc::clone(self);
        let (images, layer) = (images.to_vec(), layer.clone());
        self.layers.join(layer.digest, async move {
            let none = || NotLazy::Local("a layer of no image".to_owned());
            let image = images.first().ok_or_else(none)?;
            match this.promise(image, &layer)? {
                Promise::Digest(toc) if this.is_indexed(&layer.digest, &toc) => Ok(toc),
                promise => this.fetch(&images, &layer, promise).await,
            }
        })
    }

    /// Removes every complete index but those to be kept. One that is being made has a temporary name
    /// and is left alone; one that was made and not mounted yet is made again when it is.
    pub(super) fn sweep(&self, keep: &dyn Fn(&Path) -> bool) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.indexes)? {
            let path = entry?.path();
            if is_index(&path) && !keep(&path) {
                std::fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn is_indexed(&self, layer: &Digest, toc: &Digest) -> bool {
        Index::open(&self.index_path(layer, toc), toc).is_ok()
    }

    /// What the manifest promises of the layer's TOC, before anything of the blob is read.
    fn promise(&self, image: &Reference, layer: &Descriptor) -> Result<Promise, NotLazy> {
        if !layer.media_type.is_tar_gzip() {
            return Err(NotLazy::MediaType(layer.media_type.as_str().to_owned()));
        }
        if let Some(text) = layer.annotations.get(annotation::TOC_DIGEST) {
            let toc = text.parse::<Digest>();
            return toc
                .map(Promise::Digest)
                .map_err(|e| NotLazy::Invalid(format!("TOC: {e}")));
        }
        let name = format!("{}/{}", image.host(), image.repository());
        match self.allow_unverified.contains(&name) {
            true => Ok(Promise::Nothing),
            false => Err(NotLazy::NoTocDigest),
        }
    }

    async fn fetch(
        &self,
        images: &[Reference],
        layer: &Descriptor,
        promise: Promise,
    ) -> Result<Digest, NotLazy> {
        let source = Sources::new(&self.client, images, layer.digest, layer.size);
        let source = source.map_err(|error| NotLazy::Registry(error.to_string()))?;
        let (data_end, member) = read_toc_member(&source, hint(layer)).await?;
        let work = Build {
            member,
            promise,
            data_end,
            limits: self.limits.clone(),
            layer: layer.digest,
            indexes: self.indexes.clone(),
        };
        let built = tokio::task::spawn_blocking(move || work.run()).await;
        built.unwrap_or_else(|error| Err(NotLazy::Local(format!("internal error: {error}"))))
    }
}

/// What is known of a TOC before it is read.
enum Promise {
    /// Its digest.
    Digest(Digest),
    /// Nothing; the configuration allows that by name.
    Nothing,
}

/// Inflating, verifying and indexing a TOC: CPU work, off the asynchronous threads.
struct Build {
    member: Bytes,
    promise: Promise,
    data_end: u64,
    limits: Limits,
    layer: Digest,
    indexes: PathBuf,
}

impl Build {
    fn run(self) -> Result<Digest, NotLazy> {
        let invalid = |error: crate::stargz::Error| NotLazy::Invalid(error.to_string());
        let json = inflate_toc(&self.member, &self.limits).map_err(invalid)?;
        let toc = match self.promise {
            Promise::Digest(expected) => Toc::verify(json, &expected).map_err(invalid)?,
            Promise::Nothing => Toc::unverified(json),
        };
        let digest = *toc.digest();
        let path = self
            .indexes
            .join(format!("{}-{}", self.layer.hex(), digest.hex()));
        self.index(&toc, &path)?;
        Ok(digest)
    }

    fn index(&self, toc: &Toc, path: &Path) -> Result<(), NotLazy> {
        let built = index::build(toc, &self.limits, self.data_end, self.layer, path);
        built.map_err(|error| match error {
            index::Error::Toc(_) | index::Error::Tree { .. } => NotLazy::Invalid(error.to_string()),
            _ => NotLazy::Local(error.to_string()),
        })
    }
}

/// Where the TOC begins, by the word of whoever wrote the manifest. It saves a request where the TOC
/// is longer than the usual guess; the footer decides.
fn hint(layer: &Descriptor) -> Option<u64> {
    let offset: u64 = layer
        .annotations
        .get(annotation::TOC_OFFSET)?
        .parse()
        .ok()?;
    let tail = layer.size.checked_sub(offset)?;
    (tail <= MAX_HINTED).then_some(tail)
}

/// Reads the end of the blob, finds the footer there and the TOC before it: one request, or two
/// where the TOC is longer than was `hinted` or guessed.
async fn read_toc_member(
    source: &dyn RangeSource,
    hinted: Option<u64>,
) -> Result<(u64, Bytes), NotLazy> {
    let size = source.size();
    let usual = (size / TAIL_SHARE).clamp(MIN_TAIL, MAX_TAIL);
    let guess = hinted.unwrap_or(usual).max(MIN_HINTED).min(size);
    if size == 0 {
        return Err(NotLazy::PlainGzip);
    }
    let tail_start = size - guess;
    let tail = read_range(source, tail_start..size).await?;
    let footer_at = tail.len().saturating_sub(Footer::MAX_LEN);
    let footer = Footer::parse(tail.get(footer_at..).unwrap_or_default(), size)
        .map_err(|error| NotLazy::Invalid(error.to_string()))?
        .ok_or(NotLazy::PlainGzip)?;
    let end = size - footer.len() as u64;
    if end - footer.toc_offset > MAX_TOC {
        let claimed = end - footer.toc_offset;
        let why = format!("a TOC of {claimed} bytes, compressed; the limit is {MAX_TOC}");
        return Err(NotLazy::Invalid(why));
    }
    let member = if footer.toc_offset >= tail_start {
        slice(&tail, footer.toc_offset - tail_start, end - tail_start)
    } else {
        let mut member = BytesMut::from(read_range(source, footer.toc_offset..tail_start).await?);
        member.extend_from_slice(&slice(&tail, 0, end - tail_start));
        member.freeze()
    };
    Ok((footer.toc_offset, member))
}

/// Whether a file has an index's name: two digests.
fn is_index(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let hex = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    name.split_once('-')
        .is_some_and(|(layer, toc)| hex(layer) && hex(toc))
}

fn slice(tail: &Bytes, from: u64, to: u64) -> Bytes {
    let at = |offset: u64| {
        usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(tail.len())
    };
    tail.slice(at(from)..at(to))
}

async fn read_range(source: &dyn RangeSource, range: Range<u64>) -> Result<Bytes, NotLazy> {
    let registry = |error: registry::Error| NotLazy::Registry(error.to_string());
    let mut bytes = BytesMut::new();
    let mut stream = source.range(range).await.map_err(registry)?;
    while let Some(piece) = stream.try_next().await.map_err(registry)? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::FutureExt as _;
    use futures::future::BoxFuture;
    use futures::stream::{self, StreamExt as _};

    use super::*;
    use crate::oci::MediaType;
    use crate::registry::ByteStream;

    struct Memory {
        bytes: Bytes,
        requests: AtomicU32,
    }

    impl RangeSource for Memory {
        fn digest(&self) -> Digest {
            Digest::of(&self.bytes)
        }

        fn size(&self) -> u64 {
            self.bytes.len() as u64
        }

        fn range(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, registry::Error>> {
            self.requests.fetch_add(1, Ordering::SeqCst);
            let piece = slice(&self.bytes, range.start, range.end);
            async move { Ok(stream::iter([Ok(piece)]).boxed()) }.boxed()
        }
    }

    /// A blob whose TOC has this many bytes, after as much content as makes the usual guess wrong.
    fn blob(toc: usize) -> Memory {
        let real = include_bytes!("../stargz/testdata/estargz.blob");
        let footer = &real[real.len() - Footer::MAX_LEN..];
        let found = Footer::parse(footer, real.len() as u64).unwrap().unwrap();
        // The footer says where the TOC begins, so content is put where it says nothing of.
        let begin = usize::try_from(found.toc_offset).unwrap();
        let mut bytes = vec![1; begin];
        bytes.resize(begin + toc, 2);
        bytes.extend_from_slice(footer);
        Memory {
            bytes: bytes.into(),
            requests: AtomicU32::new(0),
        }
    }

    #[tokio::test]
    async fn a_hint_saves_a_request_and_a_wrong_one_costs_one() {
        let size = 200_000;
        for (hinted, requests) in [
            (None, 2),
            (Some(size + 51), 1),
            (Some(size + 20), 2),
            (Some(0), 2),
            (Some(u64::MAX), 1),
        ] {
            let blob = blob(200_000);
            let (at, member) = read_toc_member(&blob, hinted).await.unwrap();
            assert_eq!(at + 200_000 + 51, blob.size(), "{hinted:?}");
            assert!(member.len() == 200_000 && member.iter().all(|byte| *byte == 2));
            assert_eq!(blob.requests.into_inner(), requests, "{hinted:?}");
        }
    }

    #[test]
    fn a_hint_is_believed_within_bounds() {
        for (text, tail) in [
            ("900", Some(100)),
            ("1000", Some(0)),
            ("1001", None),
            ("-1", None),
            ("", None),
            ("18446744073709551616", None),
        ] {
            let annotations = [(annotation::TOC_OFFSET.to_owned(), text.to_owned())];
            let layer = |size| Descriptor {
                media_type: MediaType::OciTarGzip,
                digest: Digest::of(b""),
                size,
                annotations: annotations.clone().into(),
                platform: None,
                extra: serde_json::Map::new(),
            };
            assert_eq!(hint(&layer(1000)), tail, "{text}");
            assert_eq!(
                hint(&layer(u64::MAX)),
                None,
                "{text}: too much to read at once"
            );
        }
    }
}
