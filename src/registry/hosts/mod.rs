//! The hosts that are asked for what references call by one registry's name: the mirrors of its
//! `hosts.toml` in their order, then the registry itself.
//!
//! The files are looked at again at most once a second, while requests are made; what changed holds
//! for layers that are mounted already. Hosts whose settings stayed the same keep their connections
//! and tokens. A file that cannot be used is an error as long as none could be; after that the last
//! good one stays, and the log says so.
//!
//! Locking: `state` is held while files are read, never across an await.

mod file;
mod folder;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use reqwest::Certificate;
use reqwest::header::HeaderMap;
use url::Url;

pub(super) use file::Capability;

use crate::registry::endpoint::Endpoint;
use crate::registry::host::{authority, base_url};
use crate::registry::retry::Patience;
use crate::registry::{Config, Credentials, Error, Traffic, tls};
use file::Entry;
use folder::Seen;

/// How long the files are believed not to have changed.
const FRESH: Duration = Duration::from_secs(1);

/// How one host is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    /// The host as credentials are looked up by.
    pub(super) name: String,
    /// Scheme, host, port, and the path before the repository.
    pub(super) base: Url,
    /// The registry it stands in for, to be told in each request (`ns=`).
    pub(super) namespace: Option<String>,
    pub(super) capabilities: Vec<Capability>,
    /// Headers of each request to this host, and to no other.
    pub(super) headers: HeaderMap,
    /// Longest wait for a connection, if not the usual one.
    pub(super) dial_timeout: Option<Duration>,
    pub(super) tls: Tls,
}

/// What a host's certificate is checked against, and what is shown to it. All PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tls {
    /// CAs besides those of the system.
    pub(super) ca: Vec<Vec<u8>>,
    /// Client certificates, each with its key: what the host is shown is the first that it takes.
    pub(super) identities: Vec<Vec<u8>>,
    /// Nothing is checked.
    pub(super) skip_verify: bool,
}

/// All hosts of one registry.
pub(super) struct Hosts {
    /// As references name it.
    name: String,
    config: Arc<Config>,
    credentials: Arc<dyn Credentials>,
    traffic: Arc<Traffic>,
    state: Mutex<State>,
}

/// Hosts in the order they are asked in.
pub(super) type List = Arc<[Arc<Endpoint>]>;

#[derive(Default)]
struct State {
    seen: Seen,
    looked: Option<Instant>,
    hosts: Option<List>,
}

impl Hosts {
    /// The hosts of the registry that references call `name`; reads what is configured.
    pub(super) fn new(
        name: &str,
        config: &Arc<Config>,
        credentials: Arc<dyn Credentials>,
        traffic: Arc<Traffic>,
    ) -> Result<Self, Error> {
        let hosts = Self {
            name: name.to_owned(),
            config: Arc::clone(config),
            credentials,
            traffic,
            state: Mutex::default(),
        };
        hosts.all()?;
        Ok(hosts)
    }

    /// As references name it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn patience(&self, what: &Arc<str>) -> Patience {
        Patience::new(&self.config, &self.traffic, what, &self.name)
    }

    /// All hosts, as configured now.
    pub(super) fn all(&self) -> Result<List, Error> {
        let mut state = self.state.lock();
        let fresh = state.looked.is_some_and(|looked| looked.elapsed() < FRESH);
        if let Some(hosts) = &state.hosts
            && (fresh || state.seen.is_current())
        {
            let hosts = Arc::clone(hosts);
            if !fresh {
                state.looked = Some(Instant::now());
            }
            return Ok(hosts);
        }
        let mut seen = Seen::default();
        let read = self.read(&mut seen, state.hosts.as_deref().unwrap_or_default());
        (state.seen, state.looked) = (seen, Some(Instant::now()));
        match (read, &state.hosts) {
            (Ok(hosts), _) => {
                state.hosts = Some(Arc::clone(&hosts));
                Ok(hosts)
            }
            (Err(error), Some(hosts)) => {
                tracing::warn!(registry = self.name, %error, "its hosts stay as they were");
                Ok(Arc::clone(hosts))
            }
            (Err(error), None) => Err(error),
        }
    }

    /// The hosts that may be asked for `capability`: those that rest come last.
    pub(super) fn able(&self, capability: Capability) -> Result<Vec<Arc<Endpoint>>, Error> {
        let all = self.all()?;
        let able = all.iter().filter(|host| host.can(capability));
        let (resting, ready): (Vec<_>, Vec<_>) = able.cloned().partition(|host| host.is_resting());
        match ready.len() + resting.len() {
            0 => Err(self.none_able(capability)),
            _ => Ok([ready, resting].concat()),
        }
    }

    /// The first host that may be written to.
    pub(super) fn writable(&self) -> Result<Arc<Endpoint>, Error> {
        let all = self.all()?;
        let found = all.iter().find(|host| host.can(Capability::Push)).cloned();
        found.ok_or_else(|| self.none_able(Capability::Push))
    }

    /// Asks each host in turn until one gives an answer, and again as long as patience lasts.
    pub(super) async fn ask<'a, T>(
        &self,
        capability: Capability,
        what: &Arc<str>,
        attempt: impl Fn(Arc<Endpoint>) -> BoxFuture<'a, Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut patience = self.patience(what);
        loop {
            match patience.within(self.round(capability, &attempt)).await {
                Ok(answer) => return Ok(answer),
                Err(error) => patience.after(error).await?,
            }
        }
    }

    async fn round<'a, T>(
        &self,
        capability: Capability,
        attempt: &impl Fn(Arc<Endpoint>) -> BoxFuture<'a, Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut failures = Failures::default();
        for host in self.able(capability)? {
            match attempt(Arc::clone(&host)).await {
                Ok(answer) => {
                    host.worked();
                    return Ok(answer);
                }
                Err(error) => failures.add(&host, error),
            }
        }
        let verdict = failures.verdict();
        Err(verdict.unwrap_or_else(|| self.none_able(capability)))
    }

    pub(super) fn none_able(&self, capability: Capability) -> Error {
        let (name, what) = (&self.name, format!("{capability:?}").to_lowercase());
        Error::Setup(format!(
            "no host of {name} has the capability {what:?} in its hosts.toml"
        ))
    }

    fn read(&self, seen: &mut Seen, known: &[Arc<Endpoint>]) -> Result<List, Error> {
        let entries = folder::read(&self.config.config_path, &self.name, seen)?;
        let entries = entries.unwrap_or_else(|| vec![Entry::default()]);
        let mut hosts = Vec::new();
        for entry in entries {
            let settings = self.settings(entry, seen)?;
            let known = known.iter().find(|host| *host.settings() == settings);
            hosts.push(match known {
                Some(host) => Arc::clone(host),
                None => Arc::new(Endpoint::new(
                    settings,
                    &self.config,
                    Arc::clone(&self.credentials),
                    Arc::clone(&self.traffic),
                )?),
            });
        }
        Ok(hosts.into())
    }

    fn settings(&self, entry: Entry, seen: &mut Seen) -> Result<Settings, Error> {
        let own = base_url(&self.name, &self.config)?;
        let base = entry.url.clone().unwrap_or_else(|| own.clone());
        let is_own = authority(&base) == authority(&own);
        Ok(Settings {
            name: match is_own {
                true => self.name.clone(),
                false => credentials_name(&base),
            },
            namespace: (!is_own).then(|| self.name.clone()),
            capabilities: entry.capabilities.clone(),
            headers: entry.headers.clone(),
            dial_timeout: entry.dial_timeout,
            tls: read_tls(&entry, seen)?,
            base,
        })
    }
}

/// What went wrong at each host of a round.
#[derive(Default)]
pub(super) struct Failures(Vec<Error>);

impl Failures {
    /// Notes an error, for the host itself as well.
    pub(super) fn add(&mut self, host: &Endpoint, error: Error) {
        host.failed(&error);
        tracing::debug!(host = host.name(), %error, "a host did not help");
        self.0.push(error);
    }

    /// What the round as a whole failed of. The last host's word counts: it is the registry, or what
    /// has been resting. If another round may help, it is an error that says so, unless the registry
    /// is sure that there is nothing.
    pub(super) fn verdict(mut self) -> Option<Error> {
        let last = self.0.pop()?;
        if last.is_transient() || last.is_not_found() {
            return Some(last);
        }
        let transient = self.0.into_iter().rfind(Error::is_transient);
        Some(transient.unwrap_or(last))
    }
}

/// Docker Hub is known by the name references use, every other host by its own.
fn credentials_name(base: &Url) -> String {
    match authority(base).as_str() {
        "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}

fn read_tls(entry: &Entry, seen: &mut Seen) -> Result<Tls, Error> {
    let mut ca = Vec::new();
    for file in &entry.ca {
        let pem = seen.read(file)?;
        let read =
            Certificate::from_pem_bundle(&pem).map_err(|e| folder::setup(file, &e.to_string()))?;
        if read.is_empty() {
            return Err(folder::setup(file, "no certificate in it"));
        }
        ca.push(pem);
    }
    let mut identities = Vec::new();
    for (cert, key) in &entry.client {
        let mut pem = seen.read(cert)?;
        if let Some(key) = key {
            pem.push(b'\n');
            pem.extend(seen.read(key)?);
        }
        tls::check(&pem).map_err(|why| {
            let what = "no certificate with its key (both in it, or the key in a second file)";
            folder::setup(cert, &format!("{what}: {why}"))
        })?;
        identities.push(pem);
    }
    Ok(Tls {
        ca,
        identities,
        skip_verify: entry.skip_verify,
    })
}
