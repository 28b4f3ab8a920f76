//! One layer's part in fetching: its plan, its tasks, what becomes of their results.
//!
//! Locking: `plan` before the flights' table before a shard of the cache's index; `attempts`
//! alone. None is held across an await.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::blob::cache::Key;
use crate::blob::fetch::Fetcher;
use crate::blob::fetch::ahead::ReadAhead;
use crate::blob::fetch::flight::{Join, Outcome};
use crate::blob::fetch::plan::{Class, Plan, Segment, View};
use crate::blob::fetch::stream::Receiver;
use crate::blob::map::{ChunkId, ChunkInfo, LayerMap, MemberId};
use crate::blob::read::ReadError;
use crate::blob::stats::{Counters, LayerStats};
use crate::blob::whole::WholeFiles;
use crate::registry::{self, RangeSource};

/// Share of the cache that the background of one layer may fill: a layer that is larger than the
/// cache must not evict its own start for its end.
const BACKGROUND_SHARE: (u64, u64) = (3, 4);
/// How long the background of a layer rests after a failure, doubling.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(60);
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
    /// When a reader of it last had to wait, in [`limit::LastMiss`](super::limit::LastMiss)'s time: the background prefers it.
    pub(super) missed: AtomicU64,
    /// Failures of the background in a row; it rests while this has its top bit set.
    failures: AtomicU32,
}

/// Set in `failures` while the background rests.
const RESTING: u32 = 1 << 31;

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
            failures: AtomicU32::new(0),
        })
    }

    pub(in crate::blob) fn fetcher(&self) -> &Arc<Fetcher> {
        &self.fetcher
    }

    /// Gives the background all that is missing.
    pub(in crate::blob) fn start_background(self: &Arc<Self>) {
        if self.fetcher.config.background {
            let members = self.map.member_count();
            self.plan.lock().add_rest(0..members);
            self.fetcher.add_background(self);
        }
    }

    /// Asks for nothing more and tells all who wait.
    pub(in crate::blob) fn close(&self) {
        self.cancel.cancel();
        self.fetcher.flights.fail_all(self.id, &self.closed());
    }

    /// Queues members and starts tasks as they are needed.
    pub(in crate::blob) fn want(
        self: &Arc<Self>,
        members: impl Iterator<Item = u32>,
        class: Class,
    ) {
        self.queue(members, class);
        self.work();
    }

    /// Queues members for whoever works next.
    fn queue(&self, members: impl Iterator<Item = u32>, class: Class) {
        let mut plan = self.plan.lock();
        for member in members {
            plan.want(member, class, &*self.map);
        }
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
        self.queue(members.into_iter(), class);
    }

    /// Sees to it that the chunk is on its way, and yields what to wait for.
    pub(in crate::blob) fn join(self: &Arc<Self>, info: &ChunkInfo) -> Ticket {
        let key = Key::new(&info.proof, info.size);
        self.note_miss(info.member);
        let held = || self.fetcher.cache.contains(&key);
        let ticket = match self.fetcher.flights.join(key, self.id, &held) {
            Join::Held => Ticket(None),
            Join::Follow(outcome) => Ticket(Some(outcome)),
            Join::Lead(outcome) => {
                self.queue(std::iter::once(info.member.0), Class::Urgent);
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

    fn note_miss(&self, member: MemberId) {
        self.missed
            .store(self.fetcher.last_miss.note(), Ordering::Relaxed);
        let offset = |member| self.map.member(MemberId(member)).map(|place| place.offset);
        let mut plan = self.plan.lock();
        if self.fetcher.config.background {
            if let Some(at) = offset(member.0) {
                plan.follow.miss(member.0, at);
            }
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
            background_left: self.plan.lock().rest(),
            members: self.map.member_count().into(),
            ..self.counters.snapshot()
        }
    }

    /// About how many bytes the background has still to bring.
    pub(super) fn left(&self) -> u64 {
        let (rest, all) = (self.plan.lock().rest(), self.map.member_count());
        let left = u128::from(self.source.size()) * u128::from(rest) / u128::from(all.max(1));
        u64::try_from(left).unwrap_or(u64::MAX)
    }

    /// Most requests of the background at a time while readers of this layer wait, of `all`.
    pub(super) fn follows(&self, all: NonZeroU32) -> u32 {
        self.plan.lock().follow.requests(all.get())
    }

    /// The next segment for the background, unless there is none or it rests.
    pub(super) fn claim_background(&self, cache: u64, busy: bool) -> Option<Segment> {
        let resting = self.failures.load(Ordering::Relaxed) & RESTING != 0;
        if resting || self.cancel.is_cancelled() {
            return None;
        }
        let mut plan = self.plan.lock();
        let most = cache / BACKGROUND_SHARE.1 * BACKGROUND_SHARE.0;
        if self.background.load(Ordering::Relaxed) >= most {
            plan.clear_rest();
            return None;
        }
        let segment = plan.claim_rest(busy, &self.view(&|member| self.missing(member)))?;
        let inflated = segment
            .members
            .clone()
            .filter_map(|member| self.map.member(MemberId(member)));
        let inflated = inflated.map(|member| member.inflated).sum();
        self.background.fetch_add(inflated, Ordering::Relaxed);
        Some(segment)
    }

    /// Brings one segment.
    pub(super) async fn run(self: &Arc<Self>, segment: Segment) {
        let mut receiver = Receiver::new(self, &segment);
        let (class, began) = (segment.class, Instant::now());
        let result = self.cancel.run_until_cancelled(receiver.run()).await;
        let (blob, members, took) = (self.source.digest(), &segment.members, began.elapsed());
        tracing::debug!(%blob, ?class, ?members, ?took, "a request has ended");
        let lost = self.plan.lock().ended(segment.id, receiver.received);
        match result {
            Some(Ok(())) => {
                if segment.class == Class::Background {
                    self.failures.store(0, Ordering::Relaxed);
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
        bad.dedup_by_key(|(member, _)| *member);
        let members: Vec<_> = members.collect();
        {
            let mut plan = self.plan.lock();
            members.iter().for_each(|member| plan.landed(*member));
        }
        if !self.attempts.lock().is_empty() {
            let good = |member: &&u32| bad.iter().all(|(other, _)| other != *member);
            let mut attempts = self.attempts.lock();
            members
                .iter()
                .filter(good)
                .for_each(|member| _ = attempts.remove(member));
        }
        for (member, what) in bad {
            self.corrupt(member, what);
        }
        if !self.fetcher.flights.is_empty() {
            // Someone may have missed it after it was delivered and before it landed, which takes
            // a cache that cannot store it.
            let again: Vec<_> = members
                .into_iter()
                .filter(|member| self.awaited(*member))
                .collect();
            self.want(again.into_iter(), Class::Urgent);
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
        let most = self.fetcher.config.max_connections.get() as usize;
        let low = most.saturating_sub(2).max(1);
        loop {
            let connection = self.fetcher.connections.acquire().await;
            let segment = {
                let mut plan = self.plan.lock();
                let segment = plan.claim(low, &self.view(&|member| self.missing(member)));
                let Some(segment) = segment.filter(|_| !self.cancel.is_cancelled()) else {
                    // Under the lock that `want` takes: no wish is overlooked.
                    plan.runners -= 1;
                    return;
                };
                segment
            };
            self.run(segment).await;
            drop(connection);
        }
    }

    /// Members that a failed request did not bring.
    fn lost(self: &Arc<Self>, class: Class, lost: Range<u32>, error: &ReadError) {
        tracing::warn!(blob = %self.source.digest(), ?class, members = ?lost, %error, "fetching failed");
        for member in lost.clone() {
            self.fail(member, error);
        }
        if class == Class::Background {
            self.plan.lock().add_rest(lost);
            self.rest_background();
        }
    }

    /// Lets the background try again later.
    fn rest_background(self: &Arc<Self>) {
        let before = self.failures.fetch_or(RESTING, Ordering::Relaxed);
        if before & RESTING != 0 {
            return;
        }
        let rest = FIRST_REST
            .saturating_mul(1 << before.min(16))
            .min(LONGEST_REST);
        let layer = Arc::clone(self);
        self.fetcher.runtime.spawn(async move {
            let slept = layer
                .cancel
                .run_until_cancelled(tokio::time::sleep(rest))
                .await;
            layer
                .failures
                .store(before.saturating_add(1).min(16), Ordering::Relaxed);
            if slept.is_some() {
                layer.fetcher.add_background(&layer);
            }
        });
    }

    /// A member that was not as promised: once more, or its readers get an error.
    fn corrupt(self: &Arc<Self>, member: u32, what: String) {
        Counters::add(&self.counters.corrupt, 1);
        self.fetcher.tally.corrupt();
        let blob = self.source.digest();
        let place = self.map.member(MemberId(member));
        let offset = place.as_ref().map_or(0, |member| member.offset);
        if let Some(place) = place {
            self.source
                .was_wrong(place.offset..place.offset.saturating_add(place.len));
        }
        let attempts = {
            let mut attempts = self.attempts.lock();
            let count = attempts.entry(member).or_insert(0);
            *count += 1;
            let count = *count;
            if count > self.fetcher.config.corrupt_retries {
                attempts.remove(&member);
            }
            count
        };
        tracing::warn!(%blob, offset, what, attempts, "the registry sent wrong content");
        if attempts > self.fetcher.config.corrupt_retries {
            let error = ReadError::Corrupt {
                blob,
                offset,
                what,
                attempts,
            };
            self.fail(member, &error);
        } else if self.awaited(member) {
            self.want(std::iter::once(member), Class::Urgent);
        } else if self.fetcher.config.background {
            self.plan.lock().add_rest(member..member + 1);
            self.fetcher.add_background(self);
        }
    }

    /// Ends the flights that this layer leads for chunks of `member`.
    fn fail(&self, member: u32, error: &ReadError) {
        self.map.chunks_of(MemberId(member), &mut |chunk| {
            if let Some(info) = self.map.chunk(chunk) {
                self.fetcher
                    .flights
                    .fail(&Key::new(&info.proof, info.size), self.id, error);
            }
        });
    }

    /// Whether a chunk of `member` is not cached, or awaited all the same.
    fn missing(&self, member: u32) -> bool {
        let mut missing = false;
        self.map.chunks_of(MemberId(member), &mut |chunk| {
            let key = self
                .map
                .chunk(chunk)
                .map(|info| Key::new(&info.proof, info.size));
            missing |= key.is_some_and(|key| !self.fetcher.cache.contains(&key));
        });
        missing || self.awaited(member)
    }

    /// Whether someone waits for a chunk of `member`.
    fn awaited(&self, member: u32) -> bool {
        let mut awaited = false;
        if !self.fetcher.flights.is_empty() {
            self.map.chunks_of(MemberId(member), &mut |chunk| {
                let key = self
                    .map
                    .chunk(chunk)
                    .map(|info| Key::new(&info.proof, info.size));
                awaited |= key.is_some_and(|key| self.fetcher.flights.awaits(&key));
            });
        }
        awaited
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
