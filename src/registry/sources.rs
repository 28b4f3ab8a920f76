//! One blob that several images hold: read from whichever of them lets us.
//!
//! A layer pulled as part of several images may be read by the reference and the credentials of
//! any of them. When one is refused, gone or out of reach, the next is tried, also in the middle
//! of a range; whichever served last is asked first. One that sent wrong bytes is asked last.
//!
//! Locking: the list is locked to look at it and to add to it, never across a request.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt as _};
use parking_lot::Mutex;

use crate::oci::{Digest, Reference};
use crate::registry::served::Served;
use crate::registry::{ByteStream, Client, Error, RangeSource};

/// Most places that are remembered for one blob.
const MAX_SOURCES: usize = 8;

/// A blob by the references it was pulled by. Cheap to clone; clones share the list.
#[derive(Clone)]
pub struct Sources(Arc<Inner>);

struct Inner {
    client: Client,
    digest: Digest,
    size: u64,
    list: Mutex<List>,
    /// By their place in the list, which only grows.
    served: Served<usize>,
}

#[derive(Default)]
struct List {
    sources: Vec<Source>,
    /// The one to be asked first.
    first: usize,
}

#[derive(Clone)]
struct Source {
    host: String,
    repository: String,
    blob: Arc<dyn RangeSource>,
}

/// A range that is being read.
struct Reader {
    sources: Sources,
    /// Those that have not failed this read, the next one first.
    left: Vec<(usize, Source)>,
    rest: Range<u64>,
    pieces: Option<ByteStream>,
    /// What `pieces` are to bring.
    asked: Range<u64>,
    /// What the first of them said: the reason that matters if all fail.
    failure: Option<Error>,
}

impl Sources {
    /// The blob as `images`, which are not none, hold it. Makes no request.
    ///
    /// # Errors
    /// None of their hosts can be spoken to at all.
    pub fn new(
        client: &Client,
        images: &[Reference],
        digest: Digest,
        size: u64,
    ) -> Result<Self, Error> {
        let sources = Self(Arc::new(Inner {
            client: client.clone(),
            digest,
            size,
            list: Mutex::default(),
            served: Served::default(),
        }));
        let mut failure = None;
        for image in images {
            if let Err(error) = sources.add(image) {
                failure = Some(error);
            }
        }
        match failure {
            Some(error) if sources.0.list.lock().sources.is_empty() => Err(error),
            _ => Ok(sources),
        }
    }

    /// Adds the place that `image` names, unless it is there or there are enough.
    ///
    /// # Errors
    /// Its host cannot be spoken to at all.
    pub fn add(&self, image: &Reference) -> Result<(), Error> {
        let blob = self.0.client.blob(image, self.0.digest, self.0.size)?;
        let mut list = self.0.list.lock();
        let is_known = list
            .sources
            .iter()
            .any(|known| known.host == image.host() && known.repository == image.repository());
        if !is_known && list.sources.len() < MAX_SOURCES {
            list.sources.push(Source {
                host: image.host().to_owned(),
                repository: image.repository().to_owned(),
                blob,
            });
        }
        Ok(())
    }

    /// All places, the preferred one first.
    fn in_order(&self) -> Vec<(usize, Source)> {
        let list = self.0.list.lock();
        let mut all: Vec<_> = list.sources.iter().cloned().enumerate().collect();
        let first = list.first.min(all.len());
        all.rotate_left(first);
        all
    }

    async fn read(&self, range: Range<u64>) -> Result<ByteStream, Error> {
        let mut reader = Reader {
            sources: self.clone(),
            left: self.in_order(),
            asked: range.clone(),
            rest: range,
            pieces: None,
            failure: None,
        };
        reader.open().await?;
        let pieces = stream::try_unfold(reader, |mut reader| async move {
            Ok(reader.next().await?.map(|piece| (piece, reader)))
        });
        Ok(pieces.boxed())
    }
}

impl RangeSource for Sources {
    fn digest(&self) -> Digest {
        self.0.digest
    }

    fn size(&self) -> u64 {
        self.0.size
    }

    fn range(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        Box::pin(self.read(range))
    }

    fn was_wrong(&self, range: Range<u64>) {
        for at in self.0.served.blame(&range) {
            let mut list = self.0.list.lock();
            let Some(blob) = list.sources.get(at).map(|source| Arc::clone(&source.blob)) else {
                continue;
            };
            // It may have no other host to turn to; another source has.
            if list.first == at {
                list.first = (at + 1) % list.sources.len();
            }
            drop(list);
            blob.was_wrong(range.clone());
        }
    }
}

impl Reader {
    /// Asks for what is left, of each place in turn.
    async fn open(&mut self) -> Result<(), Error> {
        while self.pieces.is_none() {
            let Some((at, source)) = self.left.first().cloned() else {
                let none = || Error::Setup("a blob without a place".to_owned());
                return Err(self.failure.take().unwrap_or_else(none));
            };
            match source.blob.range(self.rest.clone()).await {
                Ok(pieces) => {
                    let Inner { list, served, .. } = &*self.sources.0;
                    list.lock().first = at;
                    self.asked = self.rest.clone();
                    served.begun(self.asked.clone(), at);
                    self.pieces = Some(pieces);
                }
                Err(error) => self.give_up(error),
            }
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            self.open().await?;
            let Some(pieces) = &mut self.pieces else {
                continue;
            };
            match pieces.next().await {
                Some(Ok(piece)) => {
                    self.rest.start += piece.len() as u64;
                    return Ok(Some(piece));
                }
                None => return Ok(None),
                Some(Err(error)) => self.give_up(error),
            }
        }
    }

    /// The place that is being asked does not have it for us: on to the next.
    fn give_up(&mut self, error: Error) {
        if self.pieces.take().is_some() {
            let served = &self.sources.0.served;
            served.broke_off(&self.asked, self.rest.start);
        }
        let (_, failed) = self.left.remove(0);
        if let Some((at, next)) = self.left.first() {
            let (from, to) = (&failed.repository, &next.repository);
            tracing::warn!(blob = %self.sources.0.digest, from, to, %error, "reading on from another source");
            self.sources.0.list.lock().first = *at;
        }
        self.failure.get_or_insert(error);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::registry::testing::{FakeRegistry, Gatekeeper, Reply};
    use crate::registry::{Anonymous, Config};

    fn images(servers: &[&FakeRegistry]) -> Vec<Reference> {
        let image = |server: &&FakeRegistry| format!("{}/a/b:t", server.host()).parse().unwrap();
        servers.iter().map(image).collect()
    }

    fn two(content: &[u8]) -> (FakeRegistry, FakeRegistry, Sources) {
        let digest = Digest::of(content);
        let path = format!("/v2/a/b/blobs/{digest}");
        let servers = [FakeRegistry::start(), FakeRegistry::start()];
        for server in &servers {
            server.add(&path, "application/octet-stream", content);
        }
        let config = Config {
            retries: 0,
            deadline: Duration::from_secs(2),
            ..Config::default()
        };
        let client = Client::new(config, Arc::new(Anonymous));
        let images = images(&[&servers[0], &servers[1]]);
        let sources = Sources::new(&client, &images, digest, content.len() as u64).unwrap();
        let [a, b] = servers;
        (a, b, sources)
    }

    async fn read(sources: &Sources, range: Range<u64>) -> Result<Vec<u8>, Error> {
        let mut pieces = sources.range(range).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece?);
        }
        Ok(bytes)
    }

    #[tokio::test]
    async fn a_refused_source_is_replaced_by_the_next_and_not_asked_again() {
        let content = vec![7; 1000];
        let (a, b, sources) = two(&content);
        assert_eq!(read(&sources, 0..10).await.unwrap(), content[..10]);
        assert_eq!(b.seen().len(), 0);
        a.guard(Gatekeeper::Basic("revoked".to_owned()));
        let asked = a.seen().len();
        for at in 0..5u64 {
            let range = at * 100..at * 100 + 100;
            assert_eq!(read(&sources, range).await.unwrap(), vec![7; 100]);
        }
        assert_eq!(a.seen().len(), asked + 1, "the refused one is left alone");
        b.guard(Gatekeeper::Basic("revoked too".to_owned()));
        let error = read(&sources, 0..10).await.unwrap_err();
        assert!(error.is_unauthorized(), "{error}");
        a.guard(Gatekeeper::Bearer {
            realm: None,
            life: Duration::from_secs(60),
            login: None,
        });
        assert_eq!(read(&sources, 0..10).await.unwrap(), content[..10]);
    }

    #[tokio::test]
    async fn a_range_goes_on_in_the_middle() {
        let content: Vec<u8> = (0..60_000u32).map(|n| n as u8).collect();
        let (a, b, sources) = two(&content);
        let whole = content.clone();
        a.script(move |seen, before| match (before, seen.range()) {
            (0, Some((start, end))) => Some(Reply {
                cut: Some(20_000),
                ..Reply::part(&whole, start, end)
            }),
            _ => Some(Reply::new(404)),
        });
        assert!(read(&sources, 0..60_000).await.unwrap() == content);
        let asked: Vec<_> = b.seen().iter().filter_map(|seen| seen.range()).collect();
        assert_eq!(asked, [(20_000, 60_000)], "only what was missing");
    }

    #[tokio::test]
    async fn who_sent_wrong_bytes_is_known_and_asked_last() {
        let content: Vec<u8> = (0..60_000u32).map(|n| n as u8).collect();
        let (a, b, sources) = two(&content);
        let wrong = vec![0; content.len()];
        a.script(move |seen, _| {
            let (start, end) = seen.range()?;
            Some(Reply::part(&wrong, start, end))
        });
        assert_eq!(read(&sources, 0..10).await.unwrap(), [0; 10]);
        sources.was_wrong(0..10);
        assert_eq!(read(&sources, 0..10).await.unwrap(), content[..10]);
        // It is told late, while another serves: that one is not to blame.
        a.script(|_, _| None);
        assert_eq!(read(&sources, 10..20).await.unwrap(), content[10..20]);
        b.script(|_, _| Some(Reply::new(404)));
        assert_eq!(read(&sources, 20..30).await.unwrap(), content[20..30]);
        let asked = (a.seen().len(), b.seen().len());
        sources.was_wrong(10..20);
        assert_eq!(read(&sources, 30..40).await.unwrap(), content[30..40]);
        let now = (a.seen().len(), b.seen().len());
        assert_eq!(now, (asked.0 + 1, asked.1), "it is still asked first");
    }

    #[tokio::test]
    async fn a_place_is_remembered_once_and_not_too_many() {
        let (_, _, sources) = two(&[1; 10]);
        let count = || sources.0.list.lock().sources.len();
        for n in 0..20 {
            let image = format!("127.0.0.1:1/repository{}:{n}", n / 2).parse();
            sources.add(&image.unwrap()).unwrap();
        }
        assert_eq!(count(), MAX_SOURCES);
    }
}
