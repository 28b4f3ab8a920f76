//! One request: asks for a segment's range and cuts what arrives into members.
//!
//! One that nothing comes to takes nothing from the others: neither room in the window, nor a connection, nor memory that they
//! wait for. What it had received of a member is then given up, and asked for again should the registry come back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};

use crate::blob::fetch::decode::Job;
use crate::blob::fetch::layer::Layer;
use crate::blob::fetch::limit::Connection;
use crate::blob::fetch::plan::{Class, Segment};
use crate::blob::fetch::window::Asked;
use crate::blob::map::{Member, MemberId};
use crate::blob::read::ReadError;
use crate::blob::stats::Counters;
use crate::registry::ByteStream;

/// Small members are decoded together up to this many compressed bytes, unless a reader waits.
const BATCH: u64 = 128 << 10;

/// How long nothing may come until a request no longer counts as under way: its bytes are on no line, and one dead registry
/// must not keep the others' from being asked for.
const STALL: Duration = Duration::from_secs(1);
/// The same of what could come, and is not taken for lack of memory: longer than decoding a few members takes.
const HELD: Duration = Duration::from_millis(100);
/// How often a request gives up what it has of a member: a link that stops now and then must get it through in the end.
const GIVEN_UP: u32 = 3;

/// A segment while it is received.
pub(super) struct Receiver<'a> {
    layer: &'a Arc<Layer>,
    segment: &'a Segment,
    /// What has not come yet.
    asked: Asked,
    /// None for the background, whose requests are counted elsewhere.
    connection: Option<Connection>,
    stream: Option<ByteStream>,
    /// When it was asked for, until the answer begins.
    waiting: Option<Instant>,
    /// Received and not used yet.
    left: Bytes,
    /// Where in the blob `left` starts.
    at: u64,
    batch: Job,
    batched: u64,
    /// Whether what is in `batch` takes of the readers' memory, though none waits for it.
    is_borrowed: bool,
    /// How often what had come of a member was given up.
    given_up: u32,
    /// The first member that was not received.
    pub received: u32,
}

impl<'a> Receiver<'a> {
    pub(super) fn new(
        layer: &'a Arc<Layer>,
        segment: &'a Segment,
        asked: Asked,
        connection: Option<Connection>,
    ) -> Self {
        Self {
            layer,
            segment,
            asked,
            connection,
            stream: None,
            waiting: None,
            left: Bytes::new(),
            at: 0,
            batch: job(layer),
            batched: 0,
            is_borrowed: false,
            given_up: 0,
            received: segment.members.start,
        }
    }

    /// Receives all members, or those before one that was taken out of the segment.
    pub(super) async fn run(&mut self) -> Result<(), ReadError> {
        let result = self.receive().await;
        self.submit();
        result
    }

    async fn receive(&mut self) -> Result<(), ReadError> {
        let Some(first) = self.layer.map.member(MemberId(self.segment.members.start)) else {
            return Err(self.layer.failed("the index has no such member"));
        };
        self.ask(first.offset).await?;
        let is_list = self.segment.class == Class::List;
        let _arriving = is_list.then(|| self.layer.fetcher().lists.enter());
        for member in self.segment.members.clone() {
            if !self.layer.plan.lock().advance(self.segment.id, member) {
                return Ok(());
            }
            self.member(member).await?;
            self.received = member + 1;
        }
        Ok(())
    }

    /// Asks for the segment from `start` on.
    async fn ask(&mut self, start: u64) -> Result<(), ReadError> {
        let (layer, members) = (self.layer, &self.segment.members);
        let last = members.clone().next_back();
        let Some(last) = last.and_then(|last| layer.map.member(MemberId(last))) else {
            return Err(layer.failed("the index has no such member"));
        };
        let range = start..last.offset.saturating_add(last.len);
        if range.is_empty() || range.end > layer.source.size() {
            return Err(layer.failed("the index points beyond the blob"));
        }
        (self.at, self.left) = (start, Bytes::new());
        Counters::add(&layer.counters.requests, 1);
        layer.fetcher().tally.request(self.segment.class);
        self.waiting = Some(Instant::now());
        let answer = layer.source.range(range);
        let answer = unless_stalled(STALL, answer, || self.stalled()).await;
        self.stream = Some(answer.map_err(|e| layer.refused(e))?);
        Ok(())
    }

    async fn member(&mut self, member: u32) -> Result<(), ReadError> {
        let Some(place) = self.layer.map.member(MemberId(member)) else {
            return Err(self.layer.failed("the index has no such member"));
        };
        let most = place.len.saturating_add(place.inflated);
        if self.batched + most > BATCH {
            self.submit();
        }
        let (pieces, permit) = loop {
            let permit = self.room(member, most).await;
            if let Some(pieces) = self.pieces(&place, permit.as_ref()).await? {
                break (pieces, permit);
            }
            drop(permit);
            self.resume(&place).await?;
        };
        self.batch.members.push((member, pieces));
        self.batch.permits.extend(permit);
        self.batched += most;
        let is_awaited = || {
            let plan = self.layer.plan.lock();
            plan.urgency(self.segment.id, member) == Class::Urgent
        };
        if self.batched > BATCH || is_awaited() {
            self.submit();
        }
        Ok(())
    }

    /// The memory for a member of `bytes`.
    async fn room(&mut self, member: u32, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let fetcher = self.layer.fetcher();
        match fetcher.budget(self.segment.class).try_reserve(bytes) {
            Some(permit) => Some(permit),
            None => {
                // Who waits for budget must hold none, or two could wait for each other.
                self.submit();
                self.reserve(member, bytes).await
            }
        }
    }

    /// What a member consists of. None if it stopped coming, and others wait for the memory that `room` holds.
    async fn pieces(
        &mut self,
        place: &Member,
        room: Option<&OwnedSemaphorePermit>,
    ) -> Result<Option<Vec<Bytes>>, ReadError> {
        let mut pieces = Vec::new();
        let end = place.offset.saturating_add(place.len);
        while self.at < end {
            let may_give_up = pieces.is_empty() || self.given_up < GIVEN_UP;
            if !self.fill(room.filter(|_| may_give_up)).await? {
                return Ok(None);
            }
            if self.at < place.offset {
                drop(self.take(place.offset - self.at));
            } else {
                pieces.push(self.take(end - self.at));
            }
        }
        Ok(Some(pieces))
    }

    /// Waits, without memory, until something comes again, and asks again for what was given up.
    async fn resume(&mut self, place: &Member) -> Result<(), ReadError> {
        self.is_borrowed = false;
        self.fill(None).await?;
        if self.at <= place.offset {
            return Ok(());
        }
        self.given_up += 1;
        self.ask(place.offset).await
    }

    /// Waits until `bytes` more may be in flight. Where the background's share is used up by what is decoded last, the segment
    /// goes on at the readers' expense once one waits for it.
    async fn reserve(&mut self, member: u32, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let (layer, segment) = (self.layer, self.segment);
        let fetcher = layer.fetcher();
        let reserved = async {
            tokio::select! {
                permit = fetcher.budget(segment.class).reserve(bytes) => (permit, false),
                () = layer.until_wanted(segment.id, member) => {
                    (fetcher.budget(Class::Urgent).reserve(bytes).await, true)
                }
            }
        };
        let permit;
        (permit, self.is_borrowed) = unless_stalled(HELD, reserved, || self.asked.give_up()).await;
        permit
    }

    /// Waits until there are bytes to take; false if none came for long, and others wait for the memory that `room` holds.
    async fn fill(&mut self, room: Option<&OwnedSemaphorePermit>) -> Result<bool, ReadError> {
        while self.left.is_empty() {
            let next = match &mut self.stream {
                Some(stream) => timeout(STALL, stream.next()).await,
                None => Ok(None),
            };
            let Ok(next) = next else {
                self.stalled();
                if room.is_some_and(|room| self.layer.fetcher().is_wanted(room)) {
                    return Ok(false);
                }
                continue;
            };
            let piece = match next {
                Some(piece) => piece.map_err(|error| self.layer.refused(error))?,
                None => return Err(self.layer.failed("the answer ended early")),
            };
            Counters::add(&self.layer.counters.fetched, piece.len() as u64);
            let fetcher = self.layer.fetcher();
            if let Some(waiting) = self.waiting.take() {
                self.asked.began(waiting.elapsed(), &self.layer.delays);
            }
            self.asked.arrived(piece.len());
            self.connection.iter_mut().for_each(Connection::take_up);
            fetcher.tally.received(self.segment.class, piece.len());
            self.left = piece;
        }
        Ok(true)
    }

    /// Of what is there, at most `most` bytes.
    fn take(&mut self, most: u64) -> Bytes {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let len = self.left.len().min(most);
        self.at += len as u64;
        self.left.split_to(len)
    }

    /// Nothing comes: others may have what this request holds.
    fn stalled(&mut self) {
        self.asked.give_up();
        self.connection.iter_mut().for_each(Connection::let_go);
        if !self.batch.members.is_empty() {
            self.submit();
        }
    }

    /// Hands on what has been received.
    fn submit(&mut self) {
        let full = std::mem::replace(&mut self.batch, job(self.layer));
        self.batched = 0;
        let is_borrowed = std::mem::take(&mut self.is_borrowed);
        // Until it is with the decoders: who wants a member now is known here, who wants it later finds it there.
        let plan = self.layer.plan.lock();
        let classes = full.members.iter().map(|(member, _)| plan.class(*member));
        // What readers could use is given back soon.
        let borrowed = |class| if is_borrowed { Class::Urgent } else { class };
        if let Some(class) = classes.min().map(borrowed) {
            self.layer.fetcher().pool.submit(full, class);
        }
    }
}

/// Waits for what is to come; `stalled` is told once nothing has for so long.
async fn unless_stalled<T>(
    long: Duration,
    coming: impl Future<Output = T>,
    stalled: impl FnOnce(),
) -> T {
    tokio::pin!(coming);
    match timeout(long, &mut coming).await {
        Ok(came) => came,
        Err(_) => {
            stalled();
            coming.await
        }
    }
}

fn job(layer: &Arc<Layer>) -> Job {
    Job {
        layer: Arc::clone(layer),
        members: Vec::new(),
        permits: Vec::new(),
    }
}
