//! Where credentials come from: a trait, so that sources can be added and chained.
//!
//! | source | module |
//! |---|---|
//! | the pull itself, as kubelet sends it through the CRI proxy | [`pulled`], kept sealed by [`seal`] |
//! | docker's `config.json` and its helpers | [`docker_config`] |
//! | kubelet's credential provider plugins | [`provider`] |
//! | pull secrets of Kubernetes, through a kubeconfig | [`pull_secrets`] |
//!
//! Nothing here is asked before a registry wants to see something: start-up needs no credentials,
//! and neither does what is cached.

mod config;
mod docker_config;
mod exec;
mod exec_login;
mod kubeconfig;
mod pattern;
mod provider;
mod provider_config;
mod pull_secrets;
mod pulled;
mod seal;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::registry::Error;

pub use config::Config;
pub use docker_config::DockerConfig;
pub use provider::Providers;
pub use pull_secrets::PullSecrets;
pub use pulled::{Learned, Pulled};

/// Text that is not to be seen in logs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What opens a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Credential {
    /// User name and password (or access token used as one).
    Password {
        /// User name.
        username: String,
        /// Password.
        password: Secret,
    },
    /// A refresh token to be exchanged for access tokens (docker's `identitytoken`).
    IdentityToken(Secret),
    /// An access token to be sent as it is (docker's `registrytoken`).
    AccessToken(Secret),
}

/// A credential and where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The credential.
    pub credential: Credential,
    /// File or helper, for messages.
    pub place: String,
    /// When its source says that it ends, if it does: it is looked up again then.
    pub until: Option<Instant>,
}

/// A look-up of credentials.
pub type Finding<'a> = BoxFuture<'a, Result<Vec<Found>, Error>>;

/// A source of credentials.
pub trait Credentials: Send + Sync {
    /// All credentials that may fit, the best first; each is tried until one is accepted. Asked
    /// again whenever an access token has to be renewed, so that rotated secrets are noticed.
    ///
    /// # Errors
    /// Credentials are configured but cannot be had.
    fn find<'a>(&'a self, host: &'a str, repository: &'a str) -> Finding<'a>;

    /// The look-up in the `n`th of the sources that this one is made of, from 0; `None` if it has not
    /// so many. Whoever is content with what an earlier one has need not wait for a later one.
    fn nth<'a>(&'a self, n: usize, host: &'a str, repository: &'a str) -> Option<Finding<'a>> {
        (n == 0).then(|| self.find(host, repository))
    }

    /// A registry or its token service refused `credential`, which was found before: what is kept
    /// of it is out of date. The next look-up may go to where it came from.
    fn refused(&self, host: &str, repository: &str, credential: &Credential) {
        let _ = (host, repository, credential);
    }

    /// Only repositories (host, repository) that are `used` need credentials any more.
    fn retain(&self, used: &dyn Fn(&str, &str) -> bool) {
        let _ = used;
    }

    /// Where this source looks, for the message that nothing was found.
    fn place(&self) -> String;
}

/// No credentials at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct Anonymous;

impl Credentials for Anonymous {
    fn find<'a>(&'a self, _host: &'a str, _repository: &'a str) -> Finding<'a> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn place(&self) -> String {
        "nowhere (none are configured)".to_owned()
    }
}

/// Several sources, asked in order.
#[derive(Clone, Default)]
pub struct Chain(pub Vec<Arc<dyn Credentials>>);

impl Credentials for Chain {
    fn find<'a>(&'a self, host: &'a str, repository: &'a str) -> Finding<'a> {
        Box::pin(async move {
            let (mut all, mut failed) = (Vec::new(), None);
            for source in &self.0 {
                match source.find(host, repository).await {
                    Ok(found) => all.extend(found),
                    Err(error) => {
                        tracing::warn!(host, %error, "a source of credentials failed");
                        failed = Some(error);
                    }
                }
            }
            match failed {
                Some(error) if all.is_empty() => Err(error),
                _ => Ok(all),
            }
        })
    }

    fn nth<'a>(&'a self, n: usize, host: &'a str, repository: &'a str) -> Option<Finding<'a>> {
        self.0.get(n).map(|source| source.find(host, repository))
    }

    fn refused(&self, host: &str, repository: &str, credential: &Credential) {
        for source in &self.0 {
            source.refused(host, repository, credential);
        }
    }

    fn retain(&self, used: &dyn Fn(&str, &str) -> bool) {
        for source in &self.0 {
            source.retain(used);
        }
    }

    fn place(&self) -> String {
        let places: Vec<_> = self.0.iter().map(|source| source.place()).collect();
        places.join(", ")
    }
}
