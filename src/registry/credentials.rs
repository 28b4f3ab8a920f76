//! Where credentials come from: a trait, so that sources can be added and chained.

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;

use crate::registry::Error;

/// Text that is not to be seen in logs.
#[derive(Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
}

/// A source of credentials.
pub trait Credentials: Send + Sync {
    /// All credentials that may fit, the best first; each is tried until one is accepted. Asked
    /// again whenever an access token has to be renewed, so that rotated secrets are noticed.
    ///
    /// # Errors
    /// Credentials are configured but cannot be had.
    fn find<'a>(
        &'a self,
        host: &'a str,
        repository: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Found>, Error>>;

    /// Where this source looks, for the message that nothing was found.
    fn place(&self) -> String;
}

/// No credentials at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct Anonymous;

impl Credentials for Anonymous {
    fn find<'a>(
        &'a self,
        _host: &'a str,
        _repository: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Found>, Error>> {
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
    fn find<'a>(
        &'a self,
        host: &'a str,
        repository: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Found>, Error>> {
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

    fn place(&self) -> String {
        let places: Vec<_> = self.0.iter().map(|source| source.place()).collect();
        places.join(", ")
    }
}
