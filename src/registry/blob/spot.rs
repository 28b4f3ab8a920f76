//! One blob at one host: where exactly it is, and whether it is there at all.
//!
//! Registries mostly answer a blob request with a redirect to a signed URL elsewhere. Where the
//! blob was found is remembered and asked directly until it refuses; then the registry is asked
//! once more, by one reader while the others wait (single-flight), and they all go on with what
//! it said. A registry of which it is not known yet that it redirects is asked by a few at once: it may
//! serve the blob itself, and then nobody has waited a round trip for nothing.
//!
//! Locking: `place` and `aside` are held for a copy only; turns of `resolving` for one request's head, never
//! both.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderValue, RANGE};
use tokio::sync::Semaphore;
use url::Url;

use crate::oci::Digest;
use crate::registry::Error;
use crate::registry::auth::Scope;
use crate::registry::blob::part::Part;
use crate::registry::endpoint::{Call, Endpoint};
use crate::registry::transport::Answer;

/// How long a host is not asked for a blob that it does not have or does not give, while others
/// can be.
const REFUSED: Duration = Duration::from_secs(60);
/// How long it is not asked for a blob of which it gave other bytes.
const WRONG: Duration = Duration::from_secs(600);

/// How many ask at once where a blob is, of a registry whose last blob was not elsewhere.
const SCOUTS: u32 = 6;

/// What is asked for.
pub(super) struct Target {
    pub(super) what: Arc<str>,
    pub(super) repository: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// A blob at a host.
pub(super) struct Spot {
    pub(super) endpoint: Arc<Endpoint>,
    target: Arc<Target>,
    scope: Scope,
    home: Url,
    place: Mutex<Place>,
    /// Who asks where the blob is takes one turn, or all to be alone.
    resolving: Semaphore,
    /// The host is not asked before.
    aside: Mutex<Option<Instant>>,
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

impl Spot {
    pub(super) fn new(endpoint: Arc<Endpoint>, target: &Arc<Target>) -> Self {
        let (repository, digest) = (&target.repository, target.digest);
        Self {
            scope: Scope::pull(repository),
            home: endpoint.url(repository, &format!("blobs/{digest}")),
            endpoint,
            target: Arc::clone(target),
            place: Mutex::new(Place::Unknown),
            resolving: Semaphore::new(SCOUTS as usize),
            aside: Mutex::default(),
        }
    }

    /// Whether the host has let this blob down lately.
    pub(super) fn is_aside(&self) -> bool {
        self.aside
            .lock()
            .is_some_and(|until| Instant::now() < until)
    }

    /// An error of this host about this blob.
    pub(super) fn note(&self, error: &Error) {
        if !error.is_transient() {
            *self.aside.lock() = Some(Instant::now() + REFUSED);
        }
    }

    /// The host gave other bytes than it should have.
    pub(super) fn was_wrong(&self) {
        *self.aside.lock() = Some(Instant::now() + WRONG);
    }

    /// One attempt to get `range` from where the blob is believed to be.
    pub(super) async fn open(&self, range: &Range<u64>) -> Result<Part, Error> {
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
                Ok(answer) => Part::of(&self.target.what, self.target.size, answer, range),
            },
        }
    }

    /// Finds out where the blob is, unless somebody else did meanwhile. `stale` is where it is no
    /// longer.
    async fn resolve(&self, range: &Range<u64>, stale: Option<&Arc<Url>>) -> Result<Part, Error> {
        let is_alone = stale.is_some() || self.endpoint.redirects();
        let turns = if is_alone { SCOUTS } else { 1 };
        let turn = self.resolving.acquire_many(turns).await;
        let place = self.place.lock().clone();
        match place {
            Place::Elsewhere(url) if stale.is_none_or(|stale| !Arc::ptr_eq(stale, &url)) => {
                drop(turn);
                let answer = self.ask(&url, range).await?;
                Part::of(&self.target.what, self.target.size, answer, range)
            }
            Place::Home => {
                drop(turn);
                self.ask_home(range).await
            }
            _ => self.ask_home(range).await,
        }
    }

    async fn ask_home(&self, range: &Range<u64>) -> Result<Part, Error> {
        let answer = self.ask(&self.home, range).await?;
        let part_url = answer.url.clone();
        let at_home = answer.at_home;
        self.endpoint.note_place(at_home);
        let part = Part::of(&self.target.what, self.target.size, answer, range)?;
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
            what: Arc::clone(&self.target.what),
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
}

/// Whether an answer of a remembered place says that it is no longer the place.
fn is_outdated(error: &Error) -> bool {
    match error {
        // A name that leads inside now is not the place that it was.
        Error::Unauthorized { .. } | Error::NotFound { .. } | Error::Egress { .. } => true,
        Error::Status { status, .. } => (400..500).contains(status) && !error.is_transient(),
        _ => false,
    }
}
