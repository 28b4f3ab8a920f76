//! How much is asked for at a time: enough to keep the link full, and hardly more.
//!
//! What was asked for and has not arrived stands in line before whatever a reader asks for next, and what does not fit into
//! the queues on the way is lost and stalls its connection for a tenth of a second or more. So what nobody waits for
//! yet is only asked for while less than a *window* of bytes is under way.
//!
//! The window follows the answers. One that begins late, measured against the earliest of its layer, stood in a queue that we
//! filled: the window shrinks by an eighth. One that begins in time although the window was full widens it, slowly. It never
//! falls below twice what the line itself holds, the link's rate times that earliest delay. A registry that limits each
//! connection, and not the link, delays no beginning, and so gets more requests at a time.
//!
//! Measured (Python with numpy, no profile, quiet, medians of 3 to 4 in turn; before this four requests of 2 MiB at any time, where
//! one or two of 25 readers who waited did so for 130 to 160 ms instead of 20, at 10 ms and 1 Gbit/s): there 1.42 s before,
//! 1.03 now; at 50 ms and 200 Mbit/s 4.81 and 3.36. Least windows of 1.25, 1.5, 2, 2.5 and 3 times what the line holds: 1.11, 1.18,
//! 1.00, 1.04, 1.20 s, and 3.35, 3.38, 3.36, 3.28, 4.07 s. Requests of a fourth or fifth of the window are more work than use (1.16 s).
//! A list of what a start needs is cut as well, though it is known as a whole: at 50 ms and 200 Mbit/s 1.50 s in one request, 1.51 in
//! requests of 1 MiB, 1.35 in parts of the window, 1.35 in parts of 384 KiB; at 10 ms and 1 Gbit/s no difference, and 5 % more in the last.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The window while nothing is known of the link, in bytes.
const START: u64 = 2 << 20;
const LEAST: u64 = 64 << 10;
const MOST: u64 = 16 << 20;
/// The least window, in what the line alone holds: what is asked for in parts is on its way half of the time.
const GAIN: f64 = 2.0;
/// An answer is late if it begins after 5/4 of the earliest delay and so long: less is the machine's noise.
const SLACK: Duration = Duration::from_millis(3);
/// Requests that a window is cut into, and the bounds of one, in bytes.
const PARTS: u64 = 3;
const PART: (u64, u64) = (256 << 10, 2 << 20);

/// How long the link's speed is measured for one figure, and what of the best figure is left with each new one.
const SAMPLE: Duration = Duration::from_millis(50);
const FADE: f64 = 0.98;
/// How long the earliest delay counts, at least; twice that at most.
const MEMORY: Duration = Duration::from_secs(30);

/// The link of the node, as all layers use it.
pub(super) struct Window {
    /// Asked for and not arrived.
    under_way: AtomicU64,
    /// Those who wait for room and go before the background.
    preferred: AtomicUsize,
    size: AtomicU64,
    rate: Rate,
    room: Notify,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            under_way: AtomicU64::new(0),
            preferred: AtomicUsize::new(0),
            size: START.into(),
            rate: Rate::default(),
            room: Notify::new(),
        }
    }
}

impl Window {
    /// `bytes` are asked for.
    pub(super) fn ask(self: &Arc<Self>, bytes: u64) -> Asked {
        let under_way = self.under_way.fetch_add(bytes, Ordering::Relaxed) + bytes;
        Asked {
            fills: under_way >= self.size.load(Ordering::Relaxed),
            window: Arc::clone(self),
            left: bytes,
        }
    }

    /// Whether more may be asked for that nobody waits for yet.
    pub(super) fn has_room(&self) -> bool {
        self.under_way.load(Ordering::Relaxed) < self.size.load(Ordering::Relaxed)
    }

    /// The same for the background, which lets all others go first.
    pub(super) fn has_spare_room(&self) -> bool {
        self.has_room() && self.preferred.load(Ordering::Relaxed) == 0
    }

    /// Waits until there is room, or `otherwise` happens. While what this yields lives, the background stays behind.
    pub(super) async fn wait(&self, otherwise: impl Future<Output = ()>) -> Preferred<'_> {
        let preferred = Preferred::new(self);
        self.until(|| self.has_room(), otherwise).await;
        preferred
    }

    /// Waits until there is room that nobody else waits for.
    pub(super) async fn wait_spare(&self) {
        self.until(|| self.has_spare_room(), std::future::pending())
            .await;
    }

    async fn until(&self, enough: impl Fn() -> bool, otherwise: impl Future<Output = ()>) {
        tokio::pin!(otherwise);
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            // Looked at after the wait for a wake-up has begun, so that none is lost in between.
            room.as_mut().enable();
            if enough() {
                return;
            }
            tokio::select! {
                () = room => {}
                () = &mut otherwise => return,
            }
        }
    }

    /// Compressed bytes that one request should bring at most.
    pub(super) fn part(&self) -> u64 {
        (self.size.load(Ordering::Relaxed) / PARTS).clamp(PART.0, PART.1)
    }

    /// The best rate seen lately, in bytes per second; 0 until one is known.
    pub(super) fn best_rate(&self) -> f64 {
        self.rate.best()
    }
}

/// One who waits for room, or has been let in.
pub(super) struct Preferred<'a>(&'a Window);

impl<'a> Preferred<'a> {
    fn new(window: &'a Window) -> Self {
        window.preferred.fetch_add(1, Ordering::Relaxed);
        Self(window)
    }
}

impl Drop for Preferred<'_> {
    fn drop(&mut self) {
        if self.0.preferred.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.room.notify_waiters();
        }
    }
}

/// What one request has asked for and not received; dropping it gives the rest up.
pub(super) struct Asked {
    window: Arc<Window>,
    left: u64,
    /// Whether the window was full with it.
    fills: bool,
}

impl Asked {
    /// What of it has not come.
    pub(super) const fn bytes(&self) -> u64 {
        self.left
    }

    /// The answer began `delay` after its request.
    pub(super) fn began(&self, delay: Duration, delays: &Delays) {
        let window = &self.window;
        let earliest = delays.note(delay);
        let on_the_line = window.rate.best() * earliest.as_secs_f64() * GAIN;
        let least = (on_the_line as u64).clamp(LEAST, MOST);
        let late = delay > earliest * 5 / 4 + SLACK;
        let next = |size: u64| {
            let size = match late {
                true => size - size / 8,
                false if self.fills => size + size / 32,
                false => size,
            };
            Some(size.clamp(least, MOST))
        };
        // Several may be told at once; each counts.
        let _ = window
            .size
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        if window.has_room() {
            window.room.notify_waiters();
        }
    }

    /// So many bytes have come.
    pub(super) fn arrived(&mut self, bytes: usize) {
        self.window.rate.received(bytes);
        self.less(bytes as u64);
    }

    /// What has not come is not on its way: it does not count until it comes.
    pub(super) fn give_up(&mut self) {
        self.less(self.left);
    }

    fn less(&mut self, bytes: u64) {
        let bytes = bytes.min(self.left);
        self.left -= bytes;
        let before = self.window.under_way.fetch_sub(bytes, Ordering::Relaxed);
        let size = self.window.size.load(Ordering::Relaxed);
        if before >= size && before - bytes < size {
            self.window.room.notify_waiters();
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.less(self.left);
    }
}

/// How soon answers begin at the earliest, for one layer: it knows its registry.
#[derive(Default)]
pub(super) struct Delays(Mutex<Earliest>);

#[derive(Default)]
struct Earliest {
    /// When the span that is measured now began.
    since: Option<Instant>,
    now: Duration,
    before: Option<Duration>,
}

impl Delays {
    /// Notes one and yields the earliest.
    fn note(&self, delay: Duration) -> Duration {
        let mut seen = self.0.lock();
        match seen.since {
            Some(since) if since.elapsed() < MEMORY => seen.now = seen.now.min(delay),
            since => {
                seen.before = since.map(|_| seen.now);
                (seen.since, seen.now) = (Some(Instant::now()), delay);
            }
        }
        seen.before.map_or(seen.now, |before| before.min(seen.now))
    }
}

/// How fast the link is: the best of what was seen lately.
#[derive(Default)]
struct Rate {
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

impl Rate {
    /// Counts what has come.
    fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// In bytes per second; 0 until one is known.
    fn best(&self) -> f64 {
        let (now, received) = (Instant::now(), self.received.load(Ordering::Relaxed));
        let mut seen = self.seen.lock();
        let (start, before) = *seen.last.get_or_insert((now, received));
        let span = now - start;
        if span >= SAMPLE {
            let rate = (received - before) as f64 / span.as_secs_f64();
            seen.best = rate.max(seen.best * FADE);
            seen.last = Some((now, received));
        }
        seen.best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(10);

    fn size(window: &Window) -> u64 {
        window.size.load(Ordering::Relaxed)
    }

    /// Asks for parts until the window is full; each answer begins after `delay`.
    fn fill(window: &Arc<Window>, delays: &Delays, delay: Duration) -> Vec<Asked> {
        let mut parts = Vec::new();
        while window.has_room() {
            parts.push(window.ask(window.part()));
        }
        parts.iter().for_each(|part| part.began(delay, delays));
        parts
    }

    #[test]
    fn answers_in_time_widen_it_and_late_ones_narrow_it() {
        let (window, delays) = (Arc::<Window>::default(), Delays::default());
        let few = window.ask(1);
        few.began(RTT, &delays);
        assert_eq!(
            size(&window),
            START,
            "one that did not fill it says nothing"
        );
        drop(few);
        for _ in 0..200 {
            drop(fill(&window, &delays, RTT));
        }
        assert_eq!(size(&window), MOST);
        for _ in 0..200 {
            drop(fill(&window, &delays, RTT * 5 / 4 + SLACK));
        }
        assert_eq!(size(&window), MOST, "that much is noise");
        for _ in 0..200 {
            drop(fill(&window, &delays, RTT * 2));
        }
        assert_eq!(size(&window), LEAST);
        assert_eq!(window.part(), PART.0);
    }

    #[tokio::test]
    async fn it_never_falls_below_what_keeps_the_link_full() {
        let (window, delays) = (Arc::<Window>::default(), Delays::default());
        let mut asked = window.ask(100 << 20);
        let start = Instant::now();
        assert_eq!(window.best_rate(), 0.0, "not known yet");
        tokio::time::sleep(SAMPLE * 2).await;
        asked.arrived(10_000_000);
        let rate = window.best_rate();
        let most = 10_000_000.0 / (SAMPLE * 2).as_secs_f64();
        let least = 10_000_000.0 / start.elapsed().as_secs_f64();
        assert!(rate >= least && rate <= most, "{rate}");
        asked.began(RTT, &delays);
        for _ in 0..50 {
            asked.began(RTT * 3, &delays);
        }
        let line = window.best_rate() * RTT.as_secs_f64() * GAIN;
        let size = size(&window) as f64;
        assert!(size > line * 0.9 && size < line * 1.2, "{size}, {line}");
        tokio::time::sleep(SAMPLE * 2).await;
        let idle = window.best_rate();
        assert!(idle < rate && idle > rate * 0.9, "{idle}");
    }

    #[tokio::test]
    async fn who_waits_is_let_in_before_the_background() {
        let window = Arc::<Window>::default();
        let mut full = window.ask(START);
        assert!(!window.has_room());
        let reader = async {
            let _preferred = window.wait(std::future::pending()).await;
            assert!(window.has_room() && !window.has_spare_room());
            window.ask(START)
        };
        let background = async {
            window.wait_spare().await;
            Instant::now()
        };
        let registry = async move {
            tokio::time::sleep(RTT).await;
            full.arrived(1);
            full
        };
        let given = async {
            let (full, asked) = tokio::join!(registry, reader);
            tokio::time::sleep(RTT).await;
            let when = Instant::now();
            drop(asked);
            drop(full);
            when
        };
        let (when, let_in) = tokio::join!(given, background);
        assert!(let_in >= when);
        // A request that stalls is in nobody's way.
        let mut stalled = window.ask(START);
        assert!(!window.has_room());
        stalled.give_up();
        assert!(window.has_spare_room());
        stalled.arrived(10);
        drop(stalled);
        assert_eq!(window.under_way.load(Ordering::Relaxed), 0);
        // And who finds something better to do need not wait.
        let _full = window.ask(START);
        drop(window.wait(std::future::ready(())).await);
    }

    #[test]
    fn the_earliest_delay_is_forgotten_in_time() {
        let delays = Delays::default();
        assert_eq!(delays.note(RTT), RTT);
        assert_eq!(delays.note(RTT * 2), RTT);
        let age = |delays: &Delays| {
            let mut seen = delays.0.lock();
            seen.since = seen.since.and_then(|since| since.checked_sub(MEMORY));
        };
        age(&delays);
        assert_eq!(delays.note(RTT * 3), RTT, "the last span still counts");
        age(&delays);
        assert_eq!(delays.note(RTT * 4), RTT * 3);
    }
}
