//! One registry host's HTTP connections: sends a request, follows its redirects, guards both.
//!
//! Promises: `Authorization`, configured headers and the client certificate are for the origin (scheme,
//! host, port) of the first URL only, and are never sent again once a redirect has left it; at most [`MAX_REDIRECTS`] hops; never from https to
//! http; nothing is asked that [`Guard`] refuses; content encodings are neither asked for nor
//! accepted; no wait for a head or for progress of a body is longer than configured.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Method, Response, StatusCode};
use tokio::time::timeout;
use url::Url;

use crate::registry::body::{Body, Limits};
use crate::registry::connect::{Pools, Recipe, proxies};
use crate::registry::egress::{Guard, Refused};
pub(super) use crate::registry::host::authority as host_of;
use crate::registry::hosts::Settings;
use crate::registry::payload::{Meter, Payload};
use crate::registry::{Config, Error, Traffic};

/// Redirects followed for one request.
const MAX_REDIRECTS: usize = 5;
/// The longest `Location` that is believed, in bytes (signed URLs have up to 4 KiB).
const MAX_LOCATION: usize = 16 << 10;
/// What an answer may say about its error, in bytes.
const MAX_DETAIL: usize = 4 << 10;
/// Connections younger than this are fresh.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// One request, before redirects.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    /// What it is about, for errors.
    pub(super) what: &'a Arc<str>,
    pub(super) headers: HeaderMap,
    /// Headers for this origin only: credentials, and what is configured for the host.
    pub(super) private: HeaderMap,
    pub(super) payload: Option<&'a Payload>,
    /// The payload is a secret, for this origin only.
    pub(super) confidential: bool,
}

/// The head of an answer; its body is still to be read.
pub(super) struct Answer {
    response: Response,
    /// The URL that answered, after redirects.
    pub(super) url: Url,
    /// Whether it has the origin of the URL that was asked first.
    pub(super) at_home: bool,
    what: Arc<str>,
    limits: Limits,
    traffic: Arc<Traffic>,
}

/// The connections to one registry host and to where it redirects.
pub(super) struct Transport {
    home: Url,
    /// Replaced to get fresh connections; see [`Transport::reconnect`].
    pools: RwLock<Pools>,
    reconnected: Mutex<Option<Instant>>,
    recipe: Recipe,
    guard: Guard,
    limits: Limits,
    /// How long a registry may digest an upload before it answers.
    commit: Duration,
    traffic: Arc<Traffic>,
}

impl Transport {
    pub(super) fn new(
        settings: &Settings,
        config: &Config,
        traffic: Arc<Traffic>,
    ) -> Result<Self, Error> {
        let home = &settings.base;
        let proxied = !super::host::is_loopback(home);
        let proxies = if proxied { proxies() } else { Vec::new() };
        let guard = Guard::new(home, config.allow_private.clone(), proxies);
        let recipe = Recipe {
            connect_timeout: settings.dial_timeout.unwrap_or(config.connect_timeout),
            proxied,
            tls: settings.tls.clone(),
        };
        Ok(Self {
            home: home.clone(),
            pools: RwLock::new(recipe.pools(&guard)?),
            reconnected: Mutex::default(),
            recipe,
            guard,
            limits: Limits {
                progress: config.progress_timeout,
            },
            commit: config.deadline.max(config.progress_timeout),
            traffic,
        })
    }

    /// Sends `request` and follows redirects; any status but a redirect is an answer.
    pub(super) async fn send(&self, mut request: Request<'_>) -> Result<Answer, Error> {
        let mut at_home = true;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.hop(&request).await?;
            if !is_redirect(response.status()) {
                return self.answer(&request, response, at_home);
            }
            let next = next_url(&request, &response)?;
            if !same_origin(&next, &request.url) {
                if request.confidential {
                    return Err(Error::Redirect {
                        what: Arc::clone(request.what),
                        host: host_of(&request.url),
                        why: "it would carry a secret to another host".to_owned(),
                    });
                }
                at_home = false;
                request.private.clear();
            }
            request.url = next;
        }
        Err(Error::Redirect {
            what: Arc::clone(request.what),
            host: host_of(&request.url),
            why: format!("more than {MAX_REDIRECTS} in a row"),
        })
    }

    /// Drops all pooled connections, so that the next request gets a fresh one. HTTP/2 needs
    /// this: giving up one of its streams keeps the connection. Those who stalled together
    /// reconnect once.
    pub(super) fn reconnect(&self) {
        let mut last = self.reconnected.lock();
        if last.is_some_and(|last| last.elapsed() < RECONNECT_PAUSE) {
            return;
        }
        *last = Some(Instant::now());
        match self.recipe.pools(&self.guard) {
            Ok(pools) => *self.pools.write() = pools,
            Err(error) => tracing::warn!(%error, "cannot renew connections"),
        }
    }

    fn answer(
        &self,
        request: &Request<'_>,
        response: Response,
        at_home: bool,
    ) -> Result<Answer, Error> {
        let encoding = response.headers().get(CONTENT_ENCODING);
        if let Some(encoding) = encoding.filter(|e| e.as_bytes() != b"identity") {
            return Err(Error::Protocol(format!(
                "{}: {} answered with content-encoding {encoding:?}, which was not asked for",
                request.what,
                host_of(&request.url)
            )));
        }
        Ok(Answer {
            response,
            url: request.url.clone(),
            at_home,
            what: Arc::clone(request.what),
            limits: self.limits,
            traffic: Arc::clone(&self.traffic),
        })
    }

    async fn hop(&self, request: &Request<'_>) -> Result<Response, Error> {
        let egress = |Refused(host)| Error::Egress {
            what: Arc::clone(request.what),
            host,
        };
        self.guard.check(&request.url).map_err(egress)?;
        let meter = Meter::new(Arc::clone(&self.traffic));
        let pools = self.pools.read().clone();
        let client = match same_origin(&request.url, &self.home) {
            true => pools.home,
            false => pools.away,
        };
        let mut headers = request.private.clone();
        // What the request is made of is not configurable.
        headers.extend(request.headers.clone());
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let mut builder = client
            .request(request.method.clone(), request.url.clone())
            .headers(headers);
        if let Some(payload) = request.payload {
            builder = payload.attach(builder, meter.clone()).await?;
        }
        self.traffic.count_request();
        let send = builder.send();
        tokio::pin!(send);
        let mut seen = 0;
        loop {
            let patience = match meter.is_complete(request.payload) {
                true if request.payload.is_some() => self.commit,
                _ => self.limits.progress,
            };
            match timeout(patience, &mut send).await {
                Ok(result) => {
                    told(request, &result);
                    return result.map_err(|e| explain(&e, request.what, &request.url));
                }
                Err(_) if meter.bytes() > seen => seen = meter.bytes(),
                Err(_) => {
                    return Err(Error::Stalled {
                        what: Arc::clone(request.what),
                        host: host_of(&request.url),
                        after: patience,
                    });
                }
            }
        }
    }
}

/// A line for each request, within the span of what it is for. Not the address: that of a redirect may
/// carry a signature.
fn told(request: &Request<'_>, result: &reqwest::Result<Response>) {
    let status = result.as_ref().map_or(0, |answer| answer.status().as_u16());
    let (host, what) = (host_of(&request.url), request.what);
    let range = request.headers.get(RANGE);
    tracing::debug!(host, %what, ?range, status, "http request");
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Who answered, with port.
    pub(super) fn host(&self) -> String {
        host_of(&self.url)
    }

    pub(super) fn content_length(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// The body, to be read piece by piece.
    pub(super) fn into_body(self) -> Body {
        let host = self.host();
        Body::new(self.response, self.what, host, self.limits, self.traffic)
    }

    /// The whole body, if it has at most `max` bytes.
    pub(super) async fn read(self, max: u64) -> Result<Vec<u8>, Error> {
        let too_large = Error::TooLarge {
            what: Arc::clone(&self.what),
            max,
        };
        if self.content_length().is_some_and(|length| length > max) {
            return Err(too_large);
        }
        let mut body = self.into_body();
        let mut bytes = Vec::new();
        while let Some(piece) = body.next().await? {
            if (bytes.len() + piece.len()) as u64 > max {
                return Err(too_large);
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// What the body says about an error, as `: text`, fit for one line of a log.
    pub(super) async fn detail(self) -> String {
        let mut body = self.into_body();
        let mut bytes = Vec::new();
        while let Ok(Some(piece)) = body.next().await {
            bytes.extend_from_slice(&piece);
            if bytes.len() >= MAX_DETAIL {
                bytes.truncate(MAX_DETAIL);
                break;
            }
        }
        describe(&bytes)
    }
}

/// The `errors` of the distribution spec ("Error Codes") as text; of other bodies the first words.
fn describe(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(serde::Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Errors>(body) {
        Ok(Errors { errors }) => {
            let lines = errors.iter().map(|e| format!("{} {}", e.code, e.message));
            lines.collect::<Vec<_>>().join("; ")
        }
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let text: String = text.chars().map(clean).take(200).collect();
    match text.trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn next_url(request: &Request<'_>, response: &Response) -> Result<Url, Error> {
    let refuse = |why: &str| Error::Redirect {
        what: Arc::clone(request.what),
        host: host_of(&request.url),
        why: why.to_owned(),
    };
    let reads = matches!(request.method, Method::GET | Method::HEAD);
    if !reads && !matches!(response.status().as_u16(), 307 | 308) {
        return Err(refuse("it would turn a write into a read"));
    }
    let location = response.headers().get(LOCATION);
    let location = location.ok_or_else(|| refuse("it has no location"))?;
    let location = location
        .to_str()
        .map_err(|_| refuse("its location is not ascii"))?;
    if location.is_empty() || location.len() > MAX_LOCATION {
        return Err(refuse("its location is empty or over-long"));
    }
    resolve(&request.url, location).map_err(refuse)
}

/// The URL that `location`, found in an answer of `base`, stands for, if it may be asked.
pub(super) fn resolve(base: &Url, location: &str) -> Result<Url, &'static str> {
    let mut url = base
        .join(location)
        .map_err(|_| "its location is not a url")?;
    match (base.scheme(), url.scheme()) {
        (_, "https") | ("http", "http") => {}
        ("https", "http") => return Err("it leads from https to plain http"),
        _ => return Err("its location is neither http nor https"),
    }
    // A user name in a URL would be sent as credentials nobody configured.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_fragment(None);
    Ok(url)
}

/// Whether two URLs have scheme, host and port in common.
pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme()
        && a.host_str() == b.host_str()
        && a.port_or_known_default() == b.port_or_known_default()
}

/// Turns what went wrong below HTTP into an error that says who and why.
pub(super) fn explain(error: &reqwest::Error, what: &Arc<str>, url: &Url) -> Error {
    let (what, host) = (Arc::clone(what), host_of(url));
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(cause) = next {
        if let Some(Refused(host)) = find::<Refused>(cause) {
            let host = host.clone();
            return Error::Egress { what, host };
        }
        if let Some(tls) = find::<rustls::Error>(cause).filter(|tls| is_lasting(tls)) {
            let why = tls.to_string();
            return Error::Tls { what, host, why };
        }
        next = cause.source();
    }
    let why = chain(error);
    Error::Unreachable { what, host, why }
}

/// Whether a handshake would fail the same way again: wrong certificate, or no TLS at all.
const fn is_lasting(error: &rustls::Error) -> bool {
    use rustls::Error::{InvalidCertificate, InvalidMessage, PeerIncompatible};
    matches!(
        error,
        InvalidCertificate(_) | InvalidMessage(_) | PeerIncompatible(_)
    )
}

/// `error` itself as a `T`, or the `T` inside an `io::Error` (whose `source` skips what it wraps;
/// connectors wrap twice).
fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let inner = || find(error.downcast_ref::<io::Error>()?.get_ref()?);
    error.downcast_ref::<T>().or_else(inner)
}

/// The causes of an error without the URL (its query may be a signature), innermost last.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if parts.last() != Some(&text) {
            parts.push(text);
        }
        next = cause.source();
    }
    match parts.is_empty() {
        true => "no further reason".to_owned(),
        false => parts.join(": "),
    }
}
