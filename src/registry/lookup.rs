//! From names to addresses, by the system's resolver.
//!
//! It takes a thread for each name, for ten seconds and more while no name server answers, and nothing
//! can end it before. Other work needs those threads: so a name is looked up once for all who wait for
//! it, also for those who come when the first has given up, and not many names at a time. A look-up that
//! has been waiting for long is not joined: the name server may be back, and answer a new one at once.
//!
//! Locking: the map is locked to look at it and to change it, never across a look-up.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// Most names that are looked up at a time, of all hosts: a good part of what threads there are.
static AT_ONCE: Semaphore = Semaphore::const_new(24);

/// Look-ups older than this are not waited for by who comes.
const STALE: Duration = Duration::from_secs(2);

/// Addresses without a port that matters, or why there are none.
type Found = Result<Vec<SocketAddr>, Arc<str>>;

/// The latest look-up of each name, while it is under way.
#[derive(Default)]
pub(super) struct Lookups(Mutex<HashMap<String, Lookup>>);

#[derive(Clone)]
struct Lookup {
    begun: Instant,
    found: Shared<BoxFuture<'static, Found>>,
}

impl Lookups {
    /// The addresses of `host`, one at least.
    pub(super) async fn find(self: &Arc<Self>, host: &str) -> Found {
        self.find_by(host, |host| async move {
            let found = tokio::net::lookup_host((host.as_str(), 0)).await;
            let found: Vec<_> = found.map_err(|error| error.to_string())?.collect();
            match found.is_empty() {
                true => Err(format!("{host} has no address").into()),
                false => Ok(found),
            }
        })
        .await
    }

    async fn find_by<F>(self: &Arc<Self>, host: &str, resolve: impl FnOnce(String) -> F) -> Found
    where
        F: Future<Output = Found> + Send + 'static,
    {
        let found = {
            let mut all = self.0.lock();
            let young = all.get(host).filter(|known| known.begun.elapsed() < STALE);
            match young {
                Some(under_way) => under_way.found.clone(),
                None => {
                    let begun = Instant::now();
                    let found = self.begin(host, begun, resolve(host.to_owned()));
                    let lookup = Lookup {
                        begun,
                        found: found.clone(),
                    };
                    all.insert(host.to_owned(), lookup);
                    found
                }
            }
        };
        found.await
    }

    /// In a task of its own: who gives up waiting does not end it for the others.
    fn begin(
        self: &Arc<Self>,
        host: &str,
        begun: Instant,
        resolve: impl Future<Output = Found> + Send + 'static,
    ) -> Shared<BoxFuture<'static, Found>> {
        let (this, name) = (Arc::clone(self), host.to_owned());
        let task = tokio::spawn(async move {
            // Never closed.
            let _turn = AT_ONCE.acquire().await;
            let found = resolve.await;
            let mut all = this.0.lock();
            if all.get(&name).is_some_and(|latest| latest.begun == begun) {
                all.remove(&name);
            }
            found
        });
        let found = task.map(|done| done.unwrap_or_else(|error| Err(error.to_string().into())));
        found.boxed().shared()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_name_is_looked_up_once_for_all_who_wait_and_anew_after_that() {
        let (lookups, asked) = (Arc::new(Lookups::default()), Arc::new(AtomicUsize::new(0)));
        let find = |name: &'static str| {
            let (lookups, asked) = (Arc::clone(&lookups), Arc::clone(&asked));
            async move {
                let resolve = |_| async move {
                    asked.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    Err("nobody answers".into())
                };
                lookups.find_by(name, resolve).await
            }
        };
        // One that gives up early does not end it for the others.
        let hasty = tokio::time::timeout(Duration::from_millis(20), find("a")).await;
        assert!(hasty.is_err());
        let all = futures::future::join_all([find("a"), find("a"), find("b")]).await;
        assert!(all.iter().all(|found| found.is_err()));
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        assert_eq!(&*find("a").await.unwrap_err(), "nobody answers");
        assert_eq!(asked.load(Ordering::SeqCst), 3);
        assert!(lookups.0.lock().is_empty());
    }

    #[tokio::test]
    async fn this_machine_has_a_name() {
        let found = Arc::new(Lookups::default()).find("localhost").await;
        assert!(found.unwrap().iter().all(|found| found.ip().is_loopback()));
    }
}
