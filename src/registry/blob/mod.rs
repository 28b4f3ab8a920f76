//! One remote blob, read by ranges that survive broken connections, expired URLs, and hosts that do
//! not have it or do not serve it rightly.
//!
//! A range is asked of the hosts in their order ([`Hosts`]) until one answers; what an answer leaves
//! out is asked of them again. Where no other host is left, time is given ([`Patience`]). A host that sends the whole
//! blob instead of a range sends it once, to all who read it ([`whole`]).
//!
//! Locking: `spots` is held for a copy only, `whole` to look it up and begin one.

mod part;
mod spot;
mod whole;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt as _};
use parking_lot::Mutex;

use crate::oci::Digest;
use crate::registry::body::PROGRESS;
use crate::registry::hosts::{Capability, Failures, Hosts, List};
use crate::registry::retry::Patience;
use crate::registry::served::Served;
use crate::registry::{ByteStream, Error, RangeSource};
use part::Part;
use spot::{Spot, Target};
use whole::Whole;

/// A blob of a registry. Cheap to clone; clones share where the blob was found.
#[derive(Clone)]
pub(super) struct RemoteBlob(Arc<Inner>);

struct Inner {
    hosts: Arc<Hosts>,
    target: Arc<Target>,
    /// The blob at each host, and the list of hosts they were made for.
    spots: Mutex<(Option<List>, Vec<Arc<Spot>>)>,
    served: Served<Arc<Spot>>,
    /// Where the whole of it may be kept for a while.
    spool: Option<PathBuf>,
    /// The whole of it, while it is sent or kept.
    whole: Mutex<Weak<Whole>>,
}

/// A range that is being read.
struct Reader {
    blob: RemoteBlob,
    rest: Range<u64>,
    part: Option<(Arc<Spot>, Part)>,
    /// What `part` is to bring.
    asked: Range<u64>,
    patience: Patience,
    /// Bytes since the last failure.
    progress: u64,
}

impl RemoteBlob {
    pub(super) fn new(
        hosts: Arc<Hosts>,
        repository: &str,
        digest: Digest,
        size: u64,
        spool: Option<PathBuf>,
    ) -> Self {
        let target = Target {
            what: format!("blob {digest} of {}/{repository}", hosts.name()).into(),
            repository: repository.to_owned(),
            digest,
            size,
        };
        Self(Arc::new(Inner {
            hosts,
            target: Arc::new(target),
            spots: Mutex::default(),
            served: Served::default(),
            spool,
            whole: Mutex::default(),
        }))
    }

    async fn read(&self, range: Range<u64>) -> Result<ByteStream, Error> {
        let Target { what, size, .. } = &*self.0.target;
        if range.is_empty() || range.end > *size {
            let (start, end) = (range.start, range.end);
            let why = format!("{what}: {start}..{end} is not a range of its {size} bytes");
            return Err(Error::Protocol(why));
        }
        let mut reader = Reader {
            blob: self.clone(),
            asked: range.clone(),
            rest: range,
            part: None,
            patience: self.0.hosts.patience(what),
            progress: 0,
        };
        reader.open().await?;
        let pieces = stream::try_unfold(reader, |mut reader| async move {
            Ok(reader.next().await?.map(|piece| (piece, reader)))
        });
        Ok(pieces.boxed())
    }
}

impl RangeSource for RemoteBlob {
    fn digest(&self) -> Digest {
        self.0.target.digest
    }

    fn size(&self) -> u64 {
        self.0.target.size
    }

    fn range(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        Box::pin(self.read(range))
    }

    fn was_wrong(&self, range: Range<u64>) {
        *self.0.whole.lock() = Weak::new();
        for spot in self.0.served.blame(&range) {
            spot.was_wrong();
        }
    }
}

impl Inner {
    /// Asks each host that may have `range`, until one answers.
    async fn open(&self, range: &Range<u64>) -> Result<(Arc<Spot>, Part), Error> {
        if let Some(kept) = self.kept(&self.whole.lock(), range) {
            return Ok(kept);
        }
        let mut failures = Failures::default();
        for spot in self.candidates()? {
            match spot.open(range).await {
                Ok(part) => {
                    spot.endpoint.worked();
                    return Ok(self.share(spot, part, range));
                }
                Err(error) => {
                    spot.note(&error);
                    failures.add(&spot.endpoint, error);
                }
            }
        }
        let verdict = failures.verdict();
        Err(verdict.unwrap_or_else(|| self.hosts.none_able(Capability::Pull)))
    }

    /// `range` of the whole blob that is sent or kept, if there is one that reaches so far.
    fn kept(&self, whole: &Weak<Whole>, range: &Range<u64>) -> Option<(Arc<Spot>, Part)> {
        let whole = whole.upgrade().filter(|whole| whole.reaches(range.end))?;
        let spot = Arc::clone(&whole.spot);
        self.served.begun(range.clone(), Arc::clone(&spot));
        Some((spot, Part::of_whole(whole.tail(range.start), range)))
    }

    /// An answer to a request for `range`; one that is the whole blob is shared by all its readers.
    fn share(&self, spot: Arc<Spot>, part: Part, range: &Range<u64>) -> (Arc<Spot>, Part) {
        let mut whole = self.whole.lock();
        let is_of_more = part.is_of_more();
        if is_of_more && let Some(kept) = self.kept(&whole, range) {
            return kept;
        }
        let folder = self.spool.as_deref().filter(|_| is_of_more);
        let part = match folder.and_then(|folder| self.room(folder)) {
            Some(file) => {
                let (host, all) = (part.host().to_owned(), part.widened(self.target.size));
                let new = Whole::begin(file, Arc::clone(&spot), host, pieces(all));
                *whole = Arc::downgrade(&new);
                Part::of_whole(new.tail(range.start), range)
            }
            None => part,
        };
        self.served.begun(range.clone(), Arc::clone(&spot));
        (spot, part)
    }

    fn room(&self, folder: &Path) -> Option<File> {
        let Target { what, size, .. } = &*self.target;
        let room = Whole::room(folder, *size);
        let refused = |error: &io::Error| {
            tracing::warn!(%what, %error, "the registry sends all of it for each range, which is not kept");
        };
        room.inspect_err(refused).ok()
    }

    /// Hosts in the order to ask them: those that let this blob down only if all did, those that
    /// rest last.
    fn candidates(&self) -> Result<Vec<Arc<Spot>>, Error> {
        let hosts = self.hosts.all()?;
        let mut spots = self.spots.lock();
        if !spots
            .0
            .as_ref()
            .is_some_and(|known| Arc::ptr_eq(known, &hosts))
        {
            let able = hosts.iter().filter(|host| host.can(Capability::Pull));
            let known = std::mem::take(&mut spots.1);
            spots.1 = able
                .map(|host| {
                    let same = known.iter().find(|spot| Arc::ptr_eq(&spot.endpoint, host));
                    let new = || Arc::new(Spot::new(Arc::clone(host), &self.target));
                    same.cloned().unwrap_or_else(new)
                })
                .collect();
            spots.0 = Some(hosts);
        }
        let (aside, mut good): (Vec<_>, Vec<_>) =
            spots.1.iter().cloned().partition(|spot| spot.is_aside());
        if good.is_empty() {
            good = aside;
        }
        good.sort_by_key(|spot| spot.endpoint.is_resting());
        Ok(good)
    }
}

/// What is left of a part.
fn pieces(part: Part) -> ByteStream {
    let pieces = stream::try_unfold(part, |mut part| async move {
        Ok(part.next().await?.map(|piece| (piece, part)))
    });
    pieces.boxed()
}

impl Reader {
    /// Opens what is left, as often as patience allows.
    async fn open(&mut self) -> Result<(), Error> {
        while self.part.is_none() {
            match self.patience.within(self.blob.0.open(&self.rest)).await {
                Ok(opened) => {
                    self.asked = self.rest.clone();
                    self.part = Some(opened);
                }
                Err(error) => self.patience.after(error).await?,
            }
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            self.open().await?;
            let Some((_, part)) = &mut self.part else {
                continue;
            };
            match part.next().await {
                Ok(Some(piece)) => {
                    self.rest.start += piece.len() as u64;
                    self.progress += piece.len() as u64;
                    return Ok(Some(piece));
                }
                Ok(None) if self.rest.is_empty() => {
                    return match self.part.take() {
                        Some((_, part)) => part.finish().await.map(|()| None),
                        None => Ok(None),
                    };
                }
                Ok(None) => {
                    let error = part.truncated(&self.blob.0.target.what);
                    self.fail(error).await?;
                }
                Err(error) => self.fail(error).await?,
            }
        }
    }

    /// The answer broke off: the rest is asked for again, elsewhere if there is another place.
    async fn fail(&mut self, error: Error) -> Result<(), Error> {
        if let Some((spot, _)) = self.part.take() {
            spot.endpoint.failed(&error);
            spot.note(&error);
            let served = &self.blob.0.served;
            served.broke_off(&self.asked, self.rest.start);
        }
        if self.progress >= PROGRESS {
            self.patience.renew();
            self.progress = 0;
        }
        if !error.is_transient()
            && self
                .blob
                .0
                .candidates()?
                .iter()
                .any(|spot| !spot.is_aside())
        {
            return Ok(());
        }
        self.patience.after(error).await
    }
}
