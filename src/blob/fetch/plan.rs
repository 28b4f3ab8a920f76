//! What of one layer is fetched next, and what is on its way: pure bookkeeping, no I/O.
//!
//! Members wait in three queues (blocked readers, read-ahead, prefetch list); what is left is the
//! background's, in the order of the blob. A *segment* is a run of adjacent members that one
//! request brings. A member is in at most one segment, so nothing is asked for twice; a reader
//! who needs a member far down a segment takes it, and all behind it, out of the segment.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;

use crate::blob::fetch::along::Along;
use crate::blob::fetch::near::Near;
use crate::blob::fetch::rest::Rest;
use crate::blob::map::{LayerMap, Member, MemberId};

/// Compressed bytes that one request for a blocked reader brings at most, with what else was asked for beside it.
const SEGMENT: u64 = 2 << 20;
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
    /// Its members below this one are wanted for this, or lie before one that is.
    wanted: (u32, Class),
}

impl Flying {
    fn want(&mut self, member: u32, class: Class) {
        let (end, pressing) = self.wanted;
        self.wanted = (end.max(member + 1), pressing.min(class));
    }
}

/// A member on its way.
#[derive(Clone, Copy)]
struct Coming {
    segment: SegmentId,
    /// The most pressing of the reasons it is fetched for: its segment's, and those that came up since.
    class: Class,
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

    /// Puts back what was popped.
    fn push_back(&mut self, member: u32) {
        self.set.insert(member);
        self.order.push_front(member);
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
    /// What the background has not been through.
    pub rest: Rest,
    segments: HashMap<SegmentId, Flying>,
    /// Members that were asked for and are not decoded yet.
    flying: HashMap<u32, Coming>,
    last_id: SegmentId,
    /// Where the background works: what a reader missed last.
    pub near: Option<Near>,
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

    fn offset(&self, member: u32) -> u64 {
        self.member(member).map_or(u64::MAX, |found| found.offset)
    }

    /// The first member that lies at `offset` or behind it.
    pub(super) fn first_from(&self, offset: u64) -> u32 {
        let (mut low, mut high) = (0, self.map.member_count());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.offset(middle) < offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

/// What the queues have to give.
pub(super) enum Claim {
    Segment(Segment),
    /// Something, once less is under way.
    Later,
    Nothing,
}

/// How much may be asked for that nobody waits for yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Whether anything may be.
    pub any: bool,
    /// Compressed bytes in one request.
    pub part: u64,
    /// Requests at a time, so that a blocked reader finds one free.
    pub requests: usize,
}

impl Plan {
    /// Queues `member`, unless it is on its way: then yields true, and it is no less pressing than `class` from now on. A
    /// blocked reader's is taken out of a segment that would bring it too late.
    pub(super) fn want(&mut self, member: u32, class: Class, map: &dyn LayerMap) -> bool {
        if let Some(coming) = self.flying.get_mut(&member) {
            coming.class = coming.class.min(class);
            let id = coming.segment;
            if class != Class::Urgent || !self.cut(member, id, map) {
                // There is none any more for what is being decoded.
                if let Some(segment) = self.segments.get_mut(&id) {
                    segment.want(member, class);
                }
                return true;
            }
        }
        self.queue(member, class);
        false
    }

    /// Queues a member that is not on its way.
    fn queue(&mut self, member: u32, class: Class) {
        match self.queues.get_mut(class as usize) {
            Some(queue) => queue.push(member),
            None => self.rest.add(member..member + 1),
        }
    }

    /// Why a member is fetched that is on its way.
    pub(super) fn class(&self, member: u32) -> Class {
        let coming = self.flying.get(&member);
        coming.map_or(Class::Background, |coming| coming.class)
    }

    /// How many more tasks the queues could use, of `most` in all.
    pub(super) fn runners_needed(&self, most: usize) -> usize {
        let waiting: usize = self.queues.iter().map(|queue| queue.set.len()).sum();
        most.saturating_sub(self.runners).min(waiting)
    }

    /// The next segment from the queues.
    pub(super) fn claim(&mut self, room: Room, view: &View<'_>) -> Claim {
        let is_low = |segment: &&Flying| matches!(segment.class, Class::Ahead | Class::List);
        let low = self.segments.values().filter(is_low).count();
        for (class, limit) in [
            (Class::Urgent, SEGMENT),
            (Class::Ahead, room.part),
            (Class::List, room.part),
        ] {
            if low >= room.requests && class != Class::Urgent {
                break;
            }
            while let Some(first) = self.queues[class as usize].pop() {
                if self.flying.contains_key(&first) || !(view.missing)(first) {
                    continue;
                }
                // One may always be under way, whatever else is.
                if class != Class::Urgent && low > 0 && !room.any {
                    self.queues[class as usize].push_back(first);
                    return Claim::Later;
                }
                let end = self.extend(first, class, limit, view);
                return Claim::Segment(self.launch(class, first..end));
            }
        }
        Claim::Nothing
    }

    /// The next segment of the background, of at most `limit` compressed bytes or one member: what is missing beside the
    /// last miss, else the first in the order of the blob. Only members that are not cached, so that no byte is fetched twice.
    pub(super) fn claim_rest(&mut self, limit: u64, view: &View<'_>) -> Option<Segment> {
        let members = match self.beside(limit, view) {
            Some(members) => members,
            None => self.foremost(limit, view)?,
        };
        self.rest.remove(&members);
        Some(self.launch(Class::Background, members))
    }

    fn foremost(&mut self, limit: u64, view: &View<'_>) -> Option<Range<u32>> {
        loop {
            let range = self.rest.first()?;
            let first = range.clone().find(|member| self.wanted(*member, view));
            self.rest.remove(&(range.start..first.unwrap_or(range.end)));
            if let Some(first) = first {
                return Some(first..self.reach(first, limit, view));
            }
        }
    }

    /// What is missing beside the last miss; what is not missing there is crossed off.
    fn beside(&mut self, limit: u64, view: &View<'_>) -> Option<Range<u32>> {
        let near = self.near?;
        let around = near.members(view);
        let wanted = |member: &u32| self.wanted(*member, view);
        let ahead = self.rest.within(near.member..around.end).find(wanted);
        let behind = self
            .rest
            .within(around.start..near.member)
            .rev()
            .find(wanted);
        let done = behind.map_or(around.start, |behind| behind + 1)..ahead.unwrap_or(around.end);
        self.rest.remove(&done);
        match (ahead, behind) {
            (Some(ahead), Some(behind))
                if !near.is_ahead_nearer(view.offset(ahead), view.offset(behind)) =>
            {
                Some(self.reach_back(behind, limit, view)..behind + 1)
            }
            (Some(ahead), _) => Some(ahead..self.reach(ahead, limit, view)),
            (None, behind) => behind.map(|behind| self.reach_back(behind, limit, view)..behind + 1),
        }
    }

    fn wanted(&self, member: u32, view: &View<'_>) -> bool {
        // What a reader waits for gets a request of its own.
        let urgent = &self.queues[Class::Urgent as usize].set;
        !self.flying.contains_key(&member) && !urgent.contains(&member) && (view.missing)(member)
    }

    /// How far a request of the background from `first` on goes: over members that are wanted, up to `limit` bytes.
    fn reach(&self, first: u32, limit: u64, view: &View<'_>) -> u32 {
        let end = self.rest.around(first).end;
        let limit = view.offset(first).saturating_add(limit);
        let fits = |member: &u32| {
            view.member(*member)
                .is_some_and(|found| found.offset + found.len <= limit)
                && self.wanted(*member, view)
        };
        (first + 1..end).find(|member| !fits(member)).unwrap_or(end)
    }

    /// The same towards the start of the blob, for a request that ends with `last`.
    fn reach_back(&self, last: u32, limit: u64, view: &View<'_>) -> u32 {
        let end = view
            .member(last)
            .map_or(0, |found| found.offset + found.len);
        let fits = |member: &u32| {
            view.offset(*member).saturating_add(limit) >= end && self.wanted(*member, view)
        };
        let mut before = (self.rest.around(last).start..last).rev();
        let stop = before.find(|member| !fits(member));
        stop.map_or(self.rest.around(last).start, |stop| stop + 1)
    }

    /// Whether the segment's request should go on to `member`; from then on it counts as received.
    pub(super) fn advance(&mut self, id: SegmentId, member: u32) -> bool {
        let Some(segment) = self.segments.get_mut(&id) else {
            return false;
        };
        segment.next = member + 1;
        member < segment.stop
    }

    /// Why a segment must get past `member`: what is wanted may lie further on, and must not wait for the memory that `member`
    /// takes.
    pub(super) fn urgency(&self, id: SegmentId, member: u32) -> Class {
        let Some(segment) = self.segments.get(&id) else {
            return Class::Background;
        };
        match segment.wanted {
            (end, pressing) if member < end => pressing,
            _ => segment.class,
        }
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

    /// A reader waits for `member` of segment `id`: true if it was taken out of the segment, together with what lies behind.
    fn cut(&mut self, member: u32, id: SegmentId, map: &dyn LayerMap) -> bool {
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
            return false;
        }
        let cut = member..segment.stop;
        segment.stop = member;
        for member in cut {
            if let Some(coming) = self.flying.remove(&member) {
                self.queue(member, coming.class);
            }
        }
        true
    }

    /// How far a segment from `first` on goes: over members that are asked for, across small gaps.
    fn extend(&self, first: u32, class: Class, limit: u64, view: &View<'_>) -> u32 {
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
        let mut segment = Flying {
            class,
            next,
            stop,
            wanted: (next, class),
        };
        for member in members.clone() {
            // The background may come first to what is queued.
            let classes = [Class::Urgent, Class::Ahead, Class::List];
            let queued = self.queues.iter_mut().zip(classes);
            let queued =
                queued.filter_map(|(queue, class)| queue.set.remove(&member).then_some(class));
            let wanted = queued.fold(class, Class::min);
            if wanted < class {
                segment.want(member, wanted);
            }
            let coming = Coming {
                segment: id,
                class: wanted,
            };
            self.flying.insert(member, coming);
        }
        self.segments.insert(id, segment);
        Segment { id, class, members }
    }
}
