//! Credentials that pulls brought, as the CRI proxy saw them: several for a repository, the latest
//! first, so that one that is revoked does not take the others' place.
//!
//! They are tried from the moment the pull begins; they are kept when it has succeeded, and
//! forgotten if it failed and no other pull by them is under way. Kept means sealed in a file ([`super::seal`]), so that a restart finds
//! them and a copy of the disk that has not the key does not.
//!
//! Locking: the list is locked to look at it and to change it; one writer at a time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::FutureExt as _;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::oci::Reference;
use crate::registry::credentials::seal::Sealed;
use crate::registry::credentials::{Config, Credential, Credentials, Finding, Found};

/// Credentials kept for one repository.
const MAX_EACH: usize = 4;
/// Credentials kept in all.
const MAX_ALL: usize = 1024;
/// A credential whose repository no layer needs is kept so long: its pull may be under way.
const GRACE: Duration = Duration::from_secs(3600);

/// What pulls brought. Clones share it.
#[derive(Clone, Default)]
pub struct Pulled(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// The latest last.
    entries: Mutex<Vec<Entry>>,
    sealed: Option<Sealed>,
    writing: Mutex<()>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    host: String,
    repository: String,
    credential: Credential,
    /// When it came, in seconds since 1970.
    at: u64,
    /// Whether a pull by it has succeeded.
    #[serde(skip)]
    proven: bool,
    /// Pulls by it that have not ended.
    #[serde(skip)]
    pulls: usize,
}

/// A credential of a pull that has not ended yet. Dropped, the credential is forgotten unless
/// another pull has succeeded by it or is still under way.
pub struct Learned {
    pulled: Pulled,
    entry: Entry,
}

impl Pulled {
    /// What was kept in `root`. Never fails: what cannot be read is lost, and the log says why.
    #[must_use]
    pub fn open(config: &Config, root: &std::path::Path) -> Self {
        if config.key_file.as_os_str().is_empty() {
            return Self::default();
        }
        let sealed = Sealed::new(root.join("credentials"), PathBuf::from(&config.key_file));
        let read = sealed.read().and_then(|content| match content {
            None => Ok(Vec::new()),
            Some(json) => serde_json::from_slice(&json).map_err(|error| error.to_string()),
        });
        let mut entries: Vec<Entry> = read.unwrap_or_else(|why| {
            tracing::warn!(why, "credentials of earlier pulls are lost");
            Vec::new()
        });
        for entry in &mut entries {
            entry.proven = true;
        }
        Self(Arc::new(Inner {
            entries: Mutex::new(entries),
            sealed: Some(sealed),
            writing: Mutex::default(),
        }))
    }

    /// Takes in what a pull of `image` is made with.
    #[must_use]
    pub fn learn(&self, image: &Reference, credential: Credential) -> Learned {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let mut entry = Entry {
            host: image.host().to_owned(),
            repository: image.repository().to_owned(),
            credential,
            at: now.unwrap_or_default().as_secs(),
            proven: false,
            pulls: 1,
        };
        let mut entries = self.0.entries.lock();
        if let Some(at) = entries.iter().position(|known| known.is_same(&entry)) {
            let known = entries.remove(at);
            entry.proven = known.proven;
            entry.pulls += known.pulls;
        }
        enter(&mut entries, entry.clone());
        drop(entries);
        Learned {
            pulled: self.clone(),
            entry,
        }
    }

    /// Writes what has proven good. Blocks.
    fn keep(&self) {
        let Some(sealed) = &self.0.sealed else {
            return;
        };
        let _alone = self.0.writing.lock();
        let entries = self.0.entries.lock().clone();
        let good: Vec<_> = entries.iter().filter(|entry| entry.proven).collect();
        let written = serde_json::to_vec(&good).map_err(|error| error.to_string());
        if let Err(why) = written.and_then(|json| sealed.write(&json)) {
            tracing::warn!(
                why,
                "credentials of pulls are not kept: they are lost at the next restart"
            );
        }
    }

    fn keep_soon(&self) {
        let this = self.clone();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || this.keep())),
            Err(_) => this.keep(),
        }
    }
}

impl Learned {
    /// The pull has succeeded: its credential is kept.
    pub fn keep(self) {
        let mut entries = self.pulled.0.entries.lock();
        let known = entries.iter_mut().find(|known| known.is_same(&self.entry));
        let fresh = match known {
            Some(known) => !std::mem::replace(&mut known.proven, true),
            // Later ones have taken its place meanwhile, and it is the latest to prove good.
            None => {
                let proven = Entry {
                    proven: true,
                    pulls: 1,
                    ..self.entry.clone()
                };
                enter(&mut entries, proven);
                true
            }
        };
        drop(entries);
        if fresh {
            self.pulled.keep_soon();
        }
    }
}

impl Drop for Learned {
    fn drop(&mut self) {
        let mut entries = self.pulled.0.entries.lock();
        let at = entries.iter().position(|known| known.is_same(&self.entry));
        let Some(known) = at.and_then(|at| entries.get_mut(at)) else {
            return;
        };
        known.pulls = known.pulls.saturating_sub(1);
        entries.retain(|known| known.proven || known.pulls > 0 || !known.is_same(&self.entry));
    }
}

/// Makes it the latest; the oldest goes if there are too many.
fn enter(entries: &mut Vec<Entry>, entry: Entry) {
    let (host, repository) = (entry.host.clone(), entry.repository.clone());
    entries.push(entry);
    let ours = |known: &Entry| known.host == host && known.repository == repository;
    if entries.iter().filter(|known| ours(known)).count() > MAX_EACH
        && let Some(oldest) = entries.iter().position(ours)
    {
        entries.remove(oldest);
    }
    if entries.len() > MAX_ALL {
        entries.remove(0);
    }
}

impl Entry {
    fn is_same(&self, other: &Self) -> bool {
        self.host == other.host
            && self.repository == other.repository
            && self.credential == other.credential
    }
}

impl Credentials for Pulled {
    fn find<'a>(&'a self, host: &'a str, repository: &'a str) -> Finding<'a> {
        let entries = self.0.entries.lock();
        let ours = entries.iter().rev();
        let ours = ours.filter(|entry| entry.host == host && entry.repository == repository);
        let found: Vec<_> = ours
            .map(|entry| Found {
                credential: entry.credential.clone(),
                place: "a pull through the CRI".to_owned(),
                until: None,
            })
            .collect();
        std::future::ready(Ok(found)).boxed()
    }

    fn retain(&self, used: &dyn Fn(&str, &str) -> bool) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let recent = now.unwrap_or_default().saturating_sub(GRACE).as_secs();
        let mut entries = self.0.entries.lock();
        let before = entries.len();
        entries.retain(|entry| entry.at >= recent || used(&entry.host, &entry.repository));
        let gone = before - entries.len();
        drop(entries);
        if gone > 0 {
            self.keep_soon();
        }
    }

    fn place(&self) -> String {
        "pulls through the CRI".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Secret;

    fn token(text: &str) -> Credential {
        Credential::IdentityToken(Secret::new(text.to_owned()))
    }

    async fn known(pulled: &Pulled, repository: &str) -> Vec<Credential> {
        let found = pulled.find("r.io", repository).await.unwrap();
        found.into_iter().map(|found| found.credential).collect()
    }

    fn image(text: &str) -> Reference {
        text.parse().unwrap()
    }

    fn open(dir: &tempfile::TempDir) -> Pulled {
        let config = Config {
            key_file: dir.path().join("key"),
            ..Config::default()
        };
        Pulled::open(&config, dir.path())
    }

    #[tokio::test]
    async fn a_pull_that_succeeds_is_kept_and_one_that_fails_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let pulled = open(&dir);
        let first = pulled.learn(&image("r.io/a:1"), token("first"));
        assert_eq!(
            known(&pulled, "a").await,
            [token("first")],
            "while it is pulled"
        );
        assert_eq!(known(&pulled, "b").await, []);
        first.keep();
        drop(pulled.learn(&image("r.io/a:2"), token("wrong")));
        drop(pulled.learn(&image("r.io/a:2"), token("first")));
        pulled.learn(&image("r.io/a:2"), token("second")).keep();
        let both = [token("second"), token("first")];
        assert_eq!(known(&pulled, "a").await, both);
        let kept = || std::fs::read(dir.path().join("credentials")).is_ok();
        for _ in 0..200 {
            if kept() && known(&open(&dir), "a").await == both {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not kept: {:?}", known(&open(&dir), "a").await);
    }

    #[tokio::test]
    async fn pulls_by_the_same_credential_share_it_until_the_last_one_ends() {
        let pulled = Pulled::default();
        let image = image("r.io/a:1");
        let learn = || pulled.learn(&image, token("t"));
        let (failed, good) = (learn(), learn());
        drop(failed);
        assert_eq!(known(&pulled, "a").await, [token("t")], "it is pulled by");
        good.keep();
        drop(learn());
        assert_eq!(
            known(&pulled, "a").await,
            [token("t")],
            "it has proven good"
        );

        let pulled = Pulled::default();
        let learn = |text: &str| pulled.learn(&image, token(text));
        let bad = [learn("t"), learn("t")];
        drop(bad);
        assert_eq!(known(&pulled, "a").await, []);
        let slow = learn("slow");
        for n in 0..MAX_EACH {
            learn(&n.to_string()).keep();
        }
        slow.keep();
        assert_eq!(known(&pulled, "a").await[0], token("slow"), "it came back");
        assert_eq!(known(&pulled, "a").await.len(), MAX_EACH);
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded_and_goes_with_its_layers() {
        let pulled = Pulled::default();
        for n in 0..MAX_ALL {
            pulled
                .learn(&image(&format!("r.io/x{n}")), token("t"))
                .keep();
        }
        for n in 0..10 {
            pulled.learn(&image("r.io/a"), token(&n.to_string())).keep();
        }
        let expected = ["9", "8", "7", "6"].map(token);
        assert_eq!(known(&pulled, "a").await, expected);
        assert_eq!(pulled.0.entries.lock().len(), MAX_ALL);
        pulled.retain(&|_, _| false);
        assert_eq!(
            pulled.0.entries.lock().len(),
            MAX_ALL,
            "they have just come"
        );
        for entry in pulled.0.entries.lock().iter_mut() {
            entry.at = 0;
        }
        pulled.retain(&|host, repository| (host, repository) == ("r.io", "a"));
        assert_eq!(known(&pulled, "a").await, expected);
        assert_eq!(pulled.0.entries.lock().len(), MAX_EACH);
    }
}
