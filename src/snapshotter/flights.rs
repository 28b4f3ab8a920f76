//! One attempt for all who want the same thing at the same time.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tracing::Instrument as _;

type Flight<T> = Shared<BoxFuture<'static, Option<T>>>;

/// Attempts under way, by what they are for.
pub(super) struct Flights<K, T>(Arc<Mutex<HashMap<K, Flight<T>>>>);

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Clone + Eq + Hash + Send + 'static, T: Clone + Send + Sync + 'static> Flights<K, T> {
    /// Joins the attempt for `key` that is under way, or starts one. It runs to its end whether or
    /// not anyone waits. `None` if it panicked.
    pub(super) async fn join<F>(&self, key: &K, start: impl FnOnce() -> F) -> Option<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let flight = {
            let mut flights = self.0.lock();
            if let Some(flight) = flights.get(key) {
                flight.clone()
            } else {
                let attempt = start();
                let landing = Landing {
                    key: key.clone(),
                    flights: Arc::clone(&self.0),
                };
                let landed = async move {
                    let _landing = landing;
                    attempt.await
                };
                let task = tokio::spawn(landed.in_current_span());
                let flight = task.map(Result::ok).boxed().shared();
                flights.insert(key.clone(), flight.clone());
                flight
            }
        };
        flight.await
    }

    /// Whether an attempt for `key` is under way.
    pub(super) fn has(&self, key: &K) -> bool {
        self.0.lock().contains_key(key)
    }

    /// Whether no attempt at all is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}

/// Takes the attempt off the list when it ends, however it ends.
struct Landing<K: Eq + Hash, T> {
    key: K,
    flights: Arc<Mutex<HashMap<K, Flight<T>>>>,
}

impl<K: Eq + Hash, T> Drop for Landing<K, T> {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.key);
    }
}
