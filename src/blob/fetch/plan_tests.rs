//! The plan against a model that plays registry and cache.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::near::Near;
use super::plan::{Claim, Class, Plan, Room, Segment, View};
use crate::blob::map::{ChunkId, ChunkInfo, LayerMap, Member, MemberId};

const LEN: u64 = 60_000;

const ROOM: Room = Room {
    any: true,
    part: 2 << 20,
    requests: 3,
};

/// So many members of [`LEN`] bytes.
struct Even(u32);

impl LayerMap for Even {
    fn member_count(&self) -> u32 {
        self.0
    }

    fn member(&self, member: MemberId) -> Option<Member> {
        let offset = u64::from(member.0) * LEN;
        (member.0 < self.0).then_some(Member {
            offset,
            len: LEN,
            inflated: LEN,
        })
    }

    fn chunk_count(&self) -> u32 {
        0
    }

    fn chunk(&self, _: ChunkId) -> Option<ChunkInfo> {
        None
    }

    fn chunks_of(&self, _: MemberId, _: &mut dyn FnMut(ChunkId)) {}

    fn prefetch_end(&self) -> Option<u64> {
        None
    }
}

struct World {
    map: Even,
    plan: Plan,
    cached: HashSet<u32>,
    /// Segments that are received, and the next member of each.
    running: Vec<(Segment, u32)>,
    /// How often each member was received.
    received: HashMap<u32, u32>,
}

impl World {
    fn new(members: u32) -> Self {
        Self {
            map: Even(members),
            plan: Plan::default(),
            cached: HashSet::new(),
            running: Vec::new(),
            received: HashMap::new(),
        }
    }

    fn claim(&mut self, background: bool) -> Option<Segment> {
        match background {
            true => self.claim_rest(2 << 20),
            false => match self.claim_in(ROOM) {
                Claim::Segment(segment) => Some(segment),
                Claim::Later | Claim::Nothing => None,
            },
        }
    }

    fn claim_in(&mut self, room: Room) -> Claim {
        let missing = |member| !self.cached.contains(&member);
        let view = View {
            map: &self.map,
            missing: &missing,
        };
        let claim = self.plan.claim(room, &view);
        if let Claim::Segment(segment) = &claim {
            self.running.push((segment.clone(), segment.members.start));
        }
        claim
    }

    fn claim_rest(&mut self, limit: u64) -> Option<Segment> {
        let missing = |member| !self.cached.contains(&member);
        let view = View {
            map: &self.map,
            missing: &missing,
        };
        let segment = self.plan.claim_rest(limit, &view)?;
        self.running.push((segment.clone(), segment.members.start));
        Some(segment)
    }

    /// A reader has to wait for a member.
    fn miss(&mut self, member: u32) {
        self.plan.near = Some(Near {
            member,
            offset: u64::from(member) * LEN,
        });
    }

    /// One more member of a running segment arrives, is decoded and cached.
    fn progress(&mut self, at: usize) {
        let (segment, next) = self.running[at].clone();
        if next < segment.members.end && self.plan.advance(segment.id, next) {
            *self.received.entry(next).or_default() += 1;
            self.cached.insert(next);
            self.plan.landed(next);
            self.running[at].1 += 1;
        } else {
            assert!(self.plan.ended(segment.id, next).is_empty());
            self.running.remove(at);
        }
    }

    /// The request of a running segment fails.
    fn fail(&mut self, at: usize) {
        let (segment, next) = self.running.remove(at);
        let lost = self.plan.ended(segment.id, next);
        self.plan.rest.add(lost);
    }

    fn finish(&mut self) {
        loop {
            while !self.running.is_empty() {
                self.progress(0);
            }
            if self.claim(false).is_none() && self.claim(true).is_none() {
                return;
            }
        }
    }
}

#[test]
fn a_reader_goes_before_and_takes_read_ahead_along_but_not_the_list() {
    let mut world = World::new(60);
    (0..60).for_each(|member| _ = world.plan.want(member, Class::List, &world.map));
    (11..14).for_each(|member| _ = world.plan.want(member, Class::Ahead, &world.map));
    world.plan.want(50, Class::Urgent, &world.map);
    world.plan.want(10, Class::Urgent, &world.map);
    let claimed: Vec<_> = (0..4).map_while(|_| world.claim(false)).collect();
    let order: Vec<_> = claimed
        .iter()
        .map(|segment| (segment.class, segment.members.clone()))
        .collect();
    assert_eq!(
        order[..2],
        [(Class::Urgent, 50..51), (Class::Urgent, 10..14)]
    );
    assert_eq!(order[2..], [(Class::List, 0..10), (Class::List, 14..48)]);
}

#[test]
fn what_nobody_waits_for_leaves_connections_free() {
    let mut world = World::new(2000);
    (0..20).for_each(|n| _ = world.plan.want(n * 100, Class::Ahead, &world.map));
    assert_eq!((0..20).map_while(|_| world.claim(false)).count(), 3);
    world.plan.want(1999, Class::Urgent, &world.map);
    assert_eq!(world.claim(false).unwrap().class, Class::Urgent);
    assert_eq!(world.plan.runners_needed(8), 8);
}

#[test]
fn what_nobody_waits_for_yet_is_one_request_while_the_window_is_full() {
    let mut world = World::new(2000);
    let full = Room { any: false, ..ROOM };
    (0..3).for_each(|n| _ = world.plan.want(n * 100, Class::Ahead, &world.map));
    assert!(matches!(world.claim_in(full), Claim::Segment(_)));
    assert!(matches!(world.claim_in(full), Claim::Later));
    world.plan.want(1999, Class::Urgent, &world.map);
    assert_eq!(world.claim(false).unwrap().class, Class::Urgent);
    assert!(matches!(world.claim_in(full), Claim::Later));
    world.finish();
    assert_eq!(world.received.len(), 4, "nothing was forgotten");
    assert!(matches!(world.claim_in(full), Claim::Nothing));
}

#[test]
fn a_reader_far_down_a_segment_cuts_it_and_one_close_by_waits() {
    let mut world = World::new(100);
    world.plan.rest.add(0..100);
    let segment = world.claim(true).unwrap();
    assert_eq!(segment.members, 0..34, "2 MiB");
    world.progress(0);
    world.plan.want(5, Class::Urgent, &world.map);
    assert!(world.claim(false).is_none());
    assert_eq!(world.plan.urgency(segment.id, 5), Class::Urgent);
    world.plan.want(20, Class::Ahead, &world.map);
    assert!(
        world.claim(false).is_none(),
        "read-ahead is content with what is on its way"
    );
    world.plan.want(20, Class::Urgent, &world.map);
    assert_eq!(world.claim(false).unwrap().members, 20..21);
    assert_eq!(
        world.plan.rest.count(),
        100 - 34 + 13,
        "what lay behind goes back"
    );
    world.finish();
    assert!((0..100).all(|member| world.received[&member] == 1));
}

#[test]
fn a_wish_for_what_the_background_brings_is_not_forgotten() {
    let mut world = World::new(100);
    world.plan.rest.add(0..100);
    world.plan.want(3, Class::List, &world.map);
    world.plan.want(33, Class::Urgent, &world.map);
    assert!(!world.plan.want(4, Class::Ahead, &world.map));
    let segment = world.claim(true).unwrap();
    assert_eq!(segment.members, 0..33, "a reader gets a request of his own");
    assert!(world.plan.want(20, Class::Ahead, &world.map));
    assert!(world.plan.want(20, Class::List, &world.map));
    let urgency = |world: &World, members: [u32; 3]| {
        members.map(|member| world.plan.urgency(segment.id, member))
    };
    let (pressing, rest) = (Class::Ahead, Class::Background);
    assert_eq!(urgency(&world, [2, 20, 21]), [pressing, pressing, rest]);
    world.progress(0);
    world.plan.want(5, Class::Urgent, &world.map);
    assert_eq!(
        urgency(&world, [2, 20, 21]),
        [Class::Urgent, Class::Urgent, rest],
        "they lie before what a reader waits for, or what was wanted before"
    );
    // Cut off: what was wanted of the end is queued for whom it was wanted.
    assert!(!world.plan.want(18, Class::Urgent, &world.map));
    let claimed = [(); 3].map(|()| world.claim(false).unwrap());
    let claimed = claimed.map(|segment| (segment.class, segment.members));
    let expected = [
        (Class::Urgent, 33..34),
        (Class::Urgent, 18..19),
        (Class::Ahead, 20..21),
    ];
    assert_eq!(claimed, expected);
    world.finish();
    assert!((0..100).all(|member| world.received[&member] == 1));
}

#[derive(Debug, Clone)]
enum Step {
    Want(u32, usize),
    Miss(u32),
    Claim(bool),
    Progress(usize),
    Fail(usize),
    Evict(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..120_u32, 0..3_usize).prop_map(|(member, class)| Step::Want(member, class)),
        1 => (0..121_u32).prop_map(Step::Miss),
        2 => any::<bool>().prop_map(Step::Claim),
        8 => (0..8_usize).prop_map(Step::Progress),
        1 => (0..8_usize).prop_map(Step::Fail),
        1 => (0..120_u32).prop_map(Step::Evict),
    ];
    proptest::collection::vec(step, 1..300)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// No member is in two segments, none is fetched while it is cached, and all that was asked
    /// for comes in the end.
    #[test]
    fn every_member_is_fetched_as_often_as_it_is_needed(steps in steps()) {
        let mut world = World::new(120);
        world.plan.rest.add(0..120);
        let mut evicted = HashMap::<u32, u32>::new();
        let mut wanted = HashSet::new();
        for step in steps {
            match step {
                Step::Want(member, class) => {
                    let class = [Class::Urgent, Class::Ahead, Class::List][class];
                    world.plan.want(member, class, &world.map);
                    wanted.insert(member);
                }
                Step::Miss(member) => world.miss(member),
                Step::Claim(background) => _ = world.claim(background),
                Step::Progress(at) if at < world.running.len() => world.progress(at),
                Step::Fail(at) if at < world.running.len() => world.fail(at),
                Step::Evict(member) => {
                    if world.cached.remove(&member) {
                        *evicted.entry(member).or_default() += 1;
                    }
                }
                Step::Progress(_) | Step::Fail(_) => {}
            }
        }
        world.plan.rest.add(0..120);
        world.finish();
        for member in 0..120 {
            let most = 1 + evicted.get(&member).copied().unwrap_or(0);
            prop_assert_eq!(world.received.get(&member).copied().unwrap_or(0), most, "{}", member);
        }
    }
}

#[test]
fn the_background_goes_on_beside_the_last_miss_and_leaves_nothing_out() {
    let mut world = World::new(1000);
    world.plan.rest.add(0..1000);
    assert_eq!(world.claim_rest(4 * LEN).unwrap().members, 0..4);
    world.miss(500);
    let mut next = || world.claim_rest(4 * LEN).unwrap().members;
    assert_eq!(next(), 500..504);
    // What lies behind is half as far as what lies ahead.
    assert_eq!(next(), 496..500);
    assert_eq!((next(), next()), (504..508, 508..512));
    assert_eq!(next(), 492..496);
    world.miss(990);
    assert_eq!(world.claim_rest(4 * LEN).unwrap().members, 990..994);
    world.cached.extend(994..1000);
    assert_eq!(world.claim_rest(4 * LEN).unwrap().members, 986..990);
    // 4 MiB are 70 members: then it is the blob's order again.
    let behind = (0..20).map(|_| world.claim_rest(4 * LEN).unwrap().members);
    let behind: Vec<_> = behind.collect();
    let first = behind.iter().position(|members| members.start < 900);
    assert_eq!(behind[first.unwrap()], 4..8);
    assert!((917..=921).contains(&behind[first.unwrap() - 1].start));
    // As if the layer had one member more than it has.
    world.miss(1000);
    while world.claim_rest(4 * LEN).is_some() {}
    let mut claimed = HashSet::new();
    for (segment, _) in world.running {
        for member in segment.members {
            assert!(claimed.insert(member), "{member} was claimed twice");
        }
    }
    assert_eq!(claimed.len(), 1000 - 6);
}

#[test]
fn a_member_larger_than_a_request_is_one() {
    let mut world = World::new(10);
    world.plan.rest.add(0..10);
    world.miss(5);
    let all: Vec<_> = std::iter::from_fn(|| world.claim_rest(LEN / 2)).collect();
    assert!(all.iter().all(|segment| segment.members.len() == 1));
    assert_eq!(all.len(), 10);
}
