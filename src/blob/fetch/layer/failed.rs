//! What becomes of members that did not come, or not as promised: they are asked for again, or their readers told.

use std::ops::Range;
use std::sync::Arc;

use crate::blob::cache::Key;
use crate::blob::fetch::layer::Layer;
use crate::blob::fetch::plan::{Class, Segment};
use crate::blob::map::MemberId;
use crate::blob::read::ReadError;
use crate::blob::stats::Counters;

impl Layer {
    /// A request has ended: tells the readers of what it did not bring, if it failed, and yields that.
    pub(super) fn end(
        &self,
        segment: &Segment,
        received: u32,
        result: Option<&Result<(), ReadError>>,
    ) -> Range<u32> {
        let mut plan = self.plan.lock();
        let lost = plan.ended(segment.id, received);
        if let Some(Err(error)) = result {
            lost.clone().for_each(|member| self.fail(member, error));
        }
        lost
    }

    /// What becomes of members that a failed request did not bring, once their readers were told.
    pub(super) fn lost(self: &Arc<Self>, class: Class, lost: Range<u32>, error: &ReadError) {
        tracing::warn!(blob = %self.source.digest(), ?class, members = ?lost, %error, "fetching failed");
        if class == Class::Background {
            let mut plan = self.plan.lock();
            lost.for_each(|member| self.leave(&mut plan, member));
            drop(plan);
            self.rest_background();
        }
    }

    /// A member that was not as promised: yields what its readers are told once it has been asked for often enough.
    pub(super) fn corrupt(&self, member: u32, what: String) -> Option<ReadError> {
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
        (attempts > self.fetcher.config.corrupt_retries).then_some(ReadError::Corrupt {
            blob,
            offset,
            what,
            attempts,
        })
    }

    /// Ends the flights that this layer leads for chunks of `member`, under the lock of the plan in which it stops flying.
    pub(super) fn fail(&self, member: u32, error: &ReadError) {
        self.map.chunks_of(MemberId(member), &mut |chunk| {
            if let Some(info) = self.map.chunk(chunk) {
                self.fetcher
                    .flights
                    .fail(&Key::new(&info.proof, info.size), self.id, error);
            }
        });
    }
}
