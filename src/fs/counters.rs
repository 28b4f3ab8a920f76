//! What happened on one mount, counted.
//!
//! Locking: none; the numbers are each right, not all of one moment.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use fuser::Errno;
use tracing::warn;

use crate::fs::failure::Failure;
use crate::fs::latency::{Histogram, Latencies};
use crate::fs::{Error, errno};
use crate::oci::Digest;

/// What times of reads are counted from. Taken before the first mount is served.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Counts since the mount began to be served by this process.
#[derive(Debug, Default)]
pub struct Counters {
    /// Reads answered from what is held here.
    hits: Histogram,
    hit_bytes: AtomicU64,
    /// Reads that had to fetch, and got it.
    fetched: Histogram,
    fetched_bytes: AtomicU64,
    misses: AtomicU64,
    passed: AtomicU64,
    populated: AtomicU64,
    failures: [AtomicU64; Failure::ALL.len()],
    /// Milliseconds from the start of the process to the last read, and one; 0 is never.
    last_read: AtomicU64,
    begun: AtomicU64,
    ended: AtomicU64,
    fetching: AtomicU64,
    parting: AtomicBool,
    parked: AtomicUsize,
}

/// How far a mount's FUSE threads are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turns {
    begun: u64,
    ended: u64,
    /// Whether requests lie in the kernel's queue.
    queued: bool,
}

impl Turns {
    /// Whether nothing has moved since `before` although there was something to do: a thread was at a
    /// request and still is, or requests lay in the queue and still do.
    #[must_use]
    pub fn is_stuck_since(&self, before: Option<&Self>) -> bool {
        let still = |before: &Self| (before.begun, before.ended) == (self.begun, self.ended);
        before.is_some_and(|before| {
            still(before) && (self.begun > self.ended || self.queued && before.queued)
        })
    }
}

/// A read that waits for the network, until it is dropped.
pub(super) struct Fetching(Arc<Counters>);

impl Fetching {
    pub(super) fn new(counters: &Arc<Counters>) -> Self {
        counters.fetching.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(counters))
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        // The reply, dropped as well, answers EIO.
        if std::thread::panicking() {
            self.0.panic();
        }
        self.0.fetching.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A copy of the counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads answered from what is held here.
    pub hits: u64,
    /// Reads that had to fetch.
    pub misses: u64,
    /// Opens of files that the kernel then read by itself.
    pub passed: u64,
    /// Requests answered with an error that means something is wrong; deadlines and panics too.
    pub failures: u64,
    /// Reads given up after the deadline.
    pub deadlines: u64,
    /// Requests that panicked.
    pub panics: u64,
}

/// A copy of the counts of one mount or of several, in full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Reads answered from what is held here, and how long that took.
    pub hits: Latencies,
    /// Bytes that these were answered with.
    pub hit_bytes: u64,
    /// Reads that had to fetch and got it, and how long that took.
    pub fetched: Latencies,
    /// Bytes that these were answered with.
    pub fetched_bytes: u64,
    /// Opens of files that the kernel then read by itself.
    pub passed: u64,
    /// Small files stored in the page cache ahead of their reader.
    pub populated: u64,
    /// Requests answered with an error that means something is wrong, by [`Failure::index`].
    pub failures: [u64; Failure::ALL.len()],
    /// Reads that wait for the network now.
    pub waiting: u64,
}

impl Totals {
    /// Adds another mount's.
    pub(super) fn add(&mut self, other: &Self) {
        self.hits.add(&other.hits);
        self.hit_bytes += other.hit_bytes;
        self.fetched.add(&other.fetched);
        self.fetched_bytes += other.fetched_bytes;
        self.passed += other.passed;
        self.populated += other.populated;
        self.waiting += other.waiting;
        for (own, other) in self.failures.iter_mut().zip(other.failures) {
            *own += other;
        }
    }
}

impl Counters {
    /// The counts now.
    pub fn get(&self) -> Counts {
        let totals = self.totals();
        let of = |failure: Failure| totals.failures.get(failure.index()).copied();
        Counts {
            hits: totals.hits.count(),
            misses: self.misses.load(Ordering::Relaxed),
            passed: totals.passed,
            failures: totals.failures.iter().sum(),
            deadlines: of(Failure::Deadline).unwrap_or(0),
            panics: of(Failure::Panic).unwrap_or(0),
        }
    }

    /// The same in full.
    pub(super) fn totals(&self) -> Totals {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let mut failures = [0; Failure::ALL.len()];
        for (copy, count) in failures.iter_mut().zip(&self.failures) {
            *copy = get(count);
        }
        Totals {
            hits: self.hits.get(),
            hit_bytes: get(&self.hit_bytes),
            fetched: self.fetched.get(),
            fetched_bytes: get(&self.fetched_bytes),
            passed: get(&self.passed),
            populated: get(&self.populated),
            failures,
            waiting: self.fetching(),
        }
    }

    /// How long ago the last read came; `None` if none has.
    pub fn since_last_read(&self) -> Option<Duration> {
        let last = self.last_read.load(Ordering::Relaxed).checked_sub(1)?;
        let now = START.elapsed();
        Some(now.saturating_sub(Duration::from_millis(last)))
    }

    /// How far the threads are; `queued` is what the device says.
    pub fn turns(&self, queued: bool) -> Turns {
        // In this order a request that ends in between looks like one that goes on, not the reverse.
        let ended = self.ended.load(Ordering::SeqCst);
        let begun = self.begun.load(Ordering::SeqCst);
        Turns {
            begun,
            ended,
            queued,
        }
    }

    /// From now on a thread that has answered reads no further request.
    pub(super) fn part(&self) {
        self.parting.store(true, Ordering::SeqCst);
    }

    /// Stops the calling thread for ever if this process is about to end. To be called between two
    /// requests.
    pub(super) fn park(&self) {
        if self.parting.load(Ordering::SeqCst) {
            self.parked.fetch_add(1, Ordering::SeqCst);
            loop {
                std::thread::park();
            }
        }
    }

    /// Threads that read no further request.
    pub(super) fn parked(&self) -> usize {
        self.parked.load(Ordering::SeqCst)
    }

    /// Reads that wait for the network.
    pub(super) fn fetching(&self) -> u64 {
        self.fetching.load(Ordering::SeqCst)
    }

    pub(super) fn begin(&self) {
        self.begun.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn end(&self) {
        self.ended.fetch_add(1, Ordering::SeqCst);
    }

    /// A read that came at `came` was answered from what is held here.
    pub(super) fn hit(&self, came: Instant, bytes: usize) {
        self.note_read(came);
        self.hits.count(came.elapsed());
        self.hit_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A read that came at `came` has to fetch.
    pub(super) fn miss(&self, came: Instant) {
        self.note_read(came);
        self.misses.fetch_add(1, Ordering::Relaxed);
    }

    /// It got what it fetched.
    pub(super) fn fetched(&self, came: Instant, bytes: usize) {
        self.fetched.count(came.elapsed());
        self.fetched_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn note_read(&self, came: Instant) {
        let millis = came.saturating_duration_since(*START).as_millis();
        let millis = u64::try_from(millis).map_or(u64::MAX, |millis| millis + 1);
        self.last_read.store(millis, Ordering::Relaxed);
    }

    fn fail(&self, failure: Failure) -> u64 {
        if let Some(count) = self.failures.get(failure.index()) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let all = self.failures.iter();
        all.map(|count| count.load(Ordering::Relaxed)).sum()
    }

    pub(super) fn pass_through(&self) {
        self.passed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn populate(&self, files: u64) {
        self.populated.fetch_add(files, Ordering::Relaxed);
    }

    pub(super) fn panic(&self) {
        self.fail(Failure::Panic);
    }

    /// What the kernel is told of an error. A failure is counted, and logged if it is the first,
    /// second, fourth, eighth … of the mount: a broken layer under a busy reader must not fill
    /// the log.
    pub(super) fn refuse(
        &self,
        layer: &Digest,
        request: &'static str,
        ino: u64,
        error: &Error,
    ) -> Errno {
        if let Some(failure) = Failure::of(error) {
            let failures = self.fail(failure);
            let reason = failure.name();
            if failures.is_power_of_two() {
                warn!(%layer, request, ino, reason, %error, failures, "a request failed");
            }
        }
        errno::of(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_stuck_that_is_at_the_same_request_twice() {
        let counters = Counters::default();
        let turns = || counters.turns(false);
        counters.begin();
        let first = turns();
        assert!(!first.is_stuck_since(None), "it may have just begun");
        assert!(turns().is_stuck_since(Some(&first)));
        counters.end();
        let idle = turns();
        assert!(!idle.is_stuck_since(Some(&first)));
        assert!(!turns().is_stuck_since(Some(&idle)), "nothing to do");
        counters.begin();
        assert!(!turns().is_stuck_since(Some(&first)), "another request");
    }

    #[test]
    fn a_queue_is_stuck_that_nobody_reads() {
        let counters = Counters::default();
        let queued = counters.turns(true);
        assert!(!queued.is_stuck_since(Some(&counters.turns(false))));
        assert!(counters.turns(true).is_stuck_since(Some(&queued)));
        assert!(!counters.turns(false).is_stuck_since(Some(&queued)));
        counters.begin();
        counters.end();
        assert!(
            !counters.turns(true).is_stuck_since(Some(&queued)),
            "served"
        );
    }
}
