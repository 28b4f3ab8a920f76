//! Pull secrets of Kubernetes, read through a kubeconfig: secrets of type
//! `kubernetes.io/dockerconfigjson`, listed and never written.
//!
//! They are listed when a registry asks for credentials and the last list is too old, or when one
//! of them was refused. While the API server cannot be asked, the last list holds.
//!
//! Locking: one listing at a time; whoever waited uses its outcome.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use reqwest::Client;
use serde::Deserialize;
use tokio::time::Instant;

use crate::registry::Error;
use crate::registry::credentials::docker_config::{Auth, File};
use crate::registry::credentials::exec_login::{Kept, Shown};
use crate::registry::credentials::kubeconfig::{self, Access, Cluster, Login};
use crate::registry::credentials::pattern::Pattern;
use crate::registry::credentials::{Config, Credential, Credentials, Finding, Found};

/// Longest wait for one page of a list.
const TIMEOUT: Duration = Duration::from_secs(10);
/// After a failure, or after a list that still has what was refused, there is no other so long.
const PAUSE: Duration = Duration::from_secs(5);
/// Secrets in one page of a list.
const PAGE: usize = 500;
/// The largest page, in bytes: a secret has at most 1 MiB, pull secrets have a few hundred bytes.
const MAX_PAGE: usize = 64 << 20;
/// Most pages of one list.
const MAX_PAGES: usize = 100;

/// The pull secrets of a cluster.
pub struct PullSecrets {
    kubeconfig: PathBuf,
    namespaces: Vec<String>,
    refresh: Duration,
    /// What the kubeconfig's plugin said, if it has one, and how long it may run.
    plugin: Kept,
    plugin_timeout: Duration,
    list: tokio::sync::Mutex<List>,
    /// Credentials of the list that were refused since it was read.
    refused: Mutex<Vec<Credential>>,
}

#[derive(Default)]
struct List {
    logins: Vec<Entry>,
    read: Option<Instant>,
    pause: Option<Instant>,
    failure: Option<String>,
}

struct Entry {
    pattern: Pattern,
    key: String,
    credential: Credential,
    /// Namespace and name of the secret.
    secret: String,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    items: Option<Vec<Item>>,
    #[serde(default)]
    metadata: PageMetadata,
}

#[derive(Default, Deserialize)]
struct PageMetadata {
    #[serde(default, rename = "continue")]
    next: String,
}

#[derive(Deserialize)]
struct Item {
    metadata: ItemMetadata,
    #[serde(default)]
    data: Option<Data>,
}

#[derive(Deserialize)]
struct ItemMetadata {
    name: String,
    #[serde(default)]
    namespace: String,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = ".dockerconfigjson", default)]
    config: String,
}

impl PullSecrets {
    /// The secrets that `config` says can be read, if it does.
    #[must_use]
    pub fn new(config: &Config) -> Option<Self> {
        Some(Self {
            kubeconfig: config.kubeconfig.clone()?,
            namespaces: config.pull_secret_namespaces.clone(),
            refresh: config.pull_secrets_refresh,
            plugin: Kept::default(),
            plugin_timeout: config.provider_timeout,
            list: tokio::sync::Mutex::default(),
            refused: Mutex::default(),
        })
    }

    async fn find_all(&self, host: &str, repository: &str) -> Result<Vec<Found>, Error> {
        let mut list = self.list.lock().await;
        if self.is_due(&list) {
            self.read(&mut list).await;
        }
        let fitting = list.logins.iter();
        let fitting = fitting.filter(|entry| entry.pattern.matches(host, repository));
        let mut fitting: Vec<_> = fitting.collect();
        fitting.sort_by(|a, b| b.key.len().cmp(&a.key.len()).then(a.secret.cmp(&b.secret)));
        match &list.failure {
            Some(why) if fitting.is_empty() => Err(Error::Credentials {
                place: self.place(),
                why: why.clone(),
                passing: true,
            }),
            _ => Ok(fitting.into_iter().map(found).collect()),
        }
    }

    fn is_due(&self, list: &List) -> bool {
        let now = Instant::now();
        if list.pause.is_some_and(|pause| now < pause) {
            return false;
        }
        let is_old = list.read.is_none_or(|read| now >= read + self.refresh);
        is_old || !self.refused.lock().is_empty()
    }

    async fn read(&self, list: &mut List) {
        let refused = std::mem::take(&mut *self.refused.lock());
        let read = self.list().await;
        let now = Instant::now();
        match read {
            Ok(logins) => {
                let same = |entry: &Entry| refused.contains(&entry.credential);
                let unchanged = logins.iter().any(same);
                list.logins = logins;
                list.read = Some(now);
                list.failure = None;
                list.pause = unchanged.then(|| now + PAUSE);
            }
            Err(why) => {
                tracing::warn!(kubeconfig = %self.kubeconfig.display(), why, "pull secrets cannot be read");
                list.failure = Some(why);
                list.pause = Some(now + PAUSE);
            }
        }
    }

    async fn list(&self) -> Result<Vec<Entry>, String> {
        let path = self.kubeconfig.clone();
        // Read anew each time: certificates and tokens in it are rotated.
        let access = blocking(move || {
            let access = kubeconfig::read(&path)?;
            let described = access.described()?;
            Ok((access, described))
        });
        let (access, described) = access.await?;
        let access = Arc::new(access);
        let Some(plugin) = access.plugin() else {
            let cluster = connect(&access, None).await?;
            return self.entries_of(&cluster).await.map_err(Refused::why);
        };
        // What it said may not hold any more, although the time that it named has not come.
        let mut is_second = false;
        loop {
            let (folder, timeout) = (access.folder(), self.plugin_timeout);
            let shown = self.plugin.ask(plugin, folder, &described, timeout).await?;
            let cluster = connect(&access, Some(shown)).await?;
            match self.entries_of(&cluster).await {
                Err(Refused::Login(_)) if !is_second => self.plugin.forget(),
                other => return other.map_err(Refused::why),
            }
            is_second = true;
        }
    }

    /// What all secrets of the cluster open.
    async fn entries_of(&self, cluster: &Cluster) -> Result<Vec<Entry>, Refused> {
        let mut all = Vec::new();
        let paths = self.namespaces.iter();
        let mut paths: Vec<_> = paths
            .map(|namespace| format!("api/v1/namespaces/{namespace}/secrets"))
            .collect();
        if paths.is_empty() {
            paths.push("api/v1/secrets".to_owned());
        }
        for path in paths {
            let mut next = String::new();
            for _ in 0..MAX_PAGES {
                let page = page(cluster, &path, &next).await?;
                all.extend(page.items.unwrap_or_default().iter().flat_map(entries));
                next = page.metadata.next;
                if next.is_empty() {
                    break;
                }
            }
        }
        Ok(all)
    }
}

impl Credentials for PullSecrets {
    fn find<'a>(&'a self, host: &'a str, repository: &'a str) -> Finding<'a> {
        Box::pin(self.find_all(host, repository))
    }

    fn refused(&self, _host: &str, _repository: &str, credential: &Credential) {
        let mut refused = self.refused.lock();
        if !refused.contains(credential) {
            refused.push(credential.clone());
        }
    }

    fn place(&self) -> String {
        format!("pull secrets by {}", self.kubeconfig.display())
    }
}

fn found(entry: &Entry) -> Found {
    Found {
        credential: entry.credential.clone(),
        place: format!("pull secret {}", entry.secret),
        until: None,
    }
}

/// Why secrets could not be listed.
enum Refused {
    /// The API server does not know who asks.
    Login(String),
    Other(String),
}

impl Refused {
    fn why(self) -> String {
        match self {
            Self::Login(why) | Self::Other(why) => why,
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| error.to_string())?
}

async fn connect(access: &Arc<Access>, shown: Option<Shown>) -> Result<Cluster, String> {
    let access = Arc::clone(access);
    blocking(move || access.connect(Client::builder().timeout(TIMEOUT), shown)).await
}

async fn page(cluster: &Cluster, path: &str, next: &str) -> Result<Page, Refused> {
    let mut url = cluster.server.clone();
    let base = url.path().trim_end_matches('/').to_owned();
    url.set_path(&format!("{base}/{path}"));
    url.query_pairs_mut()
        .append_pair("fieldSelector", "type=kubernetes.io/dockerconfigjson")
        .append_pair("limit", &PAGE.to_string());
    if !next.is_empty() {
        url.query_pairs_mut().append_pair("continue", next);
    }
    let request = cluster.client.get(url).header("accept", "application/json");
    let request = match &cluster.login {
        Login::Nothing => request,
        Login::Token(token) => request.bearer_auth(token.expose()),
        Login::Password(name, password) => request.basic_auth(name, Some(password.expose())),
    };
    let failed = |error: reqwest::Error| {
        let mut why = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            why = format!("{why}: {inner}");
            cause = inner.source();
        }
        Refused::Other(why)
    };
    let mut answer = request.send().await.map_err(failed)?;
    if !answer.status().is_success() {
        let who = cluster.server.host_str().unwrap_or_default();
        let status = answer.status();
        let why = format!("{who} answered {status} to a list of secrets");
        return Err(match status.as_u16() {
            401 => Refused::Login(why),
            _ => Refused::Other(why),
        });
    }
    let mut json = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(failed)? {
        if json.len() + piece.len() > MAX_PAGE {
            let why = format!("a page of secrets is larger than {MAX_PAGE} bytes");
            return Err(Refused::Other(why));
        }
        json.extend_from_slice(&piece);
    }
    let none = |_| Refused::Other("the answer is not a list of secrets".to_owned());
    serde_json::from_slice(&json).map_err(none)
}

/// What one secret opens. One that is broken opens nothing, and spoils no other.
fn entries(item: &Item) -> Vec<Entry> {
    let secret = format!("{}/{}", item.metadata.namespace, item.metadata.name);
    let broken = || tracing::warn!(secret, "a pull secret is not a docker config");
    let Some(data) = &item.data else {
        return Vec::new();
    };
    let json = STANDARD.decode(&data.config).unwrap_or_default();
    let Ok(file) = serde_json::from_slice::<File>(&json) else {
        broken();
        return Vec::new();
    };
    let entry = |(key, auth): (&String, &Auth)| {
        let credential = auth.credential().unwrap_or_else(|_| {
            broken();
            None
        });
        Some(Entry {
            pattern: Pattern::parse(key)?,
            key: key.clone(),
            credential: credential?,
            secret: secret.clone(),
        })
    };
    file.auths.iter().filter_map(entry).collect()
}
