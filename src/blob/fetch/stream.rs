//! One request: asks for a segment's range and cuts what arrives into members.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::blob::fetch::decode::Job;
use crate::blob::fetch::layer::Layer;
use crate::blob::fetch::plan::{Class, Segment};
use crate::blob::fetch::window::Asked;
use crate::blob::map::MemberId;
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

/// A segment while it is received.
pub(super) struct Receiver<'a> {
    layer: &'a Arc<Layer>,
    segment: &'a Segment,
    /// What has not come yet.
    asked: Asked,
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
    /// The first member that was not received.
    pub received: u32,
}

impl<'a> Receiver<'a> {
    pub(super) fn new(layer: &'a Arc<Layer>, segment: &'a Segment, asked: Asked) -> Self {
        Self {
            layer,
            segment,
            asked,
            stream: None,
            waiting: None,
            left: Bytes::new(),
            at: 0,
            batch: job(layer),
            batched: 0,
            is_borrowed: false,
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
        let Some(last) = self.segment.members.clone().next_back() else {
            return Ok(());
        };
        let place = |member| self.layer.map.member(MemberId(member));
        let (Some(first), Some(last)) = (place(self.segment.members.start), place(last)) else {
            return Err(self.layer.failed("the index has no such member"));
        };
        let range = first.offset..last.offset.saturating_add(last.len);
        if range.is_empty() || range.end > self.layer.source.size() {
            return Err(self.layer.failed("the index points beyond the blob"));
        }
        self.at = range.start;
        Counters::add(&self.layer.counters.requests, 1);
        self.layer.fetcher().tally.request(self.segment.class);
        self.waiting = Some(Instant::now());
        let answer = self.layer.source.range(range);
        let answer = unless_stalled(STALL, answer, || self.asked.give_up()).await;
        self.stream = Some(answer.map_err(|e| self.layer.refused(e))?);
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

    async fn member(&mut self, member: u32) -> Result<(), ReadError> {
        let Some(place) = self.layer.map.member(MemberId(member)) else {
            return Err(self.layer.failed("the index has no such member"));
        };
        let fetcher = self.layer.fetcher();
        let most = place.len.saturating_add(place.inflated);
        if self.batched + most > BATCH {
            self.submit();
        }
        let permit = match fetcher.try_reserve(self.segment.class, most) {
            Some(permit) => Some(permit),
            None => {
                // Who waits for budget must hold none, or two could wait for each other.
                self.submit();
                self.reserve(member, most).await
            }
        };
        while self.at < place.offset {
            let skipped = self.take(place.offset - self.at).await?;
            drop(skipped);
        }
        let mut pieces = Vec::new();
        let mut missing = place.len;
        while missing > 0 {
            let piece = self.take(missing).await?;
            missing -= piece.len() as u64;
            pieces.push(piece);
        }
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

    /// Waits until `bytes` more may be in flight. Where the background's share is used up by what is decoded last, the segment
    /// goes on at the readers' expense once one waits for it.
    async fn reserve(&mut self, member: u32, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let (layer, segment) = (self.layer, self.segment);
        let fetcher = layer.fetcher();
        let reserved = async {
            tokio::select! {
                permit = fetcher.reserve(segment.class, bytes) => (permit, false),
                () = layer.until_wanted(segment.id, member) => (fetcher.reserve(Class::Urgent, bytes).await, true),
            }
        };
        let permit;
        (permit, self.is_borrowed) = unless_stalled(HELD, reserved, || self.asked.give_up()).await;
        permit
    }

    /// The next bytes, at least one and at most `most`.
    async fn take(&mut self, most: u64) -> Result<Bytes, ReadError> {
        while self.left.is_empty() {
            let next = match &mut self.stream {
                Some(stream) => unless_stalled(STALL, stream.next(), || self.asked.give_up()).await,
                None => None,
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
            fetcher.tally.received(self.segment.class, piece.len());
            self.left = piece;
        }
        let len = self
            .left
            .len()
            .min(usize::try_from(most).unwrap_or(usize::MAX));
        self.at += len as u64;
        Ok(self.left.split_to(len))
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
    match tokio::time::timeout(long, &mut coming).await {
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
