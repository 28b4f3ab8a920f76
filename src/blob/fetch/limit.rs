//! The background's brakes: a rate limit, giving way to what is more pressing, and whether readers
//! have waited lately.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How much of a second's budget may be spent at once.
const BURST: Duration = Duration::from_millis(100);
/// Longest time the background gives way before it takes one more piece: a registry must not
/// take it for dead, and a node whose readers never rest must get done as well.
pub(super) const LONGEST_YIELD: Duration = Duration::from_millis(50);
/// Longest time it puts off a new request while what is known to be needed is fetched, which ends:
/// what a request has asked for takes its share of the link, whether or not anybody reads it.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How long the link's speed is measured for one figure, and what of the best figure is left with each new one.
const SAMPLE: Duration = Duration::from_millis(50);
const FADE: f64 = 0.98;

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

    /// Takes `bytes`, and waits until that is allowed.
    pub(super) async fn take(&self, bytes: usize) {
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

/// How fast the link is: the best of what was seen lately.
#[derive(Default)]
pub(super) struct LinkSpeed {
    /// Bytes that have come so far.
    received: AtomicU64,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// When the rate was last taken, and what had come then.
    last: Option<(Instant, u64)>,
    /// Bytes per second.
    best: f64,
}

impl LinkSpeed {
    /// Counts what has come.
    pub(super) fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The best rate seen lately, in bytes per second; 0 until one is known.
    pub(super) fn best(&self) -> f64 {
        // Takes a sample if one is due.
        let _ = self.time_for(0);
        self.seen.lock().best
    }

    /// How long `bytes` more would take; no time until it is known.
    pub(super) fn time_for(&self, bytes: u64) -> Duration {
        let (now, received) = (Instant::now(), self.received.load(Ordering::Relaxed));
        let mut seen = self.seen.lock();
        let (start, before) = *seen.last.get_or_insert((now, received));
        let span = now - start;
        if span >= SAMPLE {
            let rate = (received - before) as f64 / span.as_secs_f64();
            seen.best = rate.max(seen.best * FADE);
            seen.last = Some((now, received));
        }
        match seen.best > 0.0 {
            true => Duration::try_from_secs_f64(bytes as f64 / seen.best).unwrap_or(Duration::MAX),
            false => Duration::ZERO,
        }
    }
}

/// When a reader of any layer last had to wait.
pub(super) struct LastMiss {
    start: Instant,
    /// Milliseconds since `start`, and one; 0 is never.
    at: AtomicU64,
}

impl LastMiss {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            at: AtomicU64::new(0),
        }
    }

    /// A reader has to wait now; yields a number that grows from miss to miss.
    pub(super) fn note(&self) -> u64 {
        let now = self.now();
        self.at.store(now, Ordering::Relaxed);
        now
    }

    /// Whether that was less than `span` ago.
    pub(super) fn is_within(&self, span: Duration) -> bool {
        let at = self.at.load(Ordering::Relaxed);
        at > 0 && u128::from(self.now() - at.min(self.now())) < span.as_millis()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).map_or(u64::MAX, |now| now + 1)
    }
}

/// Counts what the background gives way to: answers that readers wait for while their bytes arrive,
/// or prefetches under way.
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

#[cfg(test)]
mod tests {
    use super::*;

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
    async fn the_speed_of_the_link_is_the_best_seen() {
        let link = LinkSpeed::default();
        assert_eq!(link.time_for(1 << 40), Duration::ZERO, "not known yet");
        link.received(1_000_000);
        let start = Instant::now();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let seen = link.time_for(5_000_000);
        let most = start.elapsed() * 5 + Duration::from_millis(100);
        assert!(
            seen >= Duration::from_millis(500) && seen <= most,
            "{seen:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
        let idle = link.time_for(5_000_000);
        assert!(idle > seen && idle < seen.mul_f64(1.05), "{idle:?}");
    }

    #[tokio::test]
    async fn the_background_waits_for_readers_but_not_for_ever() {
        let way = Arc::new(RightOfWay::default());
        let start = Instant::now();
        way.give(LONGEST_YIELD).await;
        assert!(start.elapsed() < LONGEST_YIELD);
        let arriving = way.enter();
        let start = Instant::now();
        way.give(LONGEST_YIELD).await;
        assert!(start.elapsed() >= LONGEST_YIELD);
        drop(arriving);
        let start = Instant::now();
        way.give(LONGEST_YIELD).await;
        assert!(start.elapsed() < LONGEST_YIELD);
    }
}
