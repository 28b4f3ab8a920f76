//! One remote blob, read by ranges that survive broken connections and expired URLs.
//!
//! Registries mostly answer a blob request with a redirect to a signed URL elsewhere. Where the
//! blob was found is remembered and asked directly until it refuses; then the registry is asked
//! once more, by one reader while the others wait (single-flight), and they all go on with what
//! it said.
//!
//! Locking: `place` is held for a copy only; `resolving` for one request's head, never both.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt as _};
use parking_lot::Mutex;
use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, StatusCode};
use url::Url;

use crate::oci::Digest;
use crate::registry::auth::Scope;
use crate::registry::body::{Body, PROGRESS};
use crate::registry::endpoint::{Call, Endpoint};
use crate::registry::retry::Patience;
use crate::registry::transport::Answer;
use crate::registry::{ByteStream, Error, RangeSource};

/// A blob of a registry. Cheap to clone; clones share where the blob was found.
#[derive(Clone)]
pub(super) struct RemoteBlob(Arc<Inner>);

struct Inner {
    endpoint: Arc<Endpoint>,
    what: Arc<str>,
    scope: Scope,
    home: Url,
    digest: Digest,
    size: u64,
    place: Mutex<Place>,
    resolving: tokio::sync::Mutex<()>,
}

/// Where the blob is.
#[derive(Clone)]
enum Place {
    /// Nobody asked yet.
    Unknown,
    /// The registry itself serves it.
    Home,
    /// It is served under a URL that may expire.
    Elsewhere(Arc<Url>),
}

/// The asked part of one answer.
struct Part {
    body: Body,
    /// Bytes before the asked ones that the host sends all the same.
    skip: u64,
    left: u64,
    /// Whether the host was to send the asked bytes and no others.
    exact: bool,
}

/// A range that is being read.
struct Reader {
    blob: RemoteBlob,
    rest: Range<u64>,
    part: Option<Part>,
    patience: Patience,
    /// Bytes since the last failure.
    progress: u64,
}

impl RemoteBlob {
    pub(super) fn new(
        endpoint: Arc<Endpoint>,
        repository: &str,
        digest: Digest,
        size: u64,
    ) -> Self {
        Self(Arc::new(Inner {
            what: format!("blob {digest} of {}/{repository}", endpoint.name()).into(),
            scope: Scope::pull(repository),
            home: endpoint.url(repository, &format!("blobs/{digest}")),
            endpoint,
            digest,
            size,
            place: Mutex::new(Place::Unknown),
            resolving: tokio::sync::Mutex::default(),
        }))
    }

    async fn read(&self, range: Range<u64>) -> Result<ByteStream, Error> {
        if range.is_empty() || range.end > self.0.size {
            let (start, end) = (range.start, range.end);
            let (what, size) = (&self.0.what, self.0.size);
            let why = format!("{what}: {start}..{end} is not a range of its {size} bytes");
            return Err(Error::Protocol(why));
        }
        let mut reader = Reader {
            blob: self.clone(),
            rest: range,
            part: None,
            patience: self.0.endpoint.patience(&self.0.what),
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
        self.0.digest
    }

    fn size(&self) -> u64 {
        self.0.size
    }

    fn range(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        Box::pin(self.read(range))
    }
}

impl Inner {
    /// One attempt to get `range` from where the blob is believed to be.
    async fn open(&self, range: &Range<u64>) -> Result<Part, Error> {
        let place = self.place.lock().clone();
        match place {
            Place::Unknown => self.resolve(range, None).await,
            Place::Home => self.ask_home(range).await,
            Place::Elsewhere(url) => match self.ask(&url, range).await {
                Err(error) if is_outdated(&error) => self.resolve(range, Some(&url)).await,
                Err(error) => {
                    if matches!(error, Error::Unreachable { .. } | Error::Stalled { .. }) {
                        self.forget(&url);
                    }
                    Err(error)
                }
                Ok(answer) => self.part(answer, range),
            },
        }
    }

    /// Finds out where the blob is, unless somebody else did meanwhile. `stale` is where it is no
    /// longer.
    async fn resolve(&self, range: &Range<u64>, stale: Option<&Arc<Url>>) -> Result<Part, Error> {
        let alone = self.resolving.lock().await;
        let place = self.place.lock().clone();
        match place {
            Place::Elsewhere(url) if stale.is_none_or(|stale| !Arc::ptr_eq(stale, &url)) => {
                drop(alone);
                let answer = self.ask(&url, range).await?;
                self.part(answer, range)
            }
            Place::Home => {
                drop(alone);
                self.ask_home(range).await
            }
            _ => self.ask_home(range).await,
        }
    }

    async fn ask_home(&self, range: &Range<u64>) -> Result<Part, Error> {
        let answer = self.ask(&self.home, range).await?;
        let part_url = answer.url.clone();
        let at_home = answer.at_home;
        let part = self.part(answer, range)?;
        *self.place.lock() = match at_home {
            true => Place::Home,
            false => Place::Elsewhere(Arc::new(part_url)),
        };
        Ok(part)
    }

    async fn ask(&self, url: &Url, range: &Range<u64>) -> Result<Answer, Error> {
        let (start, end) = (range.start, range.end);
        let value = HeaderValue::from_str(&format!("bytes={start}-{}", end.saturating_sub(1)));
        let value = value.map_err(|e| Error::Protocol(e.to_string()))?;
        let call = Call {
            method: Method::GET,
            url: url.clone(),
            what: Arc::clone(&self.what),
            scope: self.scope.clone(),
            headers: HeaderMap::from_iter([(RANGE, value)]),
            payload: None,
        };
        self.endpoint
            .attempt(&call)
            .await
            .map_err(|error| match error {
                Error::Status {
                    what,
                    host,
                    status: 416,
                    ..
                } => Error::Unsatisfiable {
                    what,
                    host,
                    start,
                    end,
                },
                other => other,
            })
    }

    fn forget(&self, url: &Arc<Url>) {
        let mut place = self.place.lock();
        if matches!(&*place, Place::Elsewhere(current) if Arc::ptr_eq(current, url)) {
            *place = Place::Unknown;
        }
    }

    /// Checks that `answer` holds `range`, and of which bytes.
    fn part(&self, answer: Answer, range: &Range<u64>) -> Result<Part, Error> {
        let want = range.end - range.start;
        let wrong = |answer: &Answer, why: String| {
            let host = answer.host();
            Error::Protocol(format!("{}: {host} answered {why}", self.what))
        };
        let (skip, length, exact) = match answer.status() {
            StatusCode::PARTIAL_CONTENT => {
                let text = answer.headers().get(CONTENT_RANGE);
                let text = text.and_then(|t| t.to_str().ok()).unwrap_or("(none)");
                if parse_content_range(text) != Some((range.clone(), self.size)) {
                    let asked = format!("{}-{}/{}", range.start, range.end - 1, self.size);
                    let why = format!("content-range {text:?} when asked for {asked}");
                    return Err(wrong(&answer, why));
                }
                (0, want, true)
            }
            StatusCode::OK => (range.start, self.size, want == self.size),
            other => return Err(wrong(&answer, format!("{other} when asked for a range"))),
        };
        if answer.content_length().is_some_and(|got| got != length) {
            let got = answer.content_length().unwrap_or_default();
            return Err(wrong(&answer, format!("with {got} bytes, not {length}")));
        }
        Ok(Part {
            body: answer.into_body(),
            skip,
            left: want,
            exact,
        })
    }
}

impl Part {
    /// The next asked bytes; `None` when there are no more.
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while self.left > 0 {
            let Some(mut piece) = self.body.next().await? else {
                return Ok(None);
            };
            let unasked = self.skip.min(piece.len() as u64);
            piece.advance(unasked as usize);
            self.skip -= unasked;
            if piece.len() as u64 > self.left {
                if self.exact {
                    return Err(self.too_long());
                }
                piece.truncate(self.left as usize);
            }
            if !piece.is_empty() {
                self.left -= piece.len() as u64;
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// All asked bytes came: nothing may follow. Reading the end also frees the connection.
    async fn finish(mut self) -> Result<(), Error> {
        match self.exact {
            true => match self.body.next().await {
                Ok(Some(piece)) if !piece.is_empty() => Err(self.too_long()),
                // A missing end changes nothing about bytes that are complete.
                _ => Ok(()),
            },
            false => Ok(()),
        }
    }

    fn too_long(&self) -> Error {
        Error::Protocol(format!(
            "{} sent more bytes than were asked for",
            self.body.host()
        ))
    }
}

impl Reader {
    /// Opens what is left, as often as patience allows.
    async fn open(&mut self) -> Result<(), Error> {
        while self.part.is_none() {
            let open = self.blob.0.open(&self.rest);
            match self.patience.within(open).await {
                Ok(part) => self.part = Some(part),
                Err(error) => {
                    self.blob
                        .0
                        .endpoint
                        .recover(error, &mut self.patience)
                        .await?
                }
            }
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            self.open().await?;
            let Some(part) = &mut self.part else {
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
                        Some(part) => part.finish().await.map(|()| None),
                        None => Ok(None),
                    };
                }
                Ok(None) => {
                    let error = self.truncated();
                    self.fail(error).await?;
                }
                Err(error) => self.fail(error).await?,
            }
        }
    }

    async fn fail(&mut self, error: Error) -> Result<(), Error> {
        self.part = None;
        if self.progress >= PROGRESS {
            self.patience.renew();
            self.progress = 0;
        }
        self.blob
            .0
            .endpoint
            .recover(error, &mut self.patience)
            .await
    }

    fn truncated(&self) -> Error {
        let host = self
            .part
            .as_ref()
            .map_or("", |part| part.body.host())
            .to_owned();
        let left = self.part.as_ref().map_or(0, |part| part.left);
        Error::Truncated {
            what: Arc::clone(&self.blob.0.what),
            host,
            left,
        }
    }
}

/// Whether an answer of a remembered place says that it is no longer the place.
fn is_outdated(error: &Error) -> bool {
    match error {
        Error::Unauthorized { .. } | Error::NotFound { .. } => true,
        Error::Status { status, .. } => (400..500).contains(status) && !error.is_transient(),
        _ => false,
    }
}

/// `bytes FIRST-LAST/SIZE` (RFC 9110, 14.4) as a half-open range and the size; `*` is not known
/// to be right and therefore wrong.
fn parse_content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let number = |digits: &str| {
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| digits.parse::<u64>().ok()).flatten()
    };
    let (unit, rest) = text.trim().split_once(' ')?;
    let (range, size) = rest.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let end = number(last)?.checked_add(1)?;
    let range = number(first)?..end;
    unit.eq_ignore_ascii_case("bytes")
        .then_some((range, number(size)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_strictly() {
        assert_eq!(parse_content_range("bytes 0-9/20"), Some((0..10, 20)));
        assert_eq!(parse_content_range(" Bytes 5-5/6 "), Some((5..6, 6)));
        for bad in [
            "",
            "bytes",
            "bytes */20",
            "bytes 0-9/*",
            "bytes 0-9",
            "bytes -1-9/20",
            "bytes +0-9/20",
            "bytes 0-18446744073709551615/20",
            "bytes 0-18446744073709551616/20",
            "items 0-9/20",
            "multipart/byteranges; boundary=x",
        ] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
