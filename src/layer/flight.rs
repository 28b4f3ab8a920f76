//! Work that several callers wait for and that is done once: single-flight by key.
//!
//! # Locking
//! The map's lock is held to look up and insert only, never while work runs. The work is a task of
//! its own: it goes on when all who wait for it go away, so that a `Prepare` that is tried again
//! finds it done.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tracing::Instrument as _;

use crate::layer::NotLazy;

/// The outcome of one piece of work, for any number of waiters.
pub(super) type Outcome<V> = Shared<BoxFuture<'static, Result<V, NotLazy>>>;

struct Flight<V: Clone> {
    outcome: Outcome<V>,
    started: Instant,
}

impl<V: Clone> Flight<V> {
    /// A success is worth keeping for a while, a failure is not: the next caller tries again.
    fn is_stale(&self, keep: Duration) -> bool {
        match self.outcome.peek() {
            None => false,
            Some(Ok(_)) => self.started.elapsed() > keep,
            Some(Err(_)) => true,
        }
    }
}

/// Pieces of work under way, and for `keep` after their start the results of those that succeeded.
pub(super) struct Flights<K, V: Clone> {
    keep: Duration,
    flights: Mutex<HashMap<K, Flight<V>>>,
}

impl<K, V> Flights<K, V>
where
    K: Eq + Hash,
    V: Clone + Send + Sync + 'static,
{
    pub(super) fn new(keep: Duration) -> Self {
        Self {
            keep,
            flights: Mutex::new(HashMap::new()),
        }
    }

    /// Begins anew for whoever comes next. Work under way goes on for those who wait for it.
    pub(super) fn forget(&self, key: &K) {
        self.flights.lock().remove(key);
    }

    /// The outcome for `key`: of work under way, of work done before, or of `work`, started now.
    /// Must be called within a tokio runtime.
    pub(super) fn join<F>(&self, key: K, work: F) -> Outcome<V>
    where
        F: Future<Output = Result<V, NotLazy>> + Send + 'static,
    {
        let mut flights = self.flights.lock();
        flights.retain(|_, flight| !flight.is_stale(self.keep));
        let flight = flights.entry(key).or_insert_with(|| {
            let task = tokio::spawn(work.in_current_span());
            let outcome = async move {
                let lost = |error: tokio::task::JoinError| NotLazy::Internal(error.to_string());
                task.await.unwrap_or_else(|error| Err(lost(error)))
            };
            Flight {
                outcome: outcome.boxed().shared(),
                started: Instant::now(),
            }
        });
        flight.outcome.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    async fn work(runs: Arc<AtomicU32>, fail: bool) -> Result<u32, NotLazy> {
        let run = runs.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(5)).await;
        if fail {
            Err(NotLazy::PlainGzip)
        } else {
            Ok(run)
        }
    }

    #[tokio::test]
    async fn all_who_come_together_share_one_run() {
        let (flights, runs) = (Flights::new(Duration::from_secs(60)), Arc::default());
        let waiters = (0..8).map(|_| flights.join("key", work(Arc::clone(&runs), false)));
        let outcomes = futures::future::join_all(waiters.collect::<Vec<_>>()).await;
        assert_eq!(outcomes, vec![Ok(0); 8]);
        assert_eq!(
            flights.join("key", work(Arc::clone(&runs), false)).await,
            Ok(0),
            "kept"
        );
        let other = flights.join("other", work(Arc::clone(&runs), false));
        assert_eq!(other.await, Ok(1));
        flights.forget(&"key");
        assert_eq!(flights.join("key", work(runs, false)).await, Ok(2));
    }

    #[tokio::test]
    async fn a_failure_is_not_kept() {
        let (flights, runs) = (Flights::new(Duration::from_secs(60)), Arc::default());
        let failed = flights.join("key", work(Arc::clone(&runs), true)).await;
        assert_eq!(failed, Err(NotLazy::PlainGzip));
        assert_eq!(flights.join("key", work(runs, false)).await, Ok(1));
    }

    #[tokio::test]
    async fn work_goes_on_without_waiters() {
        let (flights, runs) = (
            Flights::new(Duration::from_secs(60)),
            Arc::<AtomicU32>::default(),
        );
        drop(flights.join("key", work(Arc::clone(&runs), false)));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error_for_its_waiters() {
        let flights = Flights::<_, u32>::new(Duration::ZERO);
        let outcome = flights.join("key", async { panic!("on purpose") }).await;
        assert!(matches!(outcome, Err(NotLazy::Internal(_))), "{outcome:?}");
    }
}
