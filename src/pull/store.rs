//! Content on its way from a registry into containerd's content store, under a lease.
//!
//! containerd verifies a blob against its digest when it is committed. A write that broke off is gone
//! on with where it is, also one that another client of containerd has left: names of writes are those
//! that containerd's own client gives them.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;

use super::{Error, LayerProgress, Stage};
use crate::containerd::{self, Containerd, Ingest, Kind, Lease};
use crate::oci::{Descriptor, Digest, Reference};
use crate::registry::{Client, RangeSource};

/// What the keys of labels begin with that lead garbage collection to content.
const CONTENT: &str = "containerd.io/gc.ref.content.";
/// What the key of the label begins with that says where content came from; a host without its port
/// follows, and the value is a list of repositories.
pub(super) const SOURCE: &str = "containerd.io/distribution.source.";
/// Pause before a write that somebody else is at is tried again.
const PAUSE: Duration = Duration::from_millis(500);
/// How long somebody else may be at a write.
const PATIENCE: Duration = Duration::from_secs(30 * 60);
/// Bytes that are gathered before containerd is told of them.
const GATHER: usize = 512 << 10;

/// Labels of content.
pub(super) type Labels = BTreeMap<String, String>;

/// The way of one image into the content store.
pub(super) struct Store {
    lease: Lease,
    client: Client,
    image: Reference,
    fetched: AtomicU64,
}

/// Ends the lease of a pull, unless what it holds is good for another attempt.
pub(super) async fn end<T>(store: &Store, outcome: Result<T, Error>) -> Result<T, Error> {
    if outcome.as_ref().is_err_and(Error::may_go_on) {
        return outcome;
    }
    let ended = store.lease.end().await;
    let done = outcome?;
    ended?;
    Ok(done)
}

impl Store {
    pub(super) fn new(lease: Lease, client: Client, image: Reference) -> Self {
        Self {
            lease,
            client,
            image,
            fetched: AtomicU64::new(0),
        }
    }

    /// containerd, under the lease.
    pub(super) const fn containerd(&self) -> &Containerd {
        &self.lease.containerd
    }

    /// The registry's name for the image.
    pub(super) const fn image(&self) -> &Reference {
        &self.image
    }

    pub(super) const fn client(&self) -> &Client {
        &self.client
    }

    /// Bytes of blobs and documents that were fetched so far.
    pub(super) fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    pub(super) fn count(&self, bytes: u64) {
        self.fetched.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The document if the content store has it, verified and held.
    pub(super) async fn held(&self, digest: Digest, max: u64) -> Result<Option<Vec<u8>>, Error> {
        let found = self.containerd().read(digest, max).await?;
        if found.is_some() {
            self.lease.hold(digest).await?;
        }
        Ok(found)
    }

    /// Whether the content store has a blob; it is then held.
    pub(super) async fn has(&self, digest: Digest) -> Result<bool, Error> {
        let has = self.containerd().stored(digest).await?.is_some();
        if has {
            self.lease.hold(digest).await?;
        }
        Ok(has)
    }

    /// Stores a document that has been verified.
    pub(super) async fn put(&self, at: &Descriptor, bytes: Vec<u8>) -> Result<(), Error> {
        let (labels, bytes) = (self.source(&HashMap::new()), Bytes::from(bytes));
        let name = write_name(at);
        while let Some(mut ingest) = self.begin(&name, at, None).await? {
            // All of it may be there in another namespace: then containerd wants nothing but the end.
            let there = usize::try_from(ingest.offset()).unwrap_or(usize::MAX);
            let rest = bytes.slice(there.min(bytes.len())..);
            let mut written = ingest.write(&rest).await;
            if written.is_ok() {
                written = ingest.commit(&labels).await;
            }
            match written {
                // Somebody else has brought it meanwhile.
                Err(error) if error.is_exists() => {}
                // What an earlier attempt had left is to blame.
                Err(error) if there > 0 && error.kind() == Some(Kind::Precondition) => {
                    self.containerd().abort(&name).await?;
                }
                written => return Ok(written?),
            }
        }
        self.lease.hold(at.digest).await?;
        self.say_source(at.digest).await
    }

    /// Brings a blob into the content store; gives how many bytes were fetched, or `None` if it was there.
    pub(super) async fn fetch(
        &self,
        blob: &Descriptor,
        progress: &dyn LayerProgress,
    ) -> Result<Option<u64>, Error> {
        let source = self.client.blob(&self.image, blob.digest, blob.size)?;
        let name = write_name(blob);
        let mut fetched = 0;
        let mut is_second = false;
        loop {
            let Some(mut ingest) = self.begin(&name, blob, Some(progress)).await? else {
                self.lease.hold(blob.digest).await?;
                self.say_source(blob.digest).await?;
                return Ok((fetched > 0).then_some(fetched));
            };
            let began_at = ingest.offset();
            progress.stage(Stage::Fetch, blob.size);
            progress.at(began_at);
            if began_at <= blob.size {
                let written = match self.stream(&mut ingest, &*source, progress).await {
                    Ok(bytes) => {
                        fetched += bytes;
                        let labels = self.source(&HashMap::new());
                        ingest.commit(&labels).await.map_err(Error::from)
                    }
                    Err(error) => Err(error),
                };
                match written {
                    Ok(()) => return Ok(Some(fetched)),
                    Err(Error::Containerd(error)) if error.is_exists() => continue,
                    Err(Error::Containerd(error)) if error.kind() == Some(Kind::Precondition) => {
                        if is_second {
                            return Err(self.wrong(blob, &error));
                        }
                        tracing::warn!(%error, "fetching a blob again");
                    }
                    Err(error) => return Err(error),
                }
            } else {
                drop(ingest);
            }
            // What an earlier attempt had left may be to blame; if all of it is new, the registry is.
            self.containerd().abort(&name).await?;
            if began_at == 0 {
                source.was_wrong(0..blob.size);
                is_second = true;
            }
        }
    }

    fn wrong(&self, blob: &Descriptor, error: &containerd::Error) -> Error {
        Error::WrongBlob {
            digest: blob.digest,
            image: self.image.to_string(),
            why: error.to_string(),
        }
    }

    async fn stream(
        &self,
        ingest: &mut Ingest,
        source: &dyn RangeSource,
        progress: &dyn LayerProgress,
    ) -> Result<u64, Error> {
        let began_at = ingest.offset();
        if began_at == source.size() {
            return Ok(0);
        }
        let mut pieces = source.range(began_at..source.size()).await?;
        let mut gathered = BytesMut::new();
        while let Some(piece) = pieces.next().await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => {
                    // The next attempt goes on behind it.
                    ingest.write(&gathered.freeze()).await?;
                    return Err(error.into());
                }
            };
            self.count(piece.len() as u64);
            gathered.extend_from_slice(&piece);
            if gathered.len() >= GATHER {
                ingest.write(&gathered.split().freeze()).await?;
                progress.at(ingest.offset());
            }
        }
        ingest.write(&gathered.freeze()).await?;
        progress.at(ingest.offset());
        Ok(ingest.offset() - began_at)
    }

    /// Begins a write, when nobody else is at it any more.
    async fn begin(
        &self,
        name: &str,
        blob: &Descriptor,
        progress: Option<&dyn LayerProgress>,
    ) -> Result<Option<Ingest>, Error> {
        let began = Instant::now();
        loop {
            match self.containerd().ingest(name, blob).await {
                Err(error) if is_locked(&error) && began.elapsed() < PATIENCE => {
                    if let Some(progress) = progress {
                        progress.stage(Stage::Wait, blob.size);
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) if is_locked(&error) => {
                    return Err(Error::Busy {
                        digest: blob.digest,
                        minutes: PATIENCE.as_secs() / 60,
                    });
                }
                other => return Ok(other?),
            }
        }
    }

    /// Sets labels of content, whatever others it has.
    pub(super) async fn label(&self, digest: Digest, labels: &Labels) -> Result<(), Error> {
        match labels.is_empty() {
            true => Ok(()),
            false => Ok(self.containerd().label(digest, labels).await?),
        }
    }

    /// Makes garbage collection keep `children`, each with a word for what it is, as long as `parent`.
    pub(super) async fn refer(
        &self,
        parent: Digest,
        children: &[(&str, Digest)],
    ) -> Result<(), Error> {
        let stored = self.containerd().stored(parent).await?;
        let stored = stored.map(|stored| stored.labels).unwrap_or_default();
        self.label(parent, &references(&stored, children)).await
    }

    async fn say_source(&self, digest: Digest) -> Result<(), Error> {
        let stored = self.containerd().stored(digest).await?;
        let stored = stored.map(|stored| stored.labels).unwrap_or_default();
        self.label(digest, &self.source(&stored)).await
    }

    /// The label that says where content comes from, besides where it says already.
    fn source(&self, stored: &HashMap<String, String>) -> Labels {
        let key = format!("{SOURCE}{}", self.image.host_name());
        let own = self.image.repository();
        let known = stored.get(&key).map(String::as_str).unwrap_or_default();
        if known.split(',').any(|repository| repository == own) {
            return Labels::new();
        }
        let value = match known {
            "" => own.to_owned(),
            known => format!("{known},{own}"),
        };
        Labels::from([(key, value)])
    }
}

/// Labels that lead to `children` and are not there yet, in places that are free.
pub(super) fn references(stored: &HashMap<String, String>, children: &[(&str, Digest)]) -> Labels {
    let mut labels = Labels::new();
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for (kind, digest) in children {
        let digest = digest.to_string();
        let leads = |(key, value): (&String, &String)| key.starts_with(CONTENT) && *value == digest;
        if stored.iter().any(leads) || labels.iter().any(leads) {
            continue;
        }
        let number = counts.entry(kind).or_default();
        let key = loop {
            let key = match *kind {
                "config" if *number == 0 => format!("{CONTENT}config"),
                kind => format!("{CONTENT}{kind}.{number}"),
            };
            *number += 1;
            if !stored.contains_key(&key) {
                break key;
            }
        };
        labels.insert(key, digest);
    }
    labels
}

fn is_locked(error: &containerd::Error) -> bool {
    error.kind() == Some(Kind::Unavailable) && error.to_string().contains("locked")
}

/// What containerd's client calls the write of this content.
fn write_name(of: &Descriptor) -> String {
    let media_type = &of.media_type;
    let kind = match media_type {
        kind if kind.is_index() => "index",
        kind if kind.is_manifest() => "manifest",
        kind if kind.is_config() => "config",
        _ => "layer",
    };
    format!("{kind}-{}", of.digest)
}
