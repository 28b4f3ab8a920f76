//! How often, and how fast, something that failed is tried again.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use parking_lot::Mutex;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::registry::{Config, Error, Traffic};

/// The first pause, doubled for each further one, plus up to as much again at random.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// How long before the deadline the last attempt is made, at most.
const LAST_TRY: Duration = Duration::from_secs(1);

/// What fails for less long is nobody's concern.
const MOMENT: Duration = Duration::from_secs(1);

/// The patience of one operation: pauses grow, and end with the deadline.
pub(super) struct Patience {
    config: Arc<Config>,
    traffic: Arc<Traffic>,
    /// What is asked for, and of whom, for the error at the end.
    what: Arc<str>,
    host: String,
    pauses: ExponentialBackoff,
    deadline: Instant,
    last: Option<Error>,
}

impl Patience {
    pub(super) fn new(
        config: &Arc<Config>,
        traffic: &Arc<Traffic>,
        what: &Arc<str>,
        host: &str,
    ) -> Self {
        Self {
            config: Arc::clone(config),
            traffic: Arc::clone(traffic),
            what: Arc::clone(what),
            host: host.to_owned(),
            pauses: pauses(config),
            deadline: Instant::now() + config.deadline,
            last: None,
        }
    }

    /// There was progress: start over.
    pub(super) fn renew(&mut self) {
        *self = Self::new(&self.config, &self.traffic, &self.what, &self.host);
    }

    /// Time went by in progress: the deadline counts from now, the attempts made stay made.
    pub(super) fn extend(&mut self) {
        self.deadline = Instant::now() + self.config.deadline;
    }

    /// Runs one attempt, but not beyond the deadline.
    pub(super) async fn within<T>(
        &mut self,
        attempt: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        match timeout_at(self.deadline, attempt).await {
            Ok(result) => result,
            Err(_) => Err(self.over()),
        }
    }

    /// Pauses before the next attempt, or gives `error` back if there is to be none.
    pub(super) async fn after(&mut self, error: Error) -> Result<(), Error> {
        if !error.is_transient() || matches!(error, Error::Deadline { .. }) {
            return Err(error);
        }
        let Some(pause) = self.pauses.next() else {
            return Err(error);
        };
        let asked = error.retry_after().unwrap_or_default();
        let asked = asked.min(self.config.max_pause);
        let now = Instant::now();
        let mut until = now + pause.max(asked);
        if until >= self.deadline && now + asked < self.last_try() {
            until = self.last_try();
        }
        tracing::debug!(%error, ?pause, "trying again");
        if self.deadline <= now + self.config.deadline.saturating_sub(MOMENT) {
            self.traffic.held_up(&error);
        }
        self.last = Some(error);
        if until >= self.deadline {
            return Err(self.over());
        }
        sleep_until(until).await;
        Ok(())
    }

    /// Who waits wants an answer as long as there may be one: where the next pause would go beyond the
    /// deadline, the last attempt is made shortly before it.
    fn last_try(&self) -> Instant {
        self.deadline - (self.config.deadline / 10).min(LAST_TRY)
    }

    fn over(&mut self) -> Error {
        let last = self.last.take();
        let silent = || Error::Stalled {
            what: Arc::clone(&self.what),
            host: self.host.clone(),
            after: self.config.deadline,
        };
        Error::Deadline {
            after: self.config.deadline,
            last: Arc::new(last.unwrap_or_else(silent)),
        }
    }
}

/// A host that asked to be left alone is left alone by everyone.
#[derive(Default)]
pub(super) struct Gate(Mutex<Option<Instant>>);

impl Gate {
    /// Waits until the host may be asked again.
    pub(super) async fn pass(&self) {
        loop {
            let until = *self.0.lock();
            match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(rest) if !rest.is_zero() => sleep(rest).await,
                _ => return,
            }
        }
    }

    /// Whether there is something to wait for.
    pub(super) fn is_closed(&self) -> bool {
        self.0.lock().is_some_and(|until| Instant::now() < until)
    }

    /// Nobody asks for the next `pause`.
    pub(super) fn close(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut gate = self.0.lock();
        *gate = Some(gate.map_or(until, |old| old.max(until)));
    }
}

/// `Retry-After`: seconds or an HTTP date (RFC 9110, 10.2.3). Garbage is no wish.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

fn pauses(config: &Config) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(config.max_pause)
        .with_max_times(config.retries as usize)
        .with_jitter()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_lasts_is_told() {
        let traffic = Arc::new(Traffic::default());
        let told = Arc::new(Mutex::new(Vec::new()));
        let (begun, hears) = (Instant::now(), Arc::clone(&told));
        traffic.on_trouble(move |error| hears.lock().push((begun.elapsed(), error.to_string())));
        let what = Arc::from("manifest r.io/app:1");
        let config = Arc::new(Config {
            deadline: MOMENT * 3,
            ..Config::default()
        });
        let mut patience = Patience::new(&config, &traffic, &what, "r.io");
        let away = Error::Unreachable {
            what,
            host: "r.io".to_owned(),
            why: "refused".to_owned(),
        };
        while patience.after(away.clone()).await.is_ok() {}
        let told = told.lock();
        assert!(!told.is_empty());
        let mut all = told.iter();
        assert!(
            all.all(|(when, text)| *when >= MOMENT && text.contains("refused")),
            "{told:?}"
        );
    }
}
