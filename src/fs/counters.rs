//! What happened on one mount, counted.
//!
//! Locking: none; the numbers are each right, not all of one moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use fuser::Errno;
use tracing::warn;

use crate::fs::{Error, errno};
use crate::oci::Digest;

/// Counts since the mount began to be served by this process.
#[derive(Debug, Default)]
pub struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    passed: AtomicU64,
    failures: AtomicU64,
    deadlines: AtomicU64,
    panics: AtomicU64,
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

impl Counters {
    /// The counts now.
    pub fn get(&self) -> Counts {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            hits: get(&self.hits),
            misses: get(&self.misses),
            passed: get(&self.passed),
            failures: get(&self.failures),
            deadlines: get(&self.deadlines),
            panics: get(&self.panics),
        }
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

    pub(super) fn hit(&self) {
        self.hits.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn miss(&self) {
        self.misses.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn pass_through(&self) {
        self.passed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
        self.failures.fetch_add(1, Ordering::Relaxed);
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
        if errno::is_failure(error) {
            if matches!(error, Error::Deadline(_)) {
                self.deadlines.fetch_add(1, Ordering::Relaxed);
            }
            let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
            if failures.is_power_of_two() {
                warn!(%layer, request, ino, %error, failures, "a request failed");
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
