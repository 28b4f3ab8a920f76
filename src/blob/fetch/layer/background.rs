//! What the background has left to fetch of a layer, and when it rests.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::blob::fetch::layer::Layer;
use crate::blob::fetch::plan::{Plan, Segment};
use crate::blob::fetch::window::Asked;
use crate::blob::map::MemberId;

/// Set in `failures` while the background rests.
pub(super) const RESTING: u32 = 1 << 31;
/// Share of the cache that the background of one layer may fill: a layer that is larger than the
/// cache must not evict its own start for its end.
const BACKGROUND_SHARE: (u64, u64) = (3, 4);
/// How long the background of a layer rests after a failure, doubling.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(60);

impl Layer {
    /// Gives the background all that is missing.
    pub(in crate::blob) fn start_background(self: &Arc<Self>) {
        if self.fetcher.config.background {
            let members = self.map.member_count();
            self.plan.lock().rest.add(0..members);
            self.fetcher.add_background(self);
        }
    }

    /// The next segment for the background, unless there is none or it rests.
    pub(in crate::blob::fetch) fn claim_background(
        self: &Arc<Self>,
        cache: u64,
    ) -> Option<(Segment, Asked)> {
        let resting = self.failures.load(Ordering::Relaxed) & RESTING != 0;
        if resting || self.cancel.is_cancelled() {
            return None;
        }
        if self.fetcher.cache.is_paused() {
            self.rest_background();
            return None;
        }
        let mut plan = self.plan.lock();
        let most = cache / BACKGROUND_SHARE.1 * BACKGROUND_SHARE.0;
        if self.background.load(Ordering::Relaxed) >= most {
            plan.rest.clear();
            return None;
        }
        let part = self.fetcher.window.part().min(self.fetcher.rate.part());
        let segment = plan.claim_rest(part, &self.view(&|member| self.missing(member)))?;
        let asked = self.ask(&segment);
        let inflated = segment
            .members
            .clone()
            .filter_map(|member| self.map.member(MemberId(member)));
        let inflated = inflated.map(|member| member.inflated).sum();
        self.background.fetch_add(inflated, Ordering::Relaxed);
        Some((segment, asked))
    }

    /// Leaves a member to the background, once more: it was asked for, and did not come to stay.
    pub(in crate::blob::fetch) fn leave(&self, plan: &mut Plan, member: u32) {
        plan.rest.add(member..member + 1);
        let inflated = self
            .map
            .member(MemberId(member))
            .map_or(0, |place| place.inflated);
        let rest = |asked: u64| Some(asked.saturating_sub(inflated));
        let _ = self
            .background
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest);
    }

    /// Whether the background has something left to ask for.
    pub(in crate::blob::fetch) fn has_rest(&self) -> bool {
        self.plan.lock().rest.first().is_some()
    }

    /// Lets the background try again later.
    pub(super) fn rest_background(self: &Arc<Self>) {
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
}
