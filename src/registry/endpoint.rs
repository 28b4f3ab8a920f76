//! One registry host as it is asked: authorization, retries, and errors that say what happened.
//!
//! An endpoint is made from its settings and knows nothing of other hosts: a list of mirrors is a list
//! of endpoints. One that fails rests: while there are others it is asked last.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use reqwest::{Method, StatusCode};
use url::Url;

use crate::registry::auth::{Authorizer, Grant, Scope};
use crate::registry::challenge::Challenge;
use crate::registry::credentials::Credentials;
use crate::registry::hosts::{Capability, Settings};
use crate::registry::payload::Payload;
use crate::registry::retry::{Gate, Patience, retry_after};
use crate::registry::transport::{Answer, Request, Transport, host_of, same_origin};
use crate::registry::{Config, Error, Traffic};

/// How many grants one request may go through: an expired one, then each credential in turn.
const MAX_GRANTS: usize = 13;
/// How long a host rests after a failure, doubling with each further one.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(60);

/// One request to a registry, before authorization.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) url: Url,
    /// What it is about, for errors.
    pub(super) what: Arc<str>,
    pub(super) scope: Scope,
    pub(super) headers: HeaderMap,
    pub(super) payload: Option<Payload>,
}

/// A small answer, read whole.
pub(super) struct Document {
    /// Who sent it.
    pub(super) host: String,
    pub(super) headers: HeaderMap,
    pub(super) bytes: Vec<u8>,
}

/// One registry host.
pub(super) struct Endpoint {
    settings: Settings,
    config: Arc<Config>,
    traffic: Arc<Traffic>,
    transport: Transport,
    authorizer: Authorizer,
    gate: Gate,
    health: Mutex<Health>,
    /// Whether the last blob that it was asked for lies elsewhere.
    redirects: AtomicBool,
}

#[derive(Default)]
struct Health {
    /// Failures in a row.
    failures: u32,
    rests_until: Option<Instant>,
}

impl Health {
    fn is_resting(&self) -> bool {
        self.rests_until.is_some_and(|until| Instant::now() < until)
    }
}

impl Endpoint {
    pub(super) fn new(
        settings: Settings,
        config: &Arc<Config>,
        credentials: Arc<dyn Credentials>,
        traffic: Arc<Traffic>,
    ) -> Result<Self, Error> {
        Ok(Self {
            transport: Transport::new(&settings, config, Arc::clone(&traffic))?,
            traffic,
            authorizer: Authorizer::new(&settings.name, &settings.base, credentials),
            settings,
            config: Arc::clone(config),
            gate: Gate::default(),
            health: Mutex::default(),
            redirects: AtomicBool::new(false),
        })
    }

    /// As credentials are looked up by.
    pub(super) fn name(&self) -> &str {
        &self.settings.name
    }

    pub(super) const fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn can(&self, capability: Capability) -> bool {
        self.settings.capabilities.contains(&capability)
    }

    /// The URL of `REPOSITORY/TAIL` at this host; both are parsed values without special characters.
    pub(super) fn url(&self, repository: &str, tail: &str) -> Url {
        let mut url = self.settings.base.clone();
        let before = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{before}/{repository}/{tail}"));
        if let Some(namespace) = &self.settings.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }

    /// Whether others are to be asked first.
    pub(super) fn is_resting(&self) -> bool {
        self.health.lock().is_resting() || self.gate.is_closed()
    }

    /// Whether it is known to keep blobs elsewhere.
    pub(super) fn redirects(&self) -> bool {
        self.redirects.load(Ordering::Relaxed)
    }

    /// It served a blob itself, or not.
    pub(super) fn note_place(&self, at_home: bool) {
        self.redirects.store(!at_home, Ordering::Relaxed);
    }

    /// It gave an answer that could be used.
    pub(super) fn worked(&self) {
        *self.health.lock() = Health::default();
    }

    /// It did not: what is to happen before it is asked again.
    pub(super) fn failed(&self, error: &Error) {
        if let Some(pause) = error.retry_after() {
            self.gate.close(pause.min(self.config.max_pause));
        }
        if matches!(error, Error::Stalled { .. }) {
            self.transport.reconnect();
        }
        if error.is_transient() || matches!(error, Error::Tls { .. }) {
            let mut health = self.health.lock();
            // Those who asked at the same moment failed once, not in a row.
            if health.is_resting() {
                return;
            }
            let rest = FIRST_REST.saturating_mul(1 << health.failures.min(16));
            health.rests_until = Some(Instant::now() + rest.min(LONGEST_REST));
            health.failures += 1;
        }
    }

    pub(super) fn patience(&self, what: &Arc<str>) -> Patience {
        Patience::new(&self.config, &self.traffic, what, self.name())
    }

    /// Calls until the answer is a success, an error that will not change, or patience ends.
    pub(super) async fn call(&self, call: &Call) -> Result<Answer, Error> {
        let mut patience = self.patience(&call.what);
        loop {
            match patience.within(self.attempt(call)).await {
                Ok(answer) => return Ok(answer),
                Err(error) => self.recover(error, &mut patience).await?,
            }
        }
    }

    /// Calls once, and reads the whole body, of at most `max` bytes.
    pub(super) async fn read(&self, call: &Call, max: u64) -> Result<Document, Error> {
        let answer = self.attempt(call).await?;
        let (host, headers) = (answer.host(), answer.headers().clone());
        let bytes = answer.read(max).await?;
        Ok(Document {
            host,
            headers,
            bytes,
        })
    }

    /// What has to happen after a failed attempt before the next one; `Err` if there is none.
    pub(super) async fn recover(&self, error: Error, patience: &mut Patience) -> Result<(), Error> {
        self.failed(&error);
        patience.after(error).await
    }

    /// One attempt, with as many rounds as its authorization takes. Successful if the status is.
    pub(super) async fn attempt(&self, call: &Call) -> Result<Answer, Error> {
        self.gate.pass().await;
        let home = same_origin(&call.url, &self.settings.base);
        let mut grant = match home {
            true => {
                self.authorizer
                    .current(&self.transport, &call.scope)
                    .await?
            }
            false => None,
        };
        for _ in 0..MAX_GRANTS {
            let answer = self.transport.send(Request {
                method: call.method.clone(),
                url: call.url.clone(),
                what: &call.what,
                headers: call.headers.clone(),
                private: match home {
                    true => self.private(grant.as_deref()),
                    false => HeaderMap::new(),
                },
                payload: call.payload.as_ref(),
                confidential: false,
            });
            let answer = answer.await?;
            let Some(challenge) = challenge(&answer, grant.as_deref(), home) else {
                if let Some(grant) = grant.filter(|_| proves(answer.status())) {
                    grant.prove();
                }
                return self.judge(answer, call).await;
            };
            let renewed = self
                .authorizer
                .renew(&self.transport, &call.scope, challenge, grant);
            grant = match renewed.await {
                Ok(renewed) => Some(renewed),
                // What the registry says itself tells more than that nothing is left to try.
                Err(error)
                    if error.is_unauthorized() && answer.status() == StatusCode::FORBIDDEN =>
                {
                    return self.judge(answer, call).await;
                }
                Err(error) => return Err(error),
            };
        }
        Err(Error::Unauthorized {
            what: Arc::clone(&call.what),
            host: self.name().to_owned(),
            status: 401,
            hint: format!("it refused {MAX_GRANTS} tokens in a row"),
        })
    }

    /// What this host and no other gets to see. A grant goes before a configured header.
    fn private(&self, grant: Option<&Grant>) -> HeaderMap {
        let mut headers = self.settings.headers.clone();
        if let Some(grant) = grant {
            headers.insert(AUTHORIZATION, grant.header());
        }
        headers
    }

    async fn judge(&self, answer: Answer, call: &Call) -> Result<Answer, Error> {
        match answer.status().is_success() {
            true => Ok(answer),
            false => {
                let place = format!("credentials from {}", self.authorizer.place());
                Err(refusal(answer, &call.what, &place).await)
            }
        }
    }
}

/// What has to be shown instead of `grant`, if `answer` says that it is not enough. Some registries
/// say 403 of a token or password that has ended (Amazon's do), so that is taken for a refusal too.
fn challenge(answer: &Answer, grant: Option<&Grant>, home: bool) -> Option<Challenge> {
    let is_refusal = match answer.status() {
        StatusCode::UNAUTHORIZED => true,
        StatusCode::FORBIDDEN => grant.is_some(),
        _ => false,
    };
    let asked = Challenge::of(answer.headers());
    asked
        .or_else(|| grant.map(Grant::challenge))
        .filter(|_| is_refusal && home && answer.at_home)
}

/// Whether a registry that answers so has looked at the grant and accepted it.
fn proves(status: StatusCode) -> bool {
    !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS
}

/// The error an unsuccessful answer stands for; `by` says what may be at fault in a 401 or 403.
pub(super) async fn refusal(answer: Answer, what: &Arc<str>, by: &str) -> Error {
    let status = answer.status().as_u16();
    let (what, host) = (Arc::clone(what), host_of(&answer.url));
    let retry_after = retry_after(answer.headers());
    let detail = answer.detail().await;
    match status {
        401 | 403 => Error::Unauthorized {
            what,
            host,
            status,
            hint: format!("{by} not accepted{detail}"),
        },
        404 | 410 => Error::NotFound { what, host, detail },
        _ => Error::Status {
            what,
            host,
            status,
            detail,
            retry_after,
        },
    }
}
