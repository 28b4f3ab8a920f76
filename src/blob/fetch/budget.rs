//! The memory that requests of a kind share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Unit of the budget: semaphores count in 32 bits.
const KIB: u64 = 1 << 10;

/// Bytes that may be in flight.
pub(super) struct Budget {
    all: Arc<Semaphore>,
    /// In KiB.
    most: u32,
    /// How many wait for some.
    waiting: AtomicUsize,
}

impl Budget {
    /// Of so many bytes, 64 KiB at least.
    pub(super) fn new(bytes: u64) -> Self {
        let most = u32::try_from(bytes / KIB).unwrap_or(u32::MAX);
        let most = most.clamp(64, u32::MAX >> 4);
        Self {
            all: Arc::new(Semaphore::new(most as usize)),
            most,
            waiting: AtomicUsize::new(0),
        }
    }

    /// Waits until `bytes` more may be in flight. Who asks for more than there is waits for all.
    pub(super) async fn reserve(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let _waits = Waits::on(&self.waiting);
        let reserved = Arc::clone(&self.all).acquire_many_owned(self.units(bytes));
        reserved.await.ok()
    }

    /// The same without waiting.
    pub(super) fn try_reserve(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let reserved = Arc::clone(&self.all).try_acquire_many_owned(self.units(bytes));
        reserved.ok()
    }

    /// Whether `held` is of it, and others wait for it.
    pub(super) fn is_wanted(&self, held: &OwnedSemaphorePermit) -> bool {
        Arc::ptr_eq(&self.all, held.semaphore()) && self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Bytes in flight.
    pub(super) fn in_flight(&self) -> u64 {
        let free = self.all.available_permits() as u64;
        u64::from(self.most).saturating_sub(free) * KIB
    }

    fn units(&self, bytes: u64) -> u32 {
        let units = u32::try_from(bytes.div_ceil(KIB));
        units.unwrap_or(self.most).min(self.most)
    }
}

/// One who waits, until this is dropped.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn on(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_held_is_wanted_while_somebody_waits_for_it() {
        let (budget, other) = (Budget::new(1 << 20), Budget::new(1 << 20));
        let all = budget.try_reserve(5 << 20).unwrap();
        assert_eq!(budget.in_flight(), 1 << 20);
        assert!(!budget.is_wanted(&all), "nobody waits");
        let waits = budget.reserve(1);
        tokio::pin!(waits);
        assert!(futures::poll!(&mut waits).is_pending());
        assert!(budget.is_wanted(&all) && !other.is_wanted(&all));
        drop(all);
        let one = waits.await.unwrap();
        assert!(!budget.is_wanted(&one));
        assert_eq!(budget.in_flight(), 1 << 10);
    }
}
