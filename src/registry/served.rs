//! Who answered for which range of a blob: whom to blame when bytes prove wrong, which is known only
//! some time after they came.
//!
//! Locking: the list is held for a copy only.

use std::collections::VecDeque;
use std::ops::Range;

use parking_lot::Mutex;

/// Answers that are remembered: more than are decoded at a time.
const MAX_SERVED: usize = 64;

/// The latest answers, the last one last.
pub(super) struct Served<T>(Mutex<VecDeque<(Range<u64>, T)>>);

impl<T> Default for Served<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Served<T> {
    /// `who` has begun to answer for `range`.
    pub(super) fn begun(&self, range: Range<u64>, who: T) {
        let mut served = self.0.lock();
        served.push_back((range, who));
        if served.len() > MAX_SERVED {
            served.pop_front();
        }
    }

    /// The answer to `range` broke off before `end`: what comes from there on is another's.
    pub(super) fn broke_off(&self, range: &Range<u64>, end: u64) {
        let mut served = self.0.lock();
        let Some(at) = served.iter().rposition(|(known, _)| known == range) else {
            return;
        };
        match served.get_mut(at) {
            Some((known, _)) if known.start < end => known.end = end,
            _ => drop(served.remove(at)),
        }
    }

    /// Who answered for any of `range`. Nobody is blamed twice for the same answer.
    pub(super) fn blame(&self, range: &Range<u64>) -> Vec<T> {
        let overlaps = |other: &Range<u64>| other.start < range.end && range.start < other.end;
        let mut served = self.0.lock();
        let (wrong, right) = served.drain(..).partition(|(other, _)| overlaps(other));
        let wrong: VecDeque<_> = wrong;
        *served = right;
        wrong.into_iter().map(|(_, who)| who).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_who_answered_for_it_are_blamed_and_once() {
        let served = Served::default();
        served.begun(0..100, "a");
        served.begun(100..200, "b");
        served.broke_off(&(100..200), 150);
        served.begun(150..200, "c");
        served.begun(200..300, "d");
        served.broke_off(&(200..300), 200);
        assert_eq!(
            served.blame(&(150..300)),
            ["c"],
            "b sent none of it, d nothing"
        );
        assert_eq!(served.blame(&(99..101)), ["a", "b"]);
        assert_eq!(served.blame(&(0..300)), [""; 0]);
    }

    #[test]
    fn the_oldest_answers_are_forgotten() {
        let served = Served::default();
        for n in 0..=MAX_SERVED as u64 {
            served.begun(n..n + 1, n);
        }
        assert_eq!(served.blame(&(0..2)), [1]);
    }
}
