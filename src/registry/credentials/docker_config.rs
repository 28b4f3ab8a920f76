//! Credentials as `docker login` and credential helpers leave them.
//!
//! Format: docker's `config.json` (docker CLI reference, "Credential stores" and "Credential
//! helpers"): `auths` by host (also by `host/namespace`, as podman and Kubernetes write it),
//! `credHelpers` by host, `credsStore` for all. Helpers speak the docker-credential-helpers
//! protocol: host on stdin, JSON on stdout. Docker Hub's key is `https://index.docker.io/v1/`.
//!
//! The file is read anew for every look-up, so a new login needs no restart.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;

use crate::registry::credentials::exec::{self, MAX_ANSWER};
use crate::registry::credentials::{Credential, Credentials, Finding, Found, Secret};
use crate::registry::{Config, Error};

/// The key under which docker keeps what belongs to `docker.io`.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// The user name by which helpers mark an identity token.
const TOKEN_USER: &str = "<token>";
/// What helpers print when they hold nothing for a host.
const NOT_FOUND: &str = "credentials not found";

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A docker `config.json` and the helpers it names.
#[derive(Debug, Clone)]
pub struct DockerConfig {
    path: PathBuf,
    /// `$PATH` of helpers.
    helper_path: String,
    helper_timeout: Duration,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct File {
    pub(super) auths: HashMap<String, Auth>,
    creds_store: String,
    cred_helpers: HashMap<String, String>,
}

/// What opens one registry or repository.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

impl DockerConfig {
    /// The file `config` names, else docker's usual one. It need not exist.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let folder = || match std::env::var_os("DOCKER_CONFIG") {
            Some(folder) => PathBuf::from(folder),
            None => Path::new(&std::env::var_os("HOME").unwrap_or("/root".into())).join(".docker"),
        };
        let path = config.docker_config.clone();
        let usual = std::env::var("PATH").unwrap_or_default();
        Self {
            helper_path: match config.helper_path.is_empty() {
                true => usual,
                false => format!("{}:{usual}", config.helper_path),
            },
            path: path.unwrap_or_else(|| folder().join("config.json")),
            helper_timeout: config.helper_timeout,
        }
    }

    async fn read(&self) -> Result<Option<File>, Error> {
        let file = match tokio::fs::File::open(&self.path).await {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.broken(error.to_string())),
        };
        let mut json = Vec::new();
        let read = file.take(MAX_ANSWER).read_to_end(&mut json).await;
        read.map_err(|e| self.broken(e.to_string()))?;
        // The parser's own words could quote a secret: say where, not what.
        serde_json::from_slice(&json)
            .map(Some)
            .map_err(|e| self.broken(format!("not a docker config: line {}", e.line())))
    }

    async fn find_all(&self, host: &str, repository: &str) -> Result<Vec<Found>, Error> {
        let Some(file) = self.read().await? else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        let mut failed = None;
        if let Some((helper, server)) = file.helper(host) {
            match self.ask(helper, server).await {
                Ok(credential) => found.extend(credential),
                Err(error) => {
                    tracing::warn!(host, %error, "a credential helper failed");
                    failed = Some(error);
                }
            }
        }
        for (key, auth) in file.matching(host, repository) {
            let credential = auth.credential();
            let credential = credential.map_err(|why| self.broken(format!("{key}: {why}")))?;
            found.extend(credential.map(|credential| Found {
                credential,
                place: self.place(),
                until: None,
            }));
        }
        match failed {
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }

    async fn ask(&self, helper: &str, server: &str) -> Result<Option<Found>, Error> {
        let program = format!("docker-credential-{helper}");
        let broken = |why: String| Error::Credentials {
            place: format!("{program} (named in {})", self.path.display()),
            why,
            passing: true,
        };
        if helper.contains('/') {
            return Err(self.broken(format!("{helper:?}: a helper's name has no slash")));
        }
        let env = [("PATH", self.helper_path.as_str())];
        let name = OsStr::new(&program);
        let said = exec::run(name, &["get"], &env, server.as_bytes(), self.helper_timeout);
        let said = said.await.map_err(broken)?;
        if !said.ok {
            let text = String::from_utf8_lossy(&said.output);
            return match text.contains(NOT_FOUND) {
                true => Ok(None),
                false => Err(broken(text.trim().chars().take(200).collect())),
            };
        }
        let answer: Answer = serde_json::from_slice(&said.output)
            .map_err(|_| broken("its answer is not what the protocol says".to_owned()))?;
        let secret = Secret::new(answer.secret);
        Ok(Some(Found {
            credential: match answer.username.as_str() {
                TOKEN_USER => Credential::IdentityToken(secret),
                _ => Credential::Password {
                    username: answer.username,
                    password: secret,
                },
            },
            place: program,
            until: None,
        }))
    }

    fn broken(&self, why: String) -> Error {
        Error::Credentials {
            place: self.place(),
            why,
            passing: false,
        }
    }
}

impl Credentials for DockerConfig {
    fn find<'a>(&'a self, host: &'a str, repository: &'a str) -> Finding<'a> {
        Box::pin(self.find_all(host, repository))
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }
}

impl File {
    /// The helper for `host` and the name by which it knows the host.
    fn helper<'a>(&'a self, host: &'a str) -> Option<(&'a str, &'a str)> {
        let server = if host == "docker.io" {
            DOCKER_HUB
        } else {
            host
        };
        let own = self
            .cred_helpers
            .iter()
            .find(|(key, _)| split(key).0 == host);
        let helper = own.map_or(self.creds_store.as_str(), |(_, helper)| helper);
        (!helper.is_empty()).then_some((helper, server))
    }

    /// The entries for `host` and for namespaces that `repository` lies in, the longest first.
    fn matching(&self, host: &str, repository: &str) -> Vec<(&str, &Auth)> {
        let fits = |key: &str| {
            let (key_host, namespace) = split(key);
            let rest = repository.strip_prefix(namespace);
            key_host == host
                && (namespace.is_empty()
                    || rest.is_some_and(|r| r.is_empty() || r.starts_with('/')))
        };
        let entries = self.auths.iter().filter(|(key, _)| fits(key));
        let mut entries: Vec<_> = entries.map(|(key, auth)| (key.as_str(), auth)).collect();
        entries.sort_by_key(|(key, _)| (std::cmp::Reverse(split(key).1.len()), *key));
        entries
    }
}

impl Credential {
    /// User name and password from base64 of both with a colon between them, as docker writes it.
    #[must_use]
    pub fn decode(auth: &str) -> Option<Self> {
        let (username, password) = decode(auth)?;
        let password = Secret::new(password);
        Some(Self::Password { username, password })
    }
}

impl Auth {
    /// `Ok(None)`: an empty entry, as docker leaves it beside a `credsStore`.
    pub(super) fn credential(&self) -> Result<Option<Credential>, &'static str> {
        if !self.identitytoken.is_empty() {
            let token = Secret::new(self.identitytoken.clone());
            return Ok(Some(Credential::IdentityToken(token)));
        }
        if !self.registrytoken.is_empty() {
            let token = Secret::new(self.registrytoken.clone());
            return Ok(Some(Credential::AccessToken(token)));
        }
        let (username, password) = match self.auth.is_empty() {
            true => (self.username.clone(), self.password.clone()),
            false => decode(&self.auth).ok_or("auth is not base64 of user:password")?,
        };
        Ok((!username.is_empty()).then(|| Credential::Password {
            username,
            password: Secret::new(password),
        }))
    }
}

/// User name and password of an `auth` field.
fn decode(auth: &str) -> Option<(String, String)> {
    let text = String::from_utf8(BASE64.decode(auth.trim()).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    // Old docker versions padded the text with NUL.
    Some((
        username.to_owned(),
        password.trim_end_matches('\0').to_owned(),
    ))
}

/// Host and namespace of a key, in whichever of its spellings: `https://host/v1/`, `host/ns`.
pub(super) fn split(key: &str) -> (&str, &str) {
    let bare = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"));
    let bare = bare.unwrap_or(key).trim_end_matches('/');
    let (host, namespace) = bare.split_once('/').unwrap_or((bare, ""));
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    };
    match namespace {
        "v1" | "v2" => (host, ""),
        namespace => (host, namespace),
    }
}
