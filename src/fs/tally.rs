//! What happened on all mounts of this process together, those that are gone included.
//!
//! Each mount counts for itself, so that two mounts never write to the same memory; the sum is made
//! when somebody asks. Sums only grow: the counts of a mount that is gone stay.
//!
//! Locking: one mutex, for whoever mounts or asks; never on the way of a request.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::fs::counters::{Counters, Totals};

/// The sum over mounts; clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Tally(Arc<Mutex<All>>);

#[derive(Debug, Default)]
struct All {
    live: Vec<Arc<Counters>>,
    /// The sum of those that are gone.
    gone: Totals,
}

impl Tally {
    /// The counters of one more mount.
    pub(super) fn enter(&self) -> Arc<Counters> {
        let counters = Arc::new(Counters::default());
        let mut all = self.0.lock();
        all.retire();
        all.live.push(Arc::clone(&counters));
        counters
    }

    /// What happened so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut all = self.0.lock();
        all.retire();
        let mut totals = all.gone;
        for counters in &all.live {
            totals.add(&counters.totals());
        }
        totals
    }
}

impl All {
    /// Nobody counts any more with what only this holds.
    fn retire(&mut self) {
        let gone = &mut self.gone;
        self.live.retain(|counters| {
            let is_live = Arc::strong_count(counters) > 1;
            if !is_live {
                gone.add(&counters.totals());
            }
            is_live
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn what_a_mount_has_counted_stays_when_it_is_gone() {
        let tally = Tally::default();
        let (one, other) = (tally.enter(), tally.enter());
        one.hit(Instant::now(), 4096);
        other.hit(Instant::now(), 1);
        let before = tally.totals();
        assert_eq!((before.hits.count(), before.hit_bytes), (2, 4097));
        drop(one);
        assert_eq!(tally.totals().hits.count(), 2);
        other.hit(Instant::now(), 1);
        let third = tally.enter();
        third.hit(Instant::now(), 2);
        assert_eq!(tally.totals().hit_bytes, 4100);
        assert_eq!(tally.0.lock().live.len(), 2, "the first is summed up");
    }
}
