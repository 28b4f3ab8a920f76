//! The plan against a model that plays registry and cache.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::plan::{Class, Plan, Segment, View};
use crate::blob::map::{ChunkId, ChunkInfo, LayerMap, Member, MemberId};

const LEN: u64 = 60_000;

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

    /// What the background asks for while readers wait.
    fn claim_busy(&mut self) -> Option<Segment> {
        let missing = |member| !self.cached.contains(&member);
        let view = View {
            map: &self.map,
            missing: &missing,
        };
        self.plan.claim_rest(true, &view)
    }

    fn claim(&mut self, background: bool) -> Option<Segment> {
        let missing = |member| !self.cached.contains(&member);
        let view = View {
            map: &self.map,
            missing: &missing,
        };
        let segment = if background {
            self.plan.claim_rest(false, &view)
        } else {
            self.plan.claim(3, &view)
        }?;
        self.running.push((segment.clone(), segment.members.start));
        Some(segment)
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
        self.plan.add_rest(lost);
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
    (0..60).for_each(|member| world.plan.want(member, Class::List, &world.map));
    (11..14).for_each(|member| world.plan.want(member, Class::Ahead, &world.map));
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
    assert_eq!(order[2..], [(Class::List, 0..10), (Class::List, 14..50)]);
}

#[test]
fn what_nobody_waits_for_leaves_connections_free() {
    let mut world = World::new(2000);
    (0..20).for_each(|n| world.plan.want(n * 100, Class::Ahead, &world.map));
    assert_eq!((0..20).map_while(|_| world.claim(false)).count(), 3);
    world.plan.want(1999, Class::Urgent, &world.map);
    assert_eq!(world.claim(false).unwrap().class, Class::Urgent);
    assert_eq!(world.plan.runners_needed(8), 8);
}

#[test]
fn a_reader_far_down_a_segment_cuts_it_and_one_close_by_waits() {
    let mut world = World::new(100);
    world.plan.add_rest(0..100);
    let segment = world.claim(true).unwrap();
    assert_eq!(segment.members, 0..34, "2 MiB");
    world.progress(0);
    world.plan.want(5, Class::Urgent, &world.map);
    assert!(world.claim(false).is_none());
    assert!(world.plan.is_pressed(segment.id));
    world.plan.want(20, Class::Ahead, &world.map);
    assert!(
        world.claim(false).is_none(),
        "read-ahead is content with what is on its way"
    );
    world.plan.want(20, Class::Urgent, &world.map);
    assert_eq!(world.claim(false).unwrap().members, 20..21);
    assert_eq!(
        world.plan.rest(),
        100 - 34 + 13,
        "what lay behind goes back"
    );
    world.finish();
    assert!((0..100).all(|member| world.received[&member] == 1));
}

#[derive(Debug, Clone)]
enum Step {
    Want(u32, usize),
    Claim(bool),
    Progress(usize),
    Fail(usize),
    Evict(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..120_u32, 0..3_usize).prop_map(|(member, class)| Step::Want(member, class)),
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
        world.plan.add_rest(0..120);
        let mut evicted = HashMap::<u32, u32>::new();
        let mut wanted = HashSet::new();
        for step in steps {
            match step {
                Step::Want(member, class) => {
                    let class = [Class::Urgent, Class::Ahead, Class::List][class];
                    world.plan.want(member, class, &world.map);
                    wanted.insert(member);
                }
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
        world.plan.add_rest(0..120);
        world.finish();
        for member in 0..120 {
            let most = 1 + evicted.get(&member).copied().unwrap_or(0);
            prop_assert_eq!(world.received.get(&member).copied().unwrap_or(0), most, "{}", member);
        }
    }
}

#[test]
fn while_readers_wait_the_background_stays_behind_them_and_leaves_nothing_out() {
    let mut world = World::new(1000);
    world.plan.add_rest(0..1000);
    world.plan.follow.miss(500, 500 * LEN);
    let first = world.claim_busy().unwrap();
    assert_eq!((first.class, first.members), (Class::Background, 500..504));
    assert_eq!(world.claim_busy().unwrap().members, 504..508);
    world.plan.follow.miss(508, 508 * LEN);
    assert_eq!(
        world.claim_busy().unwrap().members,
        508..512,
        "two windows of a quarter"
    );
    world.plan.follow.miss(990, 990 * LEN);
    assert_eq!(world.claim_busy().unwrap().members, 990..994);
    world.cached.extend(994..1000);
    assert_eq!(
        world.claim_busy().unwrap().members,
        0..4,
        "nothing is missing there"
    );
    let mut claimed: HashSet<u32> = (0..4).chain(500..512).chain(990..1000).collect();
    while let Some(segment) = world.claim(true) {
        for member in segment.members {
            assert!(claimed.insert(member), "{member} was claimed twice");
        }
    }
    assert_eq!(claimed.len(), 1000);
}
