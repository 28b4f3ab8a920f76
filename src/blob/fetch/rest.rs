//! What the background has not been through: members of one layer, as ranges.

use std::collections::VecDeque;
use std::ops::Range;

/// A set of members. It is looked through and changed in few places at a time, so it stays a few ranges long.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// Ascending, none empty, none touching another.
    ranges: VecDeque<Range<u32>>,
}

impl Rest {
    pub(super) fn add(&mut self, members: Range<u32>) {
        if members.is_empty() {
            return;
        }
        let first = self
            .ranges
            .partition_point(|range| range.end < members.start);
        let behind = self
            .ranges
            .partition_point(|range| range.start <= members.end);
        let touched = self.ranges.drain(first..behind);
        let all = touched.fold(members, |all, range| {
            all.start.min(range.start)..all.end.max(range.end)
        });
        self.ranges.insert(first, all);
    }

    pub(super) fn remove(&mut self, members: &Range<u32>) {
        if members.is_empty() {
            return;
        }
        let first = self
            .ranges
            .partition_point(|range| range.end <= members.start);
        let behind = self
            .ranges
            .partition_point(|range| range.start < members.end);
        let (mut before, mut after) = (0..0, 0..0);
        for range in self.ranges.drain(first..behind) {
            if range.start < members.start {
                before = range.start..members.start;
            }
            if range.end > members.end {
                after = members.end..range.end;
            }
        }
        for left in [after, before] {
            if !left.is_empty() {
                self.ranges.insert(first, left);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.ranges.clear();
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        let count = |range: &Range<u32>| u64::from(range.end - range.start);
        self.ranges.iter().map(count).sum()
    }

    /// The first members without a gap.
    pub(super) fn first(&self) -> Option<Range<u32>> {
        self.ranges.front().cloned()
    }

    /// The members around `member` without a gap; none if it is not there.
    pub(super) fn around(&self, member: u32) -> Range<u32> {
        let at = self.ranges.partition_point(|range| range.end <= member);
        let found = self.ranges.get(at).filter(|range| range.contains(&member));
        found.map_or(member..member, Range::clone)
    }

    /// Those of `members` that are there.
    pub(super) fn within(&self, members: Range<u32>) -> impl DoubleEndedIterator<Item = u32> {
        let first = self
            .ranges
            .partition_point(|range| range.end <= members.start);
        let behind = self
            .ranges
            .partition_point(|range| range.start < members.end)
            .max(first);
        self.ranges
            .range(first..behind)
            .flat_map(move |range| range.start.max(members.start)..range.end.min(members.end))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_is_a_set(steps in proptest::collection::vec((any::<bool>(), 0..40_u32, 0..12_u32), 1..60), from in 0..40_u32, len in 0..20_u32) {
            let (mut rest, mut model) = (Rest::default(), BTreeSet::new());
            for (add, start, len) in steps {
                let members = start..start + len;
                if add {
                    rest.add(members.clone());
                    model.extend(members);
                } else {
                    rest.remove(&members);
                    model.retain(|member| !members.contains(member));
                }
                prop_assert_eq!(rest.count(), model.len() as u64);
                prop_assert!(rest.within(0..100).eq(model.iter().copied()));
                let pairs = rest.ranges.iter().zip(rest.ranges.iter().skip(1));
                prop_assert!(pairs.into_iter().all(|(one, next)| one.end < next.start));
            }
            let members = from..from + len;
            prop_assert!(rest.within(members.clone()).eq(model.range(members.clone()).copied()));
            prop_assert!(rest.within(members.clone()).rev().eq(model.range(members).rev().copied()));
            let around = rest.around(from);
            prop_assert_eq!(around.contains(&from), model.contains(&from));
            if !around.is_empty() {
                prop_assert!(around.clone().all(|member| model.contains(&member)));
                prop_assert!(!model.contains(&around.end) && (around.start == 0 || !model.contains(&(around.start - 1))));
            }
            prop_assert_eq!(rest.first().map(|range| range.start), model.first().copied());
        }
    }
}
