//! Which readers take a layer's files in order, and how far ahead of them to store.
//!
//! Node ids follow the order of the layer, which is that of its folders' names; folders, links and files that
//! are not small lie between. Once files are stored their reads are not seen here any more. So of each
//! step one file in the middle is left out: a read of it tells that its reader is still on the way, while
//! half of the step is before him.
//!
//! A step is at most twice as long as the one before, and the first comes after [`START`] files in order: not
//! much more than twice of what was read is stored in vain.

use std::ops::Range;

/// Readers that are followed at a time.
const READERS: usize = 4;
/// How many nodes the next file of a reader may lie beyond the last.
const STRIDE: u64 = 4;
/// Files in order before the first step.
const START: u32 = 3;
/// Most files in order that are waited for after steps in vain.
const LONGEST_START: u32 = 1024;
/// Files that a reader may ask for although they were stored: he was there at the same moment.
const FEW: u64 = 4;
/// How far before its reader the first step begins, in nodes: it takes a moment, and meeting him on a file
/// costs more than to leave it to him.
const HEAD_START: u64 = 8;
/// Nodes of the first step, and of the longest.
const STEP: Range<u64> = 16..256;

/// What is to be done for a reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// Nodes that he has read without asking.
    pub(super) passed: Range<u64>,
    /// Nodes to store.
    pub(super) next: Range<u64>,
    /// The first file of these from here on is to be left out.
    pub(super) gap: u64,
}

/// The readers of one mount.
#[derive(Debug, Default)]
pub(super) struct Streaks {
    readers: [Reader; READERS],
    clock: u64,
}

#[derive(Debug, Default, Clone)]
struct Reader {
    /// When he was last seen.
    seen: u64,
    /// The last node that he asked for.
    last: u64,
    /// Nodes that he asked for in order; 0 is no reader.
    run: u32,
    /// How long that must be for the next step.
    needed: u32,
    /// What was stored for him. He asks for none of it but the gap.
    stored: Range<u64>,
    gap: u64,
    /// Files in it.
    files: u64,
    /// What he asked for of it all the same, since the last step.
    in_vain: u64,
    /// Nodes of the last step.
    step: u64,
}

impl Streaks {
    /// A small file was asked for.
    pub(super) fn read(&mut self, ino: u64) -> Option<Step> {
        self.clock += 1;
        let clock = self.clock;
        let known = self.readers.iter_mut().find(|reader| reader.expects(ino));
        if let Some(reader) = known {
            reader.seen = clock;
            return reader.read(ino);
        }
        if let Some(oldest) = self.readers.iter_mut().min_by_key(|reader| reader.seen) {
            *oldest = Reader::new(clock, ino, START);
        }
        None
    }

    /// Of the step up to `asked` the nodes up to `reached` were stored, `files` small files without `gap`.
    pub(super) fn stored(&mut self, asked: u64, gap: u64, reached: u64, files: u64) {
        let reader = self
            .readers
            .iter_mut()
            .find(|reader| reader.stored.end == asked);
        if let Some(reader) = reader {
            reader.gap = gap;
            reader.files = files;
            reader.stored.end = reached.max(reader.stored.start);
        }
    }
}

impl Reader {
    fn new(seen: u64, ino: u64, needed: u32) -> Self {
        Self {
            seen,
            last: ino,
            run: 1,
            needed,
            ..Self::default()
        }
    }

    fn expects(&self, ino: u64) -> bool {
        self.run > 0
            && ino > self.last
            && ino <= self.last.max(self.stored.end).saturating_add(STRIDE)
    }

    fn read(&mut self, ino: u64) -> Option<Step> {
        self.last = ino;
        self.run = self.run.saturating_add(1);
        if self.stored.contains(&ino) && ino != self.gap {
            // It did not get there in time, or not at all: the kernel may not know the file.
            self.in_vain += 1;
            return None;
        }
        if self.run < self.needed || ino < self.gap {
            return None;
        }
        // Before the gap lies half of a step.
        if self.in_vain > FEW && self.in_vain * 4 > self.files {
            let needed = self.needed.saturating_mul(4).min(LONGEST_START);
            *self = Self::new(self.seen, ino, needed);
            return None;
        }
        let passed = self.stored.start..ino.min(self.stored.end);
        let from = match self.step {
            0 => ino + 1 + HEAD_START,
            _ => self.stored.end.max(ino + 1),
        };
        self.step = (self.step * 2).clamp(STEP.start, STEP.end);
        let next = from..from + self.step;
        // What is before him of the step before is his still.
        let start = if passed.is_empty() { from } else { passed.end };
        // Until what is stored is known, there is no gap to look for.
        (self.stored, self.gap) = (start..next.end, next.end);
        self.in_vain = 0;
        let gap = from + self.step / 2;
        Some(Step { passed, next, gap })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Reads `order` as the kernel does: what is stored is not asked for. Gives the files asked for, those
    /// noted as passed, and those stored.
    fn go(order: &[u64], until: u64) -> (Vec<u64>, BTreeSet<u64>, BTreeSet<u64>) {
        let (mut streaks, mut stored) = (Streaks::default(), BTreeSet::new());
        let (mut asked, mut passed) = (vec![], BTreeSet::new());
        for &ino in order {
            if stored.contains(&ino) {
                continue;
            }
            asked.push(ino);
            if let Some(step) = streaks.read(ino) {
                passed.extend(step.passed);
                let reached = step.next.end.min(until);
                let next = step.next.start..reached;
                stored.extend(next.filter(|ino| *ino != step.gap));
                let files = reached - step.next.start;
                streaks.stored(step.next.end, step.gap.min(reached), reached, files);
            }
        }
        (asked, passed, stored)
    }

    #[test]
    fn whoever_reads_in_order_asks_for_few() {
        let order: Vec<_> = (1..=10_000).collect();
        let (asked, passed, stored) = go(&order, u64::MAX);
        assert!(asked.len() < 70, "{}", asked.len());
        let unread = stored.range(10_001..).count();
        assert!(unread <= 384, "{unread} stored beyond the last");
        assert!(passed.iter().all(|ino| *ino <= 10_000));
        assert!(passed.len() > 9_500, "{}", passed.len());
    }

    #[test]
    fn four_readers_side_by_side_are_told_apart() {
        let order: Vec<_> = (1..=1000)
            .flat_map(|at| (0..4).map(move |reader| reader * 100_000 + at))
            .collect();
        let (asked, ..) = go(&order, u64::MAX);
        assert!(asked.len() < 4 * 40, "{}", asked.len());
    }

    #[test]
    fn nothing_is_stored_for_whoever_reads_here_and_there() {
        let order: Vec<_> = (1..=10_000_u64).map(|at| at * 7919 % 10_007).collect();
        let (_, _, stored) = go(&order, u64::MAX);
        assert!(stored.len() < 100, "{}", stored.len());
        // Nor in a step's reach backwards.
        let order: Vec<_> = (1..=10_000).rev().collect();
        assert!(go(&order, u64::MAX).2.is_empty());
    }

    #[test]
    fn what_is_stored_in_vain_is_in_proportion_to_what_was_read() {
        for read in [2, 3, 4, 10, 50, 100, 1000] {
            let order: Vec<_> = (1..=read).collect();
            let (_, _, stored) = go(&order, u64::MAX);
            let vain = stored.range(read + 1..).count() as u64;
            assert!(vain <= 16 + 2 * read, "{vain} of {read}");
        }
    }

    #[test]
    fn a_step_that_ends_early_goes_on_from_there() {
        let (mut streaks, mut steps) = (Streaks::default(), vec![]);
        for ino in 1..=3 {
            steps.extend(streaks.read(ino));
        }
        let first = steps.pop().unwrap();
        assert_eq!(first.next, 12..28);
        // Only two were here; the reader goes on behind them.
        streaks.stored(28, 14, 14, 2);
        let next: Vec<_> = (4..=14).filter_map(|ino| streaks.read(ino)).collect();
        assert!(
            matches!(&*next, [step] if step.next == (15..47)),
            "{next:?}"
        );
    }

    #[test]
    fn storing_what_the_kernel_does_not_take_is_given_up() {
        let mut streaks = Streaks::default();
        let mut steps = 0;
        for ino in 1..=10_000 {
            if let Some(step) = streaks.read(ino) {
                steps += 1;
                let Range { start, end } = step.next;
                streaks.stored(end, step.gap, end, end - start);
            }
        }
        assert!((2..16).contains(&steps), "{steps}");
    }
}
