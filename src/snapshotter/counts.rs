//! How Prepares that named a layer were answered, counted.
//!
//! Locking: none; the numbers are each right, not all of one moment.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::layer::Reason;

/// [`Counts`] while they change.
#[derive(Debug, Default)]
pub(super) struct Counters {
    lazy: AtomicU64,
    refused: [AtomicU64; Reason::ALL.len()],
}

/// A copy of the counts, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Layers that were answered for lazily, those that were here already included.
    pub lazy: u64,
    /// Layers that containerd has to unpack, by [`Reason::index`].
    pub refused: [u64; Reason::ALL.len()],
}

impl Counters {
    pub(super) fn count_lazy(&self) {
        self.lazy.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_refused(&self, reason: Reason) {
        if let Some(count) = self.refused.get(reason.index()) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn get(&self) -> Counts {
        Counts {
            lazy: self.lazy.load(Ordering::Relaxed),
            refused: std::array::from_fn(|at| {
                let count = self.refused.get(at);
                count.map_or(0, |count| count.load(Ordering::Relaxed))
            }),
        }
    }
}
