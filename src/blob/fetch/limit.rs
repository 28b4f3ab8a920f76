//! The background's brakes, a rate limit and giving way to what is more pressing; and all others' one, the number of requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// How much of a second's budget may be spent at once.
const BURST: Duration = Duration::from_millis(100);
/// Longest time the background puts off a new request while what is known to be needed is fetched, which ends:
/// what a request has asked for takes its share of the link, whether or not anybody reads it.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Bytes per second, on average.
pub(super) struct RateLimit {
    /// 0 is no limit.
    rate: AtomicU64,
    /// When everything taken so far is paid for.
    paid: Mutex<Option<Instant>>,
}

impl RateLimit {
    pub(super) fn new(rate: u64) -> Self {
        Self {
            rate: rate.into(),
            paid: Mutex::new(None),
        }
    }

    /// From now on another rate; what waits already waits as long as it was told.
    pub(super) fn set(&self, rate: u64) {
        self.rate.store(rate, Ordering::Relaxed);
    }

    /// Bytes that one request should bring at most, so that it takes a moment's budget and no more.
    pub(super) fn part(&self) -> u64 {
        match self.rate.load(Ordering::Relaxed) {
            0 => u64::MAX,
            rate => rate / 4,
        }
    }

    /// Takes `bytes`, and waits until that is allowed.
    pub(super) async fn take(&self, bytes: u64) {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let now = Instant::now();
        let start = {
            let mut paid = self.paid.lock();
            let earliest = now.checked_sub(BURST).unwrap_or(now);
            let start = paid.map_or(now, |paid| paid.max(earliest));
            *paid = Some(start + cost);
            start
        };
        tokio::time::sleep_until(start).await;
    }
}

/// Counts what the background gives way to: prefetches under way.
#[derive(Default)]
pub(super) struct RightOfWay {
    arriving: AtomicUsize,
    clear: Notify,
}

impl RightOfWay {
    /// Something more pressing arrives until the guard is dropped.
    pub(super) fn enter(self: &Arc<Self>) -> Arriving {
        self.arriving.fetch_add(1, Ordering::Relaxed);
        Arriving(Arc::clone(self))
    }

    /// Waits while something more pressing arrives, at most so long.
    pub(super) async fn give(&self, longest: Duration) {
        let clear = self.clear.notified();
        // Looked at after the wait for a wake-up has begun, so that none is lost in between.
        tokio::pin!(clear);
        clear.as_mut().enable();
        if self.arriving.load(Ordering::Relaxed) > 0 {
            let _ = tokio::time::timeout(longest, clear).await;
        }
    }
}

/// See [`RightOfWay::enter`].
pub(in crate::blob) struct Arriving(Arc<RightOfWay>);

impl Drop for Arriving {
    fn drop(&mut self) {
        if self.0.arriving.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.clear.notify_waiters();
        }
    }
}

/// One of the requests that there may be at a time. It does not count while nothing comes: one dead registry must not keep the
/// others' from being asked. Where it comes to life again and all are taken there is one more, until one ends.
pub(super) struct Connection {
    all: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl Connection {
    /// Waits for one of `all`.
    pub(super) async fn of(all: &Arc<Semaphore>) -> Self {
        Self {
            held: Arc::clone(all).acquire_owned().await.ok(),
            all: Arc::clone(all),
        }
    }

    /// Nothing comes: another may have it.
    pub(super) fn let_go(&mut self) {
        self.held = None;
    }

    /// Something comes: it counts again, if there is one left.
    pub(super) fn take_up(&mut self) {
        if self.held.is_none() {
            self.held = Arc::clone(&self.all).try_acquire_owned().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn the_rate_is_held_on_average() {
        let limit = RateLimit::new(10_000);
        let start = Instant::now();
        for _ in 0..10 {
            limit.take(500).await;
        }
        // The first comes at once and the burst is free.
        assert!(
            start.elapsed() >= Duration::from_millis(300),
            "{:?}",
            start.elapsed()
        );
        let start = Instant::now();
        limit.set(0);
        limit.take(1 << 40).await;
        assert!(start.elapsed() < Duration::from_millis(100));
    }

    #[tokio::test]
    async fn the_background_gives_way_but_not_for_ever() {
        let way = Arc::new(RightOfWay::default());
        let start = Instant::now();
        way.give(SHORT).await;
        assert!(start.elapsed() < SHORT);
        let arriving = way.enter();
        let start = Instant::now();
        way.give(SHORT).await;
        assert!(start.elapsed() >= SHORT);
        drop(arriving);
        let start = Instant::now();
        way.give(SHORT).await;
        assert!(start.elapsed() < SHORT);
    }

    #[tokio::test]
    async fn a_request_that_nothing_comes_to_does_not_count_until_something_does() {
        let all = Arc::new(Semaphore::new(1));
        let mut stalled = Connection::of(&all).await;
        stalled.let_go();
        let other = Connection::of(&all).await;
        stalled.take_up();
        assert_eq!(all.available_permits(), 0);
        drop(other);
        assert_eq!(all.available_permits(), 1, "it was one more");
        stalled.take_up();
        stalled.take_up();
        assert_eq!(all.available_permits(), 0);
        drop(stalled);
        assert_eq!(all.available_permits(), 1);
    }
}
