//! What of one layer is fetched next, and what is on its way: pure bookkeeping, no I/O.
//!
//! Members wait in three queues (blocked readers, read-ahead, prefetch list); what is left is the
//! background's, in the order of the blob. A *segment* is a run of adjacent members that one
//! request brings. A member is in at most one segment, so nothing is asked for twice; a reader
//! who needs a member far down a segment takes it, and all behind it, out of the segment.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;

use crate::blob::fetch::along::Along;
use crate::blob::fetch::follow::Follow;
use crate::blob::map::{LayerMap, Member, MemberId};

/// Compressed bytes that one request brings at most, but for the prefetch list: four of these in
/// flight fill 1 Gbit/s at 50 ms, and a window of read-ahead is spread over several connections.
const SEGMENT: u64 = 2 << 20;
/// The prefetch list is one request (the eStargz landmark says so), within reason.
const LIST_SEGMENT: u64 = 64 << 20;
/// Members nobody asked for that are fetched along, because a second request costs more than
/// their bytes: about a quarter of a millisecond at 1 Gbit/s.
const GAP: u64 = 32 << 10;
/// How far a blocked reader's member may lie behind what a segment has received before asking for
/// it separately is the faster way: 4 ms at 1 Gbit/s.
const PATIENCE: u64 = 512 << 10;

/// Why a member is fetched, most pressing first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::blob) enum Class {
    /// A reader waits.
    Urgent,
    /// A sequential reader will want it.
    Ahead,
    /// It is known to be needed at start.
    List,
    /// The link is idle.
    Background,
}

/// Names a segment within its plan.
pub(super) type SegmentId = u64;

/// A run of members to ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub id: SegmentId,
    pub class: Class,
    pub members: Range<u32>,
}

struct Flying {
    class: Class,
    /// The member that is received next.
    next: u32,
    /// The first that is no longer to be received.
    stop: u32,
    /// A reader waits for one of its members.
    pressed: bool,
}

/// Members in the order they were asked for, each once.
#[derive(Default)]
struct Queue {
    order: VecDeque<u32>,
    /// What of `order` is still to be done.
    set: HashSet<u32>,
}

impl Queue {
    fn push(&mut self, member: u32) {
        if self.set.insert(member) {
            self.order.push_back(member);
        }
    }

    fn pop(&mut self) -> Option<u32> {
        loop {
            let member = self.order.pop_front()?;
            if self.set.remove(&member) {
                return Some(member);
            }
        }
    }
}

/// The plan of one layer.
#[derive(Default)]
pub(super) struct Plan {
    /// By class; the background has none.
    queues: [Queue; 3],
    /// What the background has not been through, ascending.
    rest: VecDeque<Range<u32>>,
    segments: HashMap<SegmentId, Flying>,
    /// Members that were asked for and are not decoded yet.
    flying: HashMap<u32, SegmentId>,
    last_id: SegmentId,
    /// Where the background works while readers wait.
    pub follow: Follow,
    /// Readers that go from file to file, where there is no background.
    pub along: Along,
    /// Tasks that work on the queues.
    pub runners: usize,
}

/// What the plan must ask to choose: where members lie, and which are not cached.
pub(super) struct View<'a> {
    pub map: &'a dyn LayerMap,
    pub missing: &'a dyn Fn(u32) -> bool,
}

impl View<'_> {
    fn member(&self, member: u32) -> Option<Member> {
        self.map.member(MemberId(member))
    }
}

impl Plan {
    /// Queues `member`, unless it is on its way. A blocked reader's is taken out of a segment that
    /// would bring it too late.
    pub(super) fn want(&mut self, member: u32, class: Class, map: &dyn LayerMap) {
        if let Some(id) = self.flying.get(&member).copied()
            && (class != Class::Urgent || !self.press(member, id, map))
        {
            return;
        }
        if let Some(queue) = self.queues.get_mut(class as usize) {
            queue.push(member);
        }
    }

    /// Gives the background `members` to go through.
    pub(super) fn add_rest(&mut self, members: Range<u32>) {
        if !members.is_empty() {
            let at = self
                .rest
                .partition_point(|range| range.start < members.start);
            self.rest.insert(at, members);
        }
    }

    /// Leaves nothing to the background.
    pub(super) fn clear_rest(&mut self) {
        self.rest.clear();
    }

    /// Members the background has not been through.
    pub(super) fn rest(&self) -> u64 {
        self.rest
            .iter()
            .map(|range| u64::from(range.end - range.start))
            .sum()
    }

    /// How many more tasks the queues could use, of `most` in all.
    pub(super) fn runners_needed(&self, most: usize) -> usize {
        let waiting: usize = self.queues.iter().map(|queue| queue.set.len()).sum();
        most.saturating_sub(self.runners).min(waiting)
    }

    /// The next segment from the queues. What no reader waits for has at most `low` requests at a
    /// time, so that a blocked reader finds one free.
    pub(super) fn claim(&mut self, low: usize, view: &View<'_>) -> Option<Segment> {
        let is_low = |segment: &&Flying| matches!(segment.class, Class::Ahead | Class::List);
        let full = self.segments.values().filter(is_low).count() >= low;
        for (class, limit) in [
            (Class::Urgent, SEGMENT),
            (Class::Ahead, SEGMENT),
            (Class::List, LIST_SEGMENT),
        ] {
            if full && class != Class::Urgent {
                break;
            }
            while let Some(first) = self.queues[class as usize].pop() {
                if !self.flying.contains_key(&first) && (view.missing)(first) {
                    let end = self.extend(first, class, limit, view);
                    return Some(self.launch(class, first..end));
                }
            }
        }
        None
    }

    /// The next segment of the background: only members that are not cached, so that no byte is
    /// fetched twice. While readers wait (`busy`) it is small, and from close behind the last miss
    /// if anything is missing there.
    pub(super) fn claim_rest(&mut self, busy: bool, view: &View<'_>) -> Option<Segment> {
        let limit = if busy { self.follow.request() } else { SEGMENT };
        if busy && let Some(first) = self.missing_near(view) {
            let at = self.rest.partition_point(|rest| rest.end <= first);
            let rest = self.rest.remove(at)?;
            let end = self.reach(first, rest.end, limit, view);
            self.add_rest(rest.start..first);
            self.add_rest(end..rest.end);
            return Some(self.launch(Class::Background, first..end));
        }
        while let Some(range) = self.rest.front().cloned() {
            let Some(first) = range.clone().find(|member| self.wanted(*member, view)) else {
                self.rest.pop_front();
                continue;
            };
            let end = self.reach(first, range.end, limit, view);
            if let Some(front) = self.rest.front_mut() {
                front.start = end;
            }
            return Some(self.launch(Class::Background, first..end));
        }
        None
    }

    /// The first member close behind the last miss that the background has not been through and
    /// that is missing.
    fn missing_near(&self, view: &View<'_>) -> Option<u32> {
        let end = self.follow.end();
        let behind = self
            .rest
            .partition_point(|rest| rest.end <= self.follow.start());
        let rests = self.rest.iter().skip(behind);
        let members = rests.flat_map(|rest| rest.start.max(self.follow.start())..rest.end);
        members
            .take_while(|member| view.member(*member).is_some_and(|found| found.offset < end))
            .find(|member| self.wanted(*member, view))
    }

    fn wanted(&self, member: u32, view: &View<'_>) -> bool {
        !self.flying.contains_key(&member) && (view.missing)(member)
    }

    /// How far a request of the background from `first` on goes: over members that are wanted, up
    /// to `end` and to `limit` bytes.
    fn reach(&self, first: u32, end: u32, limit: u64, view: &View<'_>) -> u32 {
        let limit = view.member(first).map_or(0, |member| member.offset + limit);
        let fits = |member: &u32| {
            view.member(*member)
                .is_some_and(|found| found.offset + found.len <= limit)
                && self.wanted(*member, view)
        };
        (first + 1..end).find(|member| !fits(member)).unwrap_or(end)
    }

    /// Whether the segment's request should go on to `member`; from then on it counts as received.
    pub(super) fn advance(&mut self, id: SegmentId, member: u32) -> bool {
        let Some(segment) = self.segments.get_mut(&id) else {
            return false;
        };
        segment.next = member + 1;
        member < segment.stop
    }

    /// Whether a reader waits for a member of the segment.
    pub(super) fn is_pressed(&self, id: SegmentId) -> bool {
        self.segments
            .get(&id)
            .is_some_and(|segment| segment.pressed)
    }

    /// `member` was decoded or given up.
    pub(super) fn landed(&mut self, member: u32) {
        self.flying.remove(&member);
    }

    /// The segment's request has ended; yields those of its members that it did not bring.
    pub(super) fn ended(&mut self, id: SegmentId, received: u32) -> Range<u32> {
        let stop = self
            .segments
            .remove(&id)
            .map_or(received, |segment| segment.stop);
        let lost = received..stop.max(received);
        for member in lost.clone() {
            self.flying.remove(&member);
        }
        lost
    }

    /// A reader waits for `member` of segment `id`: true if it was taken out of the segment.
    fn press(&mut self, member: u32, id: SegmentId, map: &dyn LayerMap) -> bool {
        let Some(segment) = self.segments.get_mut(&id) else {
            // Received as a whole and being decoded.
            return false;
        };
        let place = |member| {
            map.member(MemberId(member))
                .map_or(0, |member| member.offset)
        };
        let behind = place(member).saturating_sub(place(segment.next));
        if member < segment.next || segment.class == Class::Urgent || behind <= PATIENCE {
            segment.pressed = true;
            return false;
        }
        let (class, old) = (segment.class, segment.stop);
        segment.stop = member;
        for member in member..old {
            self.flying.remove(&member);
        }
        if let Some(queue) = self.queues.get_mut(class as usize) {
            (member + 1..old).for_each(|member| queue.push(member));
        } else {
            self.add_rest(member + 1..old);
        }
        true
    }

    /// How far a segment from `first` on goes: over members that are asked for, across small gaps.
    fn extend(&mut self, first: u32, class: Class, limit: u64, view: &View<'_>) -> u32 {
        let Some(start) = view.member(first) else {
            return first + 1;
        };
        let (mut end, mut end_offset) = (first + 1, start.offset + start.len);
        let mut at = end;
        while let Some(member) = view.member(at) {
            let reach = member.offset + member.len;
            let stop = reach > start.offset + limit
                || member.offset > end_offset + GAP
                || self.flying.contains_key(&at)
                || !(view.missing)(at);
            if stop {
                break;
            }
            // An urgent segment takes read-ahead along, never the much longer prefetch list.
            let most = class.max(Class::Ahead) as usize;
            if self
                .queues
                .iter()
                .take(most + 1)
                .any(|queue| queue.set.contains(&at))
            {
                self.queues
                    .iter_mut()
                    .for_each(|queue| _ = queue.set.remove(&at));
                (end, end_offset) = (at + 1, reach);
            }
            at += 1;
        }
        end
    }

    fn launch(&mut self, class: Class, members: Range<u32>) -> Segment {
        self.last_id += 1;
        let id = self.last_id;
        let (next, stop) = (members.start, members.end);
        self.segments.insert(
            id,
            Flying {
                class,
                next,
                stop,
                pressed: class == Class::Urgent,
            },
        );
        self.flying
            .extend(members.clone().map(|member| (member, id)));
        Segment { id, class, members }
    }
}
