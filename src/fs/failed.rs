//! Reads that have just failed.
//!
//! The kernel asks several times for what an application wants once: first for all that is to be read
//! ahead, in requests of its own size, whose failures it keeps to itself, and then for the one page
//! that the application waits for. Without a memory of the first answer the application would wait for
//! the deadline twice, and the registry would be asked as often as the kernel asks. What is remembered
//! are chunks, because they are what fails: a request for the other half of one may come when the
//! failure of the first is just known. The memory is too short to be noticed by anyone who tries again.

use std::collections::VecDeque;
use std::ops::Range;
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
    chunks: Range<u32>,
    errno: Errno,
    when: Instant,
}

impl Failed {
    /// A read that needs these chunks failed.
    pub(super) fn note(&self, chunks: Range<u32>, errno: Errno) {
        let mut reads = self.reads.lock();
        if reads.len() >= MOST {
            reads.pop_front();
        }
        reads.push_back(Read {
            chunks,
            errno,
            when: Instant::now(),
        });
        self.any.store(true, Ordering::Release);
    }

    /// Whether any failure may be remembered.
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// What a read was told that needed one of these chunks and has just failed.
    pub(super) fn recall(&self, chunks: &Range<u32>) -> Option<Errno> {
        let mut reads = self.reads.lock();
        reads.retain(|read| read.when.elapsed() < MEMORY);
        self.any.store(!reads.is_empty(), Ordering::Release);
        let found = reads
            .iter()
            .find(|read| read.chunks.start < chunks.end && chunks.start < read.chunks.end);
        found.map(|read| read.errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_remembered_for_its_place_and_not_for_long() {
        let failed = Failed::default();
        assert!(!failed.any() && failed.recall(&(0..9)).is_none());
        failed.note(4..6, Errno::EIO);
        assert!(failed.any());
        assert!(failed.recall(&(4..5)).is_some() && failed.recall(&(5..9)).is_some());
        assert!(failed.recall(&(0..4)).is_none() && failed.recall(&(6..7)).is_none());
        std::thread::sleep(MEMORY);
        assert!(failed.recall(&(4..6)).is_none());
        assert!(!failed.any());
        for chunk in 0..1000 {
            failed.note(chunk..chunk + 1, Errno::EIO);
        }
        assert!(failed.recall(&(0..1)).is_none() && failed.recall(&(999..1000)).is_some());
    }
}
