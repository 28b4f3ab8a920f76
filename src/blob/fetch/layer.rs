//! One layer's part in fetching: its plan, its tasks, what becomes of their results.
//!
//! Locking: `plan` before the decoders' queue, and before the flights' table before a shard of the cache's index;
//! `attempts` alone. None is held across an await. A flight begins, and fails, under the lock of the plan in which its member is
//! queued, or stops flying: in between it would look as if nobody had asked, and be asked for twice.

mod background;
mod failed;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::blob::cache::Key;
use crate::blob::fetch::Fetcher;
use crate::blob::fetch::ahead::ReadAhead;
use crate::blob::fetch::flight::{Join, Outcome};
use crate::blob::fetch::limit::Connection;
use crate::blob::fetch::near::Near;
use crate::blob::fetch::plan::{Claim, Class, Plan, Room, Segment, SegmentId, View};
use crate::blob::fetch::stream::Receiver;
use crate::blob::fetch::window::{Asked, Delays};
use crate::blob::map::{ChunkId, ChunkInfo, LayerMap, MemberId};
use crate::blob::read::ReadError;
use crate::blob::stats::{Counters, LayerStats};
use crate::blob::whole::WholeFiles;
use crate::registry::{self, RangeSource};

/// How often a waiter tries again without having been told an error (content that was evicted or
/// found damaged before it could be loaded, leaders of other layers that failed).
const TRIES: u32 = 16;

/// A live layer.
pub(in crate::blob) struct Layer {
    id: u64,
    fetcher: Arc<Fetcher>,
    pub(super) source: Arc<dyn RangeSource>,
    pub(in crate::blob) map: Arc<dyn LayerMap>,
    pub(super) plan: Mutex<Plan>,
    pub(in crate::blob) counters: Counters,
    pub(in crate::blob) ahead: ReadAhead,
    pub(in crate::blob) whole: Arc<WholeFiles>,
    cancel: CancellationToken,
    /// Members that were corrupt, and how often in a row.
    attempts: Mutex<HashMap<u32, u32>>,
    /// Inflated bytes that the background has asked for.
    background: AtomicU64,
    /// Which miss of all layers was its last, counted from 1: the background prefers it.
    pub(super) missed: AtomicU64,
    /// How soon its registry answers.
    pub(super) delays: Delays,
    /// Told when there is something new to ask for.
    wishes: Notify,
    /// Failures of the background in a row; it rests while this has its top bit set.
    failures: AtomicU32,
}

/// What a task that works on the queues does next.
enum Step {
    Run(Segment, Asked),
    /// Until there is room, or something else to do.
    Wait,
    End,
}

/// A place in the queue for a chunk; see [`Layer::join`].
pub(in crate::blob) struct Ticket(Option<oneshot::Receiver<Outcome>>);

impl Layer {
    pub(in crate::blob) fn new(
        fetcher: &Arc<Fetcher>,
        source: Arc<dyn RangeSource>,
        map: Arc<dyn LayerMap>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: fetcher.next_layer.fetch_add(1, Ordering::Relaxed),
            ahead: ReadAhead::new(fetcher.config.readahead.0),
            whole: Arc::new(WholeFiles::new(
                Arc::clone(&fetcher.cache),
                Arc::clone(&map),
            )),
            fetcher: Arc::clone(fetcher),
            source,
            map,
            plan: Mutex::default(),
            counters: Counters::default(),
            cancel: CancellationToken::new(),
            attempts: Mutex::default(),
            background: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            delays: Delays::default(),
            wishes: Notify::new(),
            failures: AtomicU32::new(0),
        })
    }

    pub(in crate::blob) fn fetcher(&self) -> &Arc<Fetcher> {
        &self.fetcher
    }

    /// Asks for nothing more and tells all who wait.
    pub(in crate::blob) fn close(&self) {
        self.cancel.cancel();
        self.fetcher.flights.fail_all(self.id, &self.closed());
    }

    /// Starts as many tasks as the queues can use.
    pub(in crate::blob) fn work(self: &Arc<Self>) {
        let most = self.fetcher.config.max_connections.get() as usize;
        let spawn = {
            let mut plan = self.plan.lock();
            let spawn = plan.runners_needed(most);
            plan.runners += spawn;
            spawn
        };
        self.wishes.notify_waiters();
        for _ in 0..spawn {
            let layer = Arc::clone(self);
            let queues = async move { layer.run_queues().await }.in_current_span();
            self.fetcher.runtime.spawn(queues);
        }
    }

    /// Queues the members of those of `chunks` that are not held, for whoever works next.
    pub(in crate::blob) fn queue_chunks(&self, chunks: impl Iterator<Item = u32>, class: Class) {
        let mut members: Vec<_> = chunks
            .filter_map(|chunk| self.map.chunk(ChunkId(chunk)))
            .filter(|info| {
                !self
                    .fetcher
                    .cache
                    .contains(&Key::new(&info.proof, info.size))
            })
            .map(|info| info.member.0)
            .collect();
        members.dedup();
        {
            let mut plan = self.plan.lock();
            members.retain(|member| plan.want(*member, class, &*self.map));
        }
        self.fetcher.pool.hurry(self, &members);
    }

    /// Sees to it that all that a reader will wait for, chunk by chunk, is on its way together. The flights begin here:
    /// what fails before its reader joins has failed for him too.
    pub(in crate::blob) fn begin(self: &Arc<Self>, chunks: Range<u32>) {
        let mut coming = Vec::new();
        {
            let mut plan = self.plan.lock();
            for info in chunks.filter_map(|chunk| self.map.chunk(ChunkId(chunk))) {
                let key = Key::new(&info.proof, info.size);
                let held = || self.fetcher.cache.contains(&key);
                if self.fetcher.flights.begin(key, self.id, &held)
                    && plan.want(info.member.0, Class::Urgent, &*self.map)
                {
                    coming.push(info.member.0);
                }
            }
        }
        self.fetcher.pool.hurry(self, &coming);
        self.work();
    }

    /// Sees to it that the chunk is on its way, and yields what to wait for.
    pub(in crate::blob) fn join(self: &Arc<Self>, info: &ChunkInfo) -> Ticket {
        let key = Key::new(&info.proof, info.size);
        self.note_miss(info.member);
        let held = || self.fetcher.cache.contains(&key);
        let joined = {
            let mut plan = self.plan.lock();
            let joined = self.fetcher.flights.join(key, self.id, &held);
            if matches!(joined, Join::Lead(_)) {
                plan.want(info.member.0, Class::Urgent, &*self.map);
            }
            joined
        };
        let ticket = match joined {
            Join::Held => Ticket(None),
            // Also for who follows: the flight may have begun when the read was announced.
            Join::Follow(outcome) | Join::Lead(outcome) => {
                self.fetcher.pool.hurry(self, &[info.member.0]);
                Ticket(Some(outcome))
            }
        };
        self.work();
        if self.cancel.is_cancelled() {
            // It may have been closed before the flight began.
            self.close();
        }
        ticket
    }

    /// Waits until a segment must get past `member` for more than the background.
    pub(super) async fn until_wanted(&self, segment: SegmentId, member: u32) {
        loop {
            let wished = self.wishes.notified();
            tokio::pin!(wished);
            // Listened to before it is looked at, so that no wish is missed in between.
            wished.as_mut().enable();
            if self.plan.lock().urgency(segment, member) != Class::Background {
                return;
            }
            wished.await;
        }
    }

    fn note_miss(&self, member: MemberId) {
        let misses = self.fetcher.misses.fetch_add(1, Ordering::Relaxed) + 1;
        self.missed.store(misses, Ordering::Relaxed);
        let offset = |member| self.map.member(MemberId(member)).map(|place| place.offset);
        let mut plan = self.plan.lock();
        if self.fetcher.config.background {
            let near = |offset| Near {
                member: member.0,
                offset,
            };
            plan.near = offset(member.0).map(near);
            return;
        }
        let most = self.fetcher.config.readahead.0;
        for along in plan.along.miss(member.0, most, &offset) {
            plan.want(along, Class::Ahead, &*self.map);
        }
    }

    /// Waits for a chunk.
    pub(in crate::blob) async fn wait(
        self: Arc<Self>,
        mut ticket: Ticket,
        info: ChunkInfo,
    ) -> Result<Bytes, ReadError> {
        let key = Key::new(&info.proof, info.size);
        for _ in 0..TRIES {
            match ticket.0 {
                None => {
                    if let Some(content) = self.fetcher.cache.load(&key) {
                        return Ok(content);
                    }
                }
                Some(outcome) => {
                    if let Ok(Some(result)) = outcome.await {
                        return result;
                    }
                }
            }
            if self.cancel.is_cancelled() {
                return Err(self.closed());
            }
            ticket = self.join(&info);
        }
        Err(self.failed("it was lost again and again before it could be read"))
    }

    /// The layer's counters.
    pub(in crate::blob) fn stats(&self) -> LayerStats {
        LayerStats {
            background_left: self.plan.lock().rest.count(),
            members: self.map.member_count().into(),
            ..self.counters.snapshot()
        }
    }

    /// Counts a segment as under way.
    fn ask(&self, segment: &Segment) -> Asked {
        let places = segment
            .members
            .clone()
            .filter_map(|member| self.map.member(MemberId(member)));
        self.fetcher.window.ask(places.map(|place| place.len).sum())
    }

    /// Brings one segment.
    pub(super) async fn run(
        self: &Arc<Self>,
        segment: Segment,
        asked: Asked,
        connection: Option<Connection>,
    ) {
        let mut receiver = Receiver::new(self, &segment, asked, connection);
        let (class, began) = (segment.class, Instant::now());
        let result = self.cancel.run_until_cancelled(receiver.run()).await;
        let (blob, members, took) = (self.source.digest(), &segment.members, began.elapsed());
        tracing::debug!(%blob, ?class, ?members, ?took, "a request has ended");
        let lost = self.end(&segment, receiver.received, result.as_ref());
        match result {
            Some(Ok(())) => {
                if segment.class == Class::Background {
                    self.failures
                        .fetch_and(background::RESTING, Ordering::Relaxed);
                }
            }
            Some(Err(error)) => self.lost(segment.class, lost, &error),
            None => self.close(),
        }
    }

    /// What the decoding threads made of members: all are done with, `bad` were not as promised.
    pub(super) fn decoded(
        self: &Arc<Self>,
        members: impl Iterator<Item = u32>,
        mut bad: Vec<(u32, String)>,
    ) {
        bad.sort_by_key(|(member, _)| *member);
        bad.dedup_by_key(|(member, _)| *member);
        let members: Vec<_> = members.collect();
        let bad: HashMap<_, _> = bad
            .into_iter()
            .map(|(member, what)| (member, self.corrupt(member, what)))
            .collect();
        let (mut again, mut later) = (false, false);
        // Of what the cache could not keep the background has brought nothing.
        let is_lost = self.fetcher.config.background && self.fetcher.cache.is_paused();
        {
            let mut plan = self.plan.lock();
            for member in members.iter().copied() {
                let is_bad = bad.get(&member);
                if let Some(Some(error)) = is_bad {
                    self.fail(member, error);
                }
                plan.landed(member);
                if self.awaited(member) {
                    // It was not as promised; or someone missed it after it was delivered and before it landed, which
                    // takes a cache that cannot store it.
                    plan.want(member, Class::Urgent, &*self.map);
                    again = true;
                } else if matches!(is_bad, Some(None)) && self.fetcher.config.background
                    || is_lost && self.missing(member)
                {
                    self.leave(&mut plan, member);
                    later = true;
                }
            }
        }
        if !self.attempts.lock().is_empty() {
            let mut attempts = self.attempts.lock();
            let good = members.iter().filter(|member| !bad.contains_key(member));
            good.for_each(|member| _ = attempts.remove(member));
        }
        if again {
            self.work();
        }
        if later {
            self.fetcher.add_background(self);
        }
    }

    /// Members that could not even be looked at.
    pub(super) fn undecodable(self: &Arc<Self>, members: impl Iterator<Item = u32>, what: &str) {
        let members: Vec<_> = members.collect();
        let bad = members
            .iter()
            .map(|member| (*member, what.to_owned()))
            .collect();
        self.decoded(members.into_iter(), bad);
    }

    /// An error of the registry.
    pub(super) fn refused(&self, source: registry::Error) -> ReadError {
        self.fetcher.tally.failed(&source);
        ReadError::Source {
            blob: self.source.digest(),
            source,
        }
    }

    /// An error of our own about the blob.
    pub(super) fn failed(&self, what: &str) -> ReadError {
        self.refused(registry::Error::Protocol(what.to_owned()))
    }

    async fn run_queues(self: Arc<Self>) {
        let window = &self.fetcher.window;
        let mut preferred = None;
        loop {
            let wishes = self.wishes.notified();
            let connection = Connection::of(&self.fetcher.connections).await;
            let next = self.next_step();
            drop(preferred.take());
            match next {
                Step::Run(segment, asked) => self.run(segment, asked, Some(connection)).await,
                Step::Wait => {
                    drop(connection);
                    preferred = Some(window.wait(wishes).await);
                }
                Step::End => return,
            }
        }
    }

    fn next_step(&self) -> Step {
        let most = self.fetcher.config.max_connections.get() as usize;
        let room = Room {
            any: self.fetcher.window.has_room(),
            part: self.fetcher.window.part(),
            requests: most.saturating_sub(2).max(1),
        };
        let mut plan = self.plan.lock();
        let claim = match self.cancel.is_cancelled() {
            true => Claim::Nothing,
            false => plan.claim(room, &self.view(&|member| self.missing(member))),
        };
        // Under the lock that `want` takes: no wish is overlooked, and nobody else finds the same room.
        match claim {
            Claim::Segment(segment) => {
                let asked = self.ask(&segment);
                Step::Run(segment, asked)
            }
            Claim::Later => Step::Wait,
            Claim::Nothing => {
                plan.runners -= 1;
                Step::End
            }
        }
    }

    /// Whether a chunk of `member` is not cached, or awaited all the same.
    fn missing(&self, member: u32) -> bool {
        self.has_chunk(member, |key| !self.fetcher.cache.contains(key)) || self.awaited(member)
    }

    /// Whether someone waits for a chunk of `member`.
    fn awaited(&self, member: u32) -> bool {
        let flights = &self.fetcher.flights;
        !flights.is_empty() && self.has_chunk(member, |key| flights.awaits(key))
    }

    fn has_chunk(&self, member: u32, is: impl Fn(&Key) -> bool) -> bool {
        let mut found = false;
        self.map.chunks_of(MemberId(member), &mut |chunk| {
            let info = self.map.chunk(chunk);
            found = found || info.is_some_and(|info| is(&Key::new(&info.proof, info.size)));
        });
        found
    }

    fn view<'a>(&'a self, missing: &'a dyn Fn(u32) -> bool) -> View<'a> {
        View {
            map: &*self.map,
            missing,
        }
    }

    fn closed(&self) -> ReadError {
        ReadError::Closed {
            blob: self.source.digest(),
        }
    }
}
