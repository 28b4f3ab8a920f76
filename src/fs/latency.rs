//! How long reads took: a histogram of plain counters, for the way of a cached read.
//!
//! Locking: none. Counting is two additions and allocates nothing; a copy is not of one moment.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets, in microseconds; what took longer is in one more.
pub const BOUNDS: [u64; 18] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000,
    500_000, 1_000_000, 5_000_000, 30_000_000,
];

/// [`Latencies`] while they change.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// Nanoseconds in all: 580 years of them.
    sum: AtomicU64,
}

/// How many reads took how long.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Latencies {
    /// Reads within each of [`BOUNDS`] and above the one before, then those beyond the last.
    pub buckets: [u64; BOUNDS.len() + 1],
    /// All of their time, in nanoseconds.
    pub sum: u64,
}

impl Histogram {
    pub(super) fn count(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        // Most are in the first ones, and the whole array is in two lines of the cache.
        let place = BOUNDS.iter().position(|bound| nanos <= bound * 1000);
        if let Some(bucket) = self.buckets.get(place.unwrap_or(BOUNDS.len())) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> Latencies {
        let mut copy = Latencies {
            sum: self.sum.load(Ordering::Relaxed),
            ..Latencies::default()
        };
        for (copy, bucket) in copy.buckets.iter_mut().zip(&self.buckets) {
            *copy = bucket.load(Ordering::Relaxed);
        }
        copy
    }
}

impl Latencies {
    /// How many reads.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Adds those of another mount.
    pub(super) fn add(&mut self, other: &Self) {
        for (own, other) in self.buckets.iter_mut().zip(other.buckets) {
            *own += other;
        }
        self.sum = self.sum.saturating_add(other.sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_up_to_its_bound() {
        let histogram = Histogram::default();
        for (micros, times) in [(0, 1), (10, 2), (11, 1), (30_000_000, 1), (30_000_001, 3)] {
            for _ in 0..times {
                histogram.count(Duration::from_micros(micros));
            }
        }
        let mut seen = histogram.get();
        assert_eq!((seen.buckets[0], seen.buckets[1]), (3, 1));
        assert_eq!((seen.buckets[17], seen.buckets[18]), (1, 3));
        assert_eq!((seen.count(), seen.sum), (8, 120_000_034_000));
        seen.add(&histogram.get());
        assert_eq!((seen.count(), seen.sum), (16, 240_000_068_000));
    }
}
