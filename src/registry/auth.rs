//! Access to one registry host: which `Authorization` a request carries, and how it is renewed.
//!
//! Policy: the registry's own origin gets what the challenge asks for. A token service (realm) is
//! given credentials only over https, or over plain HTTP if the registry itself is spoken to over
//! plain HTTP and the realm is the same host or a loopback one. What the operator's credentials
//! are for is decided by the host in the reference, never by who asks for them.
//!
//! Locking: one async lock per scope is held while a token is fetched (single-flight). Whoever
//! waited for it shares the outcome, failures too; if the one who fetches is dropped, the next
//! waiter takes over. Expiry is measured on the monotonic clock from before the request.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::header::HeaderValue;
use tokio::time::Instant;
use url::Url;

use crate::registry::Error;
use crate::registry::challenge::Challenge;
use crate::registry::credentials::{Credential, Credentials, Found};
use crate::registry::host::is_loopback;
use crate::registry::token::{basic, fetch, secret_header, token_request};
use crate::registry::transport::Transport;

/// A token is renewed this long before it ends, or after nine tenths of a short life.
const MARGIN: Duration = Duration::from_secs(10);
/// Credentials that are tried for one grant.
const MAX_CANDIDATES: usize = 10;
/// Scopes remembered per host before unused ones are forgotten.
const MAX_SLOTS: usize = 1024;

/// What a request is allowed to do, as token services call it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Scope {
    /// The repository that credentials are looked up for.
    pub(super) repository: String,
    /// Space-separated, as in a challenge.
    pub(super) text: String,
}

/// An `Authorization` that was granted.
pub(super) struct Grant {
    header: HeaderValue,
    /// When it is to be renewed.
    stale: Option<Instant>,
    /// What it was granted for; `None` is nobody in particular.
    credential: Option<Credential>,
    challenge: Challenge,
    /// Whether the registry ever accepted it.
    proven: AtomicBool,
}

/// Grants of one registry host.
pub(super) struct Authorizer {
    home: Url,
    /// The host as references name it.
    name: String,
    credentials: Arc<dyn Credentials>,
    slots: Mutex<HashMap<Scope, Arc<Slot>>>,
}

#[derive(Default)]
struct Slot {
    /// Counts attempts to get a grant, so that who waited knows that one was made.
    attempts: AtomicU64,
    state: tokio::sync::Mutex<State>,
}

#[derive(Default)]
struct State {
    grant: Option<Arc<Grant>>,
    failure: Option<Error>,
    /// What was refused since a grant was last accepted; `None` is nobody in particular.
    refused: Vec<Option<Credential>>,
}

impl Scope {
    pub(super) fn pull(repository: &str) -> Self {
        Self::new(repository, format!("repository:{repository}:pull"))
    }

    pub(super) fn push(repository: &str) -> Self {
        Self::new(repository, format!("repository:{repository}:pull,push"))
    }

    /// Push to `repository` and pull from another one of the same host.
    pub(super) fn mount(repository: &str, from: &str) -> Self {
        let text = format!("repository:{repository}:pull,push repository:{from}:pull");
        Self::new(repository, text)
    }

    fn new(repository: &str, text: String) -> Self {
        let repository = repository.to_owned();
        Self { repository, text }
    }
}

impl Grant {
    pub(super) fn header(&self) -> HeaderValue {
        self.header.clone()
    }

    /// The registry accepted it.
    pub(super) fn prove(&self) {
        self.proven.store(true, Ordering::Relaxed);
    }

    /// What it answers.
    pub(super) fn challenge(&self) -> Challenge {
        self.challenge.clone()
    }

    fn is_stale(&self) -> bool {
        self.stale.is_some_and(|stale| Instant::now() >= stale)
    }
}

impl Authorizer {
    pub(super) fn new(name: &str, home: &Url, credentials: Arc<dyn Credentials>) -> Self {
        Self {
            home: home.clone(),
            name: name.to_owned(),
            credentials,
            slots: Mutex::default(),
        }
    }

    /// What is known to be asked for in `scope`, renewed if it is about to end.
    pub(super) async fn current(
        &self,
        transport: &Transport,
        scope: &Scope,
    ) -> Result<Option<Arc<Grant>>, Error> {
        let slot = self.slot(scope);
        let grant = slot.state.lock().await.grant.clone();
        match grant {
            Some(grant) if grant.is_stale() => {
                let challenge = grant.challenge.clone();
                let renewed = self.renew(transport, scope, challenge, Some(grant)).await?;
                Ok(Some(renewed))
            }
            other => Ok(other),
        }
    }

    /// Another grant than `rejected`: the one somebody else got meanwhile, or a new one.
    pub(super) async fn renew(
        &self,
        transport: &Transport,
        scope: &Scope,
        challenge: Challenge,
        rejected: Option<Arc<Grant>>,
    ) -> Result<Arc<Grant>, Error> {
        let slot = self.slot(scope);
        let seen = slot.attempts.load(Ordering::SeqCst);
        let mut state = slot.state.lock().await;
        if let Some(grant) = &state.grant
            && rejected.as_ref().is_none_or(|old| !Arc::ptr_eq(old, grant))
        {
            return Ok(Arc::clone(grant));
        }
        if slot.attempts.load(Ordering::SeqCst) != seen
            && let Some(failure) = &state.failure
        {
            return Err(failure.clone());
        }
        if let Some(old) = &rejected {
            self.reject(scope, old, &mut state.refused);
        }
        let outcome = self
            .obtain(transport, scope, challenge, &mut state.refused)
            .await;
        slot.attempts.fetch_add(1, Ordering::SeqCst);
        match outcome {
            Ok(grant) => {
                state.grant = Some(Arc::clone(&grant));
                state.failure = None;
                Ok(grant)
            }
            Err(error) => {
                // A token service that is down does not make what was granted before wrong.
                state.grant = state.grant.take().filter(|_| error.is_transient());
                state.failure = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Where credentials for this host are looked for.
    pub(super) fn place(&self) -> String {
        self.credentials.place()
    }

    /// Takes in that the registry does not accept `old` any more, or never did.
    fn reject(&self, scope: &Scope, old: &Grant, refused: &mut Vec<Option<Credential>>) {
        let is_proven = old.proven.load(Ordering::Relaxed);
        if is_proven {
            refused.clear();
        }
        if old.is_stale() {
            return;
        }
        // A token that was good ends; what it was granted for may be good still. A password that
        // was good and is refused has been changed, and its source may know the new one.
        let shown = matches!(old.challenge, Challenge::Basic)
            || matches!(old.credential, Some(Credential::AccessToken(_)));
        if !is_proven || shown {
            self.tell_refused(scope, old.credential.as_ref());
        }
        if !is_proven {
            refused.push(old.credential.clone());
        }
    }

    fn tell_refused(&self, scope: &Scope, credential: Option<&Credential>) {
        if let Some(credential) = credential {
            self.credentials
                .refused(&self.name, &scope.repository, credential);
        }
    }

    /// A grant for the first of the credentials found that is not `refused`. Sources that are told
    /// of a refusal may know better, so they are asked twice. Last of all nobody: neither an
    /// out-dated login nor a source that fails hides a public image.
    async fn obtain(
        &self,
        transport: &Transport,
        scope: &Scope,
        challenge: Challenge,
        refused: &mut Vec<Option<Credential>>,
    ) -> Result<Arc<Grant>, Error> {
        let what: Arc<str> = format!("access to {}/{}", self.name, scope.repository).into();
        let (mut tried, mut failed) = (Vec::new(), None);
        for _ in 0..2 {
            let (host, repository) = (&self.name, &scope.repository);
            let mut source = 0;
            while let Some(found) = self.credentials.nth(source, host, repository) {
                source += 1;
                let found = found.await.unwrap_or_else(|error| {
                    tracing::warn!(host, %error, "a source of credentials failed");
                    failed = Some(error);
                    Vec::new()
                });
                let granted = self
                    .try_found(transport, scope, &challenge, found, refused, &mut tried)
                    .await?;
                if let Some(grant) = granted {
                    return Ok(grant);
                }
            }
            if tried.is_empty() {
                break;
            }
        }
        if !refused.contains(&None) {
            match self.try_grant(transport, scope, &challenge, None).await {
                Err(error) if error.is_unauthorized() => {}
                other => return other,
            }
        }
        // Who reads next starts anew: what was wrong may have been put right.
        refused.clear();
        tried.sort();
        tried.dedup();
        Err(failed.unwrap_or_else(|| Error::Unauthorized {
            what: Arc::clone(&what),
            host: self.name.clone(),
            status: 401,
            hint: match tried.is_empty() {
                true => format!("no credentials for it in {}", self.place()),
                false => format!("the credentials from {} were refused", tried.join(", ")),
            },
        }))
    }

    /// A grant for the first of these that is not refused; `None` if all are.
    async fn try_found(
        &self,
        transport: &Transport,
        scope: &Scope,
        challenge: &Challenge,
        found: Vec<Found>,
        refused: &mut Vec<Option<Credential>>,
        tried: &mut Vec<String>,
    ) -> Result<Option<Arc<Grant>>, Error> {
        for found in found.into_iter().take(MAX_CANDIDATES) {
            if refused.contains(&Some(found.credential.clone())) {
                tried.push(found.place);
                continue;
            }
            match self
                .try_grant(transport, scope, challenge, Some(&found))
                .await
            {
                Err(error) if error.is_unauthorized() => {
                    tracing::debug!(%error, place = found.place, "credential refused");
                    self.tell_refused(scope, Some(&found.credential));
                    refused.push(Some(found.credential));
                    tried.push(found.place);
                }
                granted => return granted.map(Some),
            }
        }
        Ok(None)
    }

    async fn try_grant(
        &self,
        transport: &Transport,
        scope: &Scope,
        challenge: &Challenge,
        found: Option<&Found>,
    ) -> Result<Arc<Grant>, Error> {
        let what: Arc<str> = format!("access to {}/{}", self.name, scope.repository).into();
        let credential = found.map(|found| &found.credential);
        let (header, life) = self
            .grant(transport, scope, challenge, credential, &what)
            .await?;
        let stale = life.map(|(start, life)| start + life - (life / 10).min(MARGIN));
        Ok(Arc::new(Grant {
            header,
            // A token has a life of its own, whatever becomes of what it was granted for.
            stale: stale.or_else(|| found.and_then(|found| found.until)),
            credential: credential.cloned(),
            challenge: challenge.clone(),
            proven: AtomicBool::new(false),
        }))
    }

    /// The header by which `credential` answers `challenge`, and its life.
    async fn grant(
        &self,
        transport: &Transport,
        scope: &Scope,
        challenge: &Challenge,
        credential: Option<&Credential>,
        what: &Arc<str>,
    ) -> Result<(HeaderValue, Option<(Instant, Duration)>), Error> {
        match (challenge, credential) {
            (_, Some(Credential::AccessToken(token))) => {
                Ok((secret_header(&format!("Bearer {}", token.expose()))?, None))
            }
            (Challenge::Basic, Some(Credential::Password { username, password })) => {
                Ok((basic(username, password.expose())?, None))
            }
            (Challenge::Basic, _) => Err(self.unusable(what, "it asks for a password")),
            (Challenge::Bearer { realm, .. }, Some(_)) if !self.may_learn(realm) => {
                let why = "its token service must not see credentials over plain http";
                Err(self.unusable(what, why))
            }
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope: asked,
                },
                credential,
            ) => {
                let mut scopes = vec![scope.text.as_str()];
                // What the registry adds to what crfs asks for, if anything.
                scopes.extend(asked.as_deref().filter(|asked| !scope.text.contains(asked)));
                let start = Instant::now();
                let request = token_request(realm, service.as_deref(), &scopes, credential, what)?;
                let token = fetch(transport, request).await?;
                Ok((
                    secret_header(&format!("Bearer {}", token.text()))?,
                    Some((start, token.life())),
                ))
            }
        }
    }

    fn may_learn(&self, realm: &Url) -> bool {
        let plain_home = self.home.scheme() == "http";
        let same_host = realm.host_str() == self.home.host_str();
        realm.scheme() == "https" || (plain_home && (same_host || is_loopback(realm)))
    }

    fn unusable(&self, what: &Arc<str>, why: &str) -> Error {
        Error::Unauthorized {
            what: Arc::clone(what),
            host: self.name.clone(),
            status: 401,
            hint: why.to_owned(),
        }
    }

    fn slot(&self, scope: &Scope) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        if slots.len() >= MAX_SLOTS && !slots.contains_key(scope) {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        Arc::clone(slots.entry(scope.clone()).or_default())
    }
}
