//! Kubelet's credential provider plugins, run by crfs itself: they speak for the node, so a layer
//! is read on when what the pull brought has ended, and after a restart.
//!
//! An answer is kept as long as it says and then asked for again; at once if a registry refused
//! it. A plugin that fails while an older answer is there does not take that away: the registry
//! decides whether it still opens.
//!
//! Locking: one run of a plugin at a time; whoever waited for it uses its answer. The map of
//! answers is never locked across a run.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::registry::Error;
use crate::registry::credentials::pattern::Pattern;
use crate::registry::credentials::provider_config::{
    self, CacheKey, Plugin, Request, Response, duration,
};
use crate::registry::credentials::{Config, Credential, Credentials, Finding, Found, Secret, exec};

/// After a failure, or after a new answer that was the refused one, a plugin is left alone so long.
const PAUSE: Duration = Duration::from_secs(5);
/// Answers that are kept before those that have ended are forgotten.
const MAX_ANSWERS: usize = 1024;

/// The plugins of a node.
pub struct Providers {
    config: PathBuf,
    folder: PathBuf,
    timeout: Duration,
    answers: Mutex<HashMap<Key, Answer>>,
    /// By plugin.
    running: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// What an answer is for: plugin, kind, and image, registry or nothing.
type Key = (String, CacheKey, String);

#[derive(Clone)]
struct Answer {
    logins: Vec<(String, Credential)>,
    /// When it is to be asked for again.
    until: Instant,
    /// A registry has refused one of its credentials.
    refused: bool,
    /// Not before this is a refusal, or an end, a reason to run the plugin.
    pause: Option<Instant>,
}

impl Answer {
    fn is_good(&self, now: Instant) -> bool {
        let paused = self.pause.is_some_and(|pause| now < pause);
        paused || (now < self.until && !self.refused)
    }
}

impl Providers {
    /// The plugins that `config` names, if it names any.
    #[must_use]
    pub fn new(config: &Config) -> Option<Self> {
        Some(Self {
            config: config.provider_config.clone()?,
            folder: config.provider_bin_dir.clone().unwrap_or_default(),
            timeout: config.provider_timeout,
            answers: Mutex::default(),
            running: Mutex::default(),
        })
    }

    async fn find_all(&self, host: &str, repository: &str) -> Result<Vec<Found>, Error> {
        let path = self.config.clone();
        let read = tokio::task::spawn_blocking(move || provider_config::read(&path)).await;
        let plugins = read
            .unwrap_or_else(|error| Err(error.to_string()))
            .map_err(|why| Error::Credentials {
                place: self.place(),
                why,
                passing: false,
            })?;
        let (mut all, mut failed) = (Vec::new(), None);
        for plugin in &plugins {
            if !plugin
                .images
                .iter()
                .any(|image| image.matches(host, repository))
            {
                continue;
            }
            match self.answer(plugin, host, repository).await {
                Ok(answer) => all.extend(self.fitting(plugin, answer, host, repository)),
                Err(error) => {
                    tracing::warn!(host, repository, %error, "a credential provider failed");
                    failed = Some(error);
                }
            }
        }
        match failed {
            Some(error) if all.is_empty() => Err(error),
            _ => Ok(all),
        }
    }

    /// The credentials of an answer that are for this image, the longest key first.
    fn fitting(&self, plugin: &Plugin, answer: Answer, host: &str, repository: &str) -> Vec<Found> {
        let fits = |key: &str| Pattern::parse(key).is_some_and(|key| key.matches(host, repository));
        let place = self.folder.join(&plugin.name).display().to_string();
        let until = (answer.until > Instant::now()).then_some(answer.until);
        let mut logins = answer.logins;
        logins.sort_by(|(a, _), (b, _)| b.cmp(a));
        logins.retain(|(key, _)| fits(key));
        let found = logins.into_iter().map(|(_, credential)| Found {
            credential,
            place: place.clone(),
            until,
        });
        found.collect()
    }

    /// What the plugin says of this image: what it said, as long as that holds, else anew.
    async fn answer(&self, plugin: &Plugin, host: &str, repository: &str) -> Result<Answer, Error> {
        let image = format!("{host}/{repository}");
        let keys = [
            (plugin.name.clone(), CacheKey::Image, image.clone()),
            (plugin.name.clone(), CacheKey::Registry, host.to_owned()),
            (plugin.name.clone(), CacheKey::Global, String::new()),
        ];
        let kept = || {
            let answers = self.answers.lock();
            let known = keys.iter().filter_map(|key| Some((key, answers.get(key)?)));
            // One that holds, for whatever it holds, goes before one that does not.
            let best = known.max_by_key(|(_, answer)| answer.is_good(Instant::now()));
            best.map(|(key, answer)| (key.clone(), answer.clone()))
        };
        let is_good = |kept: &Option<(Key, Answer)>| {
            kept.as_ref()
                .is_some_and(|(_, answer)| answer.is_good(Instant::now()))
        };
        let alone = Arc::clone(self.running.lock().entry(plugin.name.clone()).or_default());
        let mut old = kept();
        let _alone = if is_good(&old) {
            None
        } else {
            let guard = alone.lock().await;
            old = kept();
            Some(guard)
        };
        if let Some((_, answer)) = old.clone().filter(|_| is_good(&old)) {
            return Ok(answer);
        }
        let ran = self.run(plugin, &image).await;
        let now = Instant::now();
        match (ran, old) {
            (Ok((kind, mut answer)), old) => {
                let refused =
                    old.is_some_and(|(_, old)| old.refused && old.logins == answer.logins);
                answer.pause = refused.then(|| now + PAUSE);
                if let Some(key) = keys.into_iter().find(|key| Some(key.1) == kind) {
                    self.keep(key, answer.clone());
                }
                Ok(answer)
            }
            (Err(error), Some((key, old))) if !old.logins.is_empty() => {
                tracing::warn!(image, %error, "a credential provider failed, what it said before is used");
                let pause = Some(now + PAUSE);
                self.keep(
                    key,
                    Answer {
                        pause,
                        ..old.clone()
                    },
                );
                Ok(old)
            }
            (Err(error), _) => Err(error),
        }
    }

    fn keep(&self, key: Key, answer: Answer) {
        let mut answers = self.answers.lock();
        if answers.len() >= MAX_ANSWERS {
            let now = Instant::now();
            answers.retain(|_, answer| now < answer.until);
        }
        if answers.len() < MAX_ANSWERS {
            answers.insert(key, answer);
        }
    }

    /// Runs the plugin; gives its answer and what that holds for, if it may be kept at all.
    async fn run(&self, plugin: &Plugin, image: &str) -> Result<(Option<CacheKey>, Answer), Error> {
        let program = self.folder.join(&plugin.name);
        let broken = |why: String| Error::Credentials {
            place: program.display().to_string(),
            why,
            passing: true,
        };
        let question = Request {
            kind: "CredentialProviderRequest",
            api_version: &plugin.api_version,
            image,
        };
        let question = serde_json::to_vec(&question).map_err(|error| broken(error.to_string()))?;
        let args: Vec<_> = plugin.args.iter().map(String::as_str).collect();
        let env = plugin
            .env
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let env: Vec<_> = env.collect();
        tracing::debug!(plugin = plugin.name, image, "running a credential provider");
        let start = Instant::now();
        let said = exec::run(program.as_os_str(), &args, &env, &question, self.timeout).await;
        let said = said.map_err(broken)?;
        if !said.ok {
            return Err(broken(format!("failed: {}", said.complaint)));
        }
        // The parser's own words could quote a secret: say what, not which.
        let wrong = |why: &str| broken(format!("its answer is not what the protocol says: {why}"));
        let response: Response = serde_json::from_slice(&said.output)
            .map_err(|error| wrong(&format!("json, line {}", error.line())))?;
        if response.kind != "CredentialProviderResponse" {
            return Err(wrong("kind"));
        }
        if response.api_version != plugin.api_version {
            return Err(wrong("apiVersion is not the configured one"));
        }
        let life = match response.cache_duration {
            Some(text) => duration(&text).ok_or_else(|| wrong("cacheDuration"))?,
            None => plugin.usual_life,
        };
        let logins = response.auth.unwrap_or_default().into_iter();
        let logins = logins.map(|(key, login)| {
            let password = Secret::new(login.password);
            let username = login.username;
            (key, Credential::Password { username, password })
        });
        let mut logins: Vec<_> = logins.collect();
        logins.sort_by(|(a, _), (b, _)| a.cmp(b));
        // A year is for ever, and the clock can add it.
        let until = start + life.min(Duration::from_secs(31_536_000));
        Ok((
            (!life.is_zero()).then_some(response.cache_key_type),
            Answer {
                logins,
                until,
                refused: false,
                pause: None,
            },
        ))
    }
}

impl Credentials for Providers {
    fn find<'a>(&'a self, host: &'a str, repository: &'a str) -> Finding<'a> {
        Box::pin(self.find_all(host, repository))
    }

    fn refused(&self, _host: &str, _repository: &str, credential: &Credential) {
        for answer in self.answers.lock().values_mut() {
            if answer.logins.iter().any(|(_, known)| known == credential) {
                answer.refused = true;
            }
        }
    }

    fn place(&self) -> String {
        format!("the credential providers in {}", self.config.display())
    }
}
