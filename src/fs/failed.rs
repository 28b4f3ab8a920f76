//! Reads that have just failed.
//!
//! The kernel asks twice for what an application wants once: first with all that is to be read
//! ahead, whose failure it keeps to itself, and then for the one page that the application waits
//! for. Without a memory of the first answer the application would wait for the deadline twice, and
//! the registry would be asked twice as often. The memory is too short to be noticed by anyone who
//! tries again.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fuser::Errno;
use parking_lot::Mutex;

/// How long a failure is remembered: what the kernel and a busy machine need to ask again.
const MEMORY: Duration = Duration::from_millis(100);
/// Most failures remembered.
const MOST: usize = 64;

/// The failures of one mount.
#[derive(Default)]
pub(super) struct Failed {
    /// Whether there may be any: what every read looks at, without a lock.
    any: AtomicBool,
    reads: Mutex<VecDeque<Read>>,
}

struct Read {
    ino: u64,
    start: u64,
    end: u64,
    errno: Errno,
    when: Instant,
}

impl Failed {
    /// A read of `size` bytes failed.
    pub(super) fn note(&self, ino: u64, start: u64, size: u32, errno: Errno) {
        let mut reads = self.reads.lock();
        if reads.len() >= MOST {
            reads.pop_front();
        }
        reads.push_back(Read {
            ino,
            start,
            end: start.saturating_add(size.into()),
            errno,
            when: Instant::now(),
        });
        self.any.store(true, Ordering::Release);
    }

    /// The answer to a read that has just failed, if this is a part of one.
    pub(super) fn recall(&self, ino: u64, offset: u64) -> Option<Errno> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut reads = self.reads.lock();
        reads.retain(|read| read.when.elapsed() < MEMORY);
        self.any.store(!reads.is_empty(), Ordering::Release);
        let found = reads
            .iter()
            .find(|read| read.ino == ino && (read.start..read.end).contains(&offset));
        found.map(|read| read.errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_remembered_for_its_place_and_not_for_long() {
        let failed = Failed::default();
        assert!(failed.recall(1, 0).is_none());
        failed.note(1, 4096, 8192, Errno::EIO);
        assert!(failed.recall(1, 4096).is_some() && failed.recall(1, 12_287).is_some());
        assert!(failed.recall(1, 0).is_none() && failed.recall(1, 12_288).is_none());
        assert!(failed.recall(2, 4096).is_none());
        std::thread::sleep(MEMORY);
        assert!(failed.recall(1, 4096).is_none());
        assert!(!failed.any.load(Ordering::Acquire));
        for ino in 0..1000 {
            failed.note(ino, 0, 1, Errno::EIO);
        }
        assert!(failed.recall(0, 0).is_none() && failed.recall(999, 0).is_some());
    }
}
