//! What all layers together have fetched, and what for.
//!
//! Locking: none; the numbers are each right, not all of one moment.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::blob::fetch::plan::Class;
use crate::registry::{self, Trouble};

/// Names of what is fetched for, by the place of its numbers in [`FetchStats`]: metrics' label
/// values.
pub const PURPOSES: [&str; 4] = ["reader", "ahead", "start", "background"];
/// Names of what goes wrong, likewise.
pub const TROUBLES: [&str; 5] = [
    "unauthorized",
    "not_found",
    "unreachable",
    "registry",
    "corrupt",
];

/// [`FetchStats`] while they change.
#[derive(Default)]
pub(super) struct Tally {
    requests: [AtomicU64; PURPOSES.len()],
    bytes: [AtomicU64; PURPOSES.len()],
    troubles: [AtomicU64; TROUBLES.len()],
}

/// What was fetched since the start, and what is going on.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct FetchStats {
    /// Requests for parts of layers, by [`PURPOSES`].
    pub requests: [u64; PURPOSES.len()],
    /// Compressed bytes that came, by [`PURPOSES`].
    pub bytes: [u64; PURPOSES.len()],
    /// Requests that failed and members that were corrupt, by [`TROUBLES`].
    pub troubles: [u64; TROUBLES.len()],
    /// Requests under way for readers and for what they will want.
    pub requests_now: u64,
    /// Requests under way of the background.
    pub background_now: u64,
    /// Bytes in flight, compressed and inflated.
    pub in_flight: u64,
    /// The best rate at which content came lately, in bytes per second; 0 if none did.
    pub best_rate: f64,
}

impl Tally {
    pub(super) fn request(&self, class: Class) {
        add(&self.requests, class as usize, 1);
    }

    pub(super) fn received(&self, class: Class, bytes: usize) {
        add(&self.bytes, class as usize, bytes as u64);
    }

    pub(super) fn failed(&self, error: &registry::Error) {
        let place = match error.trouble() {
            Trouble::Unauthorized => 0,
            Trouble::NotFound => 1,
            Trouble::Unreachable => 2,
            Trouble::Other => 3,
        };
        add(&self.troubles, place, 1);
    }

    pub(super) fn corrupt(&self) {
        add(&self.troubles, 4, 1);
    }

    pub(super) fn get(&self) -> FetchStats {
        FetchStats {
            requests: copy(&self.requests),
            bytes: copy(&self.bytes),
            troubles: copy(&self.troubles),
            ..FetchStats::default()
        }
    }
}

fn add(counts: &[AtomicU64], at: usize, more: u64) {
    if let Some(count) = counts.get(at) {
        count.fetch_add(more, Ordering::Relaxed);
    }
}

fn copy<const N: usize>(counts: &[AtomicU64; N]) -> [u64; N] {
    std::array::from_fn(|at| {
        let count = counts.get(at);
        count.map_or(0, |count| count.load(Ordering::Relaxed))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_fetched_is_counted_by_what_it_is_for() {
        let tally = Tally::default();
        for (at, class) in [Class::Urgent, Class::Ahead, Class::List, Class::Background]
            .into_iter()
            .enumerate()
        {
            tally.request(class);
            tally.received(class, 10 * (at + 1));
        }
        tally.failed(&registry::Error::Protocol("?".to_owned()));
        tally.corrupt();
        let stats = tally.get();
        assert_eq!(stats.requests, [1; 4]);
        assert_eq!(stats.bytes, [10, 20, 30, 40]);
        assert_eq!(stats.troubles, [0, 0, 0, 1, 1]);
    }
}
