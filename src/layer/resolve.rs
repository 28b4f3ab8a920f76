//! From a layer's descriptor to its index on disk: TOC ([`super::toc`]), verification, build.
//!
//! # Layout
//! `<root>/indexes/<blob digest>-<TOC digest>`, both as hex. An index is written once, whole (see
//! [`crate::fs::index`]), and never changes.
//!
//! # Crash behaviour
//! A crash leaves either no index of that name or a complete one; what else lies in the folder is
//! temporary and swept at start.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::blob::fetch::Fetcher;
use crate::fs::{Index, index};
use crate::layer::flight::{Flights, Outcome};
use crate::layer::spool::SpoolPart;
use crate::layer::toc::{Reading, hint};
use crate::layer::{Config, NotLazy};
use crate::oci::{Descriptor, Digest, Reference, annotation};
use crate::registry::{self, Sources};
use crate::stargz::{Limits, Toc};

/// A TOC compresses at least this well: its digests are hexadecimal, and its keys always the same.
const RATIO: u64 = 2;
/// How many TOCs are read at the same time: each takes up to 1 MiB until it is an index.
const READERS: usize = 16;
/// Compressed TOCs longer than this are worked on one at a time, in bytes: together, those of an
/// image's layers would need several times the memory.
const LARGE: u64 = 4 << 20;
/// How long it is remembered where a TOC was read: its layer is mounted in that time.
const KEEP_SOURCES: Duration = Duration::from_secs(60);

/// Makes indexes, each once however many ask.
pub(super) struct Resolver {
    client: registry::Client,
    fetcher: Arc<Fetcher>,
    indexes: PathBuf,
    limits: Limits,
    /// Repositories (`host/name`) whose layers may be read without digests.
    allow_unverified: Vec<String>,
    layers: Flights<Digest, Arc<Run>>,
    /// Whose turn it is to be read: all layers of an image are announced at once.
    readers: Semaphore,
    /// Whose turn it is among large TOCs.
    large: Semaphore,
    /// Where TOCs were read lately. Their layers' content is next, and whoever asks there knows already whether the
    /// registry serves the blob itself.
    found: Mutex<HashMap<Digest, (Instant, Sources)>>,
}

impl Resolver {
    pub(super) fn new(
        client: registry::Client,
        fetcher: Arc<Fetcher>,
        indexes: PathBuf,
        config: &Config,
    ) -> Arc<Self> {
        let layers = Flights::new(Duration::ZERO);
        Arc::new(Self {
            client,
            fetcher,
            indexes,
            limits: Limits {
                toc_json: config.max_toc.0,
                ..Limits::default()
            },
            allow_unverified: config.allow_unverified.clone(),
            layers,
            readers: Semaphore::new(READERS),
            large: Semaphore::new(1),
            found: Mutex::default(),
        })
    }

    /// Where the index of a layer lies, or would.
    pub(super) fn index_path(&self, layer: &Digest, toc: &Digest) -> PathBuf {
        self.indexes.join(format!("{}-{}", layer.hex(), toc.hex()))
    }

    /// Starts on a layer, if it can be lazy at all, without waiting for it.
    pub(super) fn start(self: &Arc<Self>, image: &Reference, layer: &Descriptor) {
        if self.can_be_lazy(image, layer) {
            drop(self.resolve(std::slice::from_ref(image), layer));
        }
    }

    /// Whether the manifest promises what a lazy layer needs.
    pub(super) fn can_be_lazy(&self, image: &Reference, layer: &Descriptor) -> bool {
        self.refusal(image, layer).is_none()
    }

    /// Why a layer cannot be lazy, as far as the manifest tells.
    pub(super) fn refusal(&self, image: &Reference, layer: &Descriptor) -> Option<NotLazy> {
        self.promise(image, layer).err()
    }

    /// Sees to it that the layer's index is on disk; gives the digest of its TOC. It is a layer of
    /// all `images`; the first one counts where nothing promises its content. A failure at other images, whose turn
    /// it was, is none of these.
    pub(super) fn resolve(
        self: &Arc<Self>,
        images: &[Reference],
        layer: &Descriptor,
    ) -> BoxFuture<'static, Result<Digest, NotLazy>> {
        let none = || NotLazy::Local("a layer of no image".to_owned());
        let promise = images.first().ok_or_else(none);
        let promise = promise.and_then(|image| self.promise(image, layer));
        let asked = promise.map(|promise| Asked {
            images: images.to_vec(),
            layer: layer.clone(),
            promise,
        });
        let asked = match asked {
            Ok(asked) => asked,
            Err(why) => return std::future::ready(Err(why)).boxed(),
        };
        let this = Arc::clone(self);
        // Begun now: not everyone who asks waits.
        let first = this.run(&asked);
        let all = async move {
            let mut run = first.await?;
            while !run.answers(&asked) {
                run = this.run(&asked).await?;
            }
            run.toc.clone()
        };
        all.boxed()
    }

    /// Joins the run for this layer that is under way, whoever asked for that, or starts one.
    fn run(self: &Arc<Self>, asked: &Asked) -> Outcome<Arc<Run>> {
        let (this, asked) = (Arc::clone(self), asked.clone());
        self.layers.join(asked.layer.digest, async move {
            let toc = match asked.promise {
                Promise::Digest(toc) if this.is_indexed(&asked.layer.digest, &toc) => Ok(toc),
                promise => this.fetch(&asked.images, &asked.layer, promise).await,
            };
            Ok(Arc::new(Run { asked, toc }))
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
        // A pull waits for it, and for the layers that are mounted already nobody may.
        let _precedence = self.fetcher.precede();
        let _reader = self.readers.acquire().await;
        let source = Sources::new(&self.client, images, layer.digest, layer.size)?;
        let most = self.limits.toc_json / RATIO;
        let reading = Reading {
            source: &source,
            most,
            folder: &self.indexes,
        };
        let (data_end, member) = reading.toc_member(hint(layer, most)).await?;
        let large = member.range.end - member.range.start > LARGE;
        let _turn = match large {
            true => Some(self.large.acquire().await),
            false => None,
        };
        let work = Build {
            member,
            promise,
            data_end,
            limits: self.limits.clone(),
            layer: layer.digest,
            indexes: self.indexes.clone(),
        };
        let built = tokio::task::spawn_blocking(move || work.run()).await;
        let toc = built.unwrap_or_else(|error| Err(NotLazy::Internal(error.to_string())))?;
        let mut found = self.found.lock();
        found.retain(|_, (when, _)| when.elapsed() < KEEP_SOURCES);
        found.insert(layer.digest, (Instant::now(), source));
        Ok(toc)
    }

    /// The layer's blob as `images` hold it, the one that its TOC was just read from if there is one.
    pub(super) fn sources(
        &self,
        images: &[Reference],
        layer: &Descriptor,
    ) -> Result<Sources, registry::Error> {
        let found = self.found.lock().remove(&layer.digest);
        let Some((_, sources)) = found else {
            return Sources::new(&self.client, images, layer.digest, layer.size);
        };
        for image in images {
            sources.add(image)?;
        }
        Ok(sources)
    }
}

/// What somebody wants the TOC of.
#[derive(Clone)]
struct Asked {
    /// Where the layer is, one at least.
    images: Vec<Reference>,
    layer: Descriptor,
    promise: Promise,
}

/// What came of reading a layer's TOC for one who asked. Others have joined, whose images are elsewhere or whose
/// manifests promise something else.
struct Run {
    asked: Asked,
    toc: Result<Digest, NotLazy>,
}

impl Run {
    /// Whether this is what a run for `asked` would have come to; it is for who started it.
    fn answers(&self, asked: &Asked) -> bool {
        let is_promised_alike = self.asked.promise == asked.promise;
        match (&self.toc, asked.promise) {
            (Ok(toc), Promise::Digest(promised)) => *toc == promised,
            // Of what is read unverified each repository has its own.
            (Ok(_), Promise::Nothing) => {
                let firsts = self.asked.images.first().zip(asked.images.first());
                is_promised_alike && firsts.is_some_and(|(one, other)| is_beside(one, other))
            }
            (Err(_), _) => {
                let was_tried = |image| self.asked.images.iter().any(|one| is_beside(one, image));
                let is_as_long = self.asked.layer.size == asked.layer.size;
                is_promised_alike && is_as_long && asked.images.iter().all(was_tried)
            }
        }
    }
}

/// Whether two images are in the same repository.
fn is_beside(one: &Reference, other: &Reference) -> bool {
    one.host() == other.host() && one.repository() == other.repository()
}

/// What is known of a TOC before it is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Promise {
    /// Its digest.
    Digest(Digest),
    /// Nothing; the configuration allows that by name.
    Nothing,
}

/// Inflating, verifying and indexing a TOC: CPU work, off the asynchronous threads.
struct Build {
    member: SpoolPart,
    promise: Promise,
    data_end: u64,
    limits: Limits,
    layer: Digest,
    indexes: PathBuf,
}

impl Build {
    fn run(self) -> Result<Digest, NotLazy> {
        let promised = match &self.promise {
            Promise::Digest(promised) => Some(promised),
            Promise::Nothing => None,
        };
        let toc = Toc::unpack(Box::new(self.member), promised, &self.limits).map_err(refused)?;
        let digest = *toc.digest();
        let path = self
            .indexes
            .join(format!("{}-{}", self.layer.hex(), digest.hex()));
        let built = index::build(&toc, &self.limits, self.data_end, self.layer, &path);
        built.map(|()| digest).map_err(|error| match error {
            index::Error::Toc(error) => refused(error),
            index::Error::Tree { .. } => NotLazy::Invalid(error.to_string()),
            _ => NotLazy::Local(error.to_string()),
        })
    }
}

/// A TOC that is not taken.
fn refused(error: crate::stargz::Error) -> NotLazy {
    match error {
        crate::stargz::Error::TocTooLarge { .. } => NotLazy::TooLarge(error.to_string()),
        error => NotLazy::Invalid(error.to_string()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::{cache, fetch};
    use crate::oci::MediaType;
    use crate::registry::testing::{FakeRegistry, Reply};
    use crate::registry::{Anonymous, Client};

    const BLOB: &[u8] = include_bytes!("../stargz/testdata/estargz.blob");
    const TOC: &str = "sha256:39694d368eb0a883f32f572f9d035cee13b25dcb228f8a00605db0967744224e";

    struct Bed {
        dir: tempfile::TempDir,
        server: FakeRegistry,
        resolver: Arc<Resolver>,
    }

    impl Bed {
        /// A registry that has the blob in `good` and in `free`, and in `bad` is slow to say no. What is in `free` and in
        /// `bad` may be read unverified.
        fn new() -> Self {
            let (dir, server) = (tempfile::tempdir().unwrap(), FakeRegistry::start());
            let digest = Digest::of(BLOB);
            for repository in ["good", "free"] {
                let path = format!("/v2/{repository}/blobs/{digest}");
                server.add(&path, "application/octet-stream", BLOB);
            }
            server.script(|seen, _| {
                seen.path().starts_with("/v2/bad/").then(|| {
                    std::thread::sleep(Duration::from_millis(200));
                    Reply::new(404)
                })
            });
            let max_size = cache::Config::default();
            let cache = cache::Cache::open(&dir.path().join("cache"), &max_size).unwrap();
            let runtime = tokio::runtime::Handle::current();
            let fetcher = Fetcher::new(Arc::new(cache), fetch::Config::default(), runtime);
            let client = Client::new(registry::Config::default(), Arc::new(Anonymous));
            let config = Config {
                allow_unverified: ["bad", "free"]
                    .map(|name| format!("{}/{name}", server.host()))
                    .into(),
                ..Config::default()
            };
            let indexes = dir.path().join("indexes");
            std::fs::create_dir(&indexes).unwrap();
            let resolver = Resolver::new(client, fetcher, indexes, &config);
            Self {
                dir,
                server,
                resolver,
            }
        }

        fn resolve(
            &self,
            repository: &str,
            promised: Option<&str>,
        ) -> BoxFuture<'static, Result<Digest, NotLazy>> {
            let annotations =
                promised.map(|toc| (annotation::TOC_DIGEST.to_owned(), toc.to_owned()));
            let layer = Descriptor {
                media_type: MediaType::OciTarGzip,
                digest: Digest::of(BLOB),
                size: BLOB.len() as u64,
                annotations: annotations.into_iter().collect(),
                platform: None,
                extra: serde_json::Map::new(),
            };
            let image = format!("{}/{repository}:t", self.server.host());
            self.resolver.resolve(&[image.parse().unwrap()], &layer)
        }
    }

    #[tokio::test]
    async fn a_failure_at_one_image_is_not_that_of_another() {
        let bed = Bed::new();
        let [bad, same, good] = ["bad", "bad", "good"].map(|name| bed.resolve(name, Some(TOC)));
        let (bad, same, good) = tokio::join!(bad, same, good);
        assert_eq!(good, Ok(TOC.parse().unwrap()));
        assert!(matches!(bad, Err(NotLazy::Registry { .. })), "{bad:?}");
        assert_eq!(bad, same);
        assert_eq!(
            bed.server.count("/v2/bad/"),
            1,
            "they share what they share"
        );
        assert_eq!(
            std::fs::read_dir(bed.dir.path().join("indexes"))
                .unwrap()
                .count(),
            1
        );
    }

    #[tokio::test]
    async fn each_manifest_has_a_promise_of_its_own() {
        let bed = Bed::new();
        let wrong = Digest::of(b"another").to_string();
        let asked = [
            ("bad", None),
            ("good", None),
            ("good", Some(&*wrong)),
            ("free", None),
            ("good", Some(TOC)),
        ];
        let answers = asked.map(|(name, promised)| bed.resolve(name, promised));
        let [bad, unnamed, wrong, free, good] =
            futures::future::join_all(answers).await.try_into().unwrap();
        assert!(matches!(bad, Err(NotLazy::Registry { .. })), "{bad:?}");
        assert_eq!(unnamed, Err(NotLazy::NoTocDigest));
        assert!(matches!(wrong, Err(NotLazy::Invalid(_))), "{wrong:?}");
        let toc = Ok(TOC.parse().unwrap());
        assert_eq!((free, good), (toc.clone(), toc));
    }
}
