//! Brings content from the registry into the cache, and to whoever waits for it.
//!
//! The way of a byte: [`plan`] chooses a run of members ([`plan::Segment`]), [`stream`] asks for it
//! in one request and cuts what arrives into members, [`decode`] inflates them on threads of their
//! own, verifies every chunk and puts it into the cache, [`flight`] wakes who waits. [`layer`]
//! holds one layer's part of that, [`Fetcher`] what all layers share.
//!
//! Promises: what a waiter gets is verified (or never can be: legacy stargz); content is asked for
//! once however many wait; a blocked reader comes before read-ahead, that before the prefetch
//! list, that before the background; bytes in flight are bounded by `memory`; nothing is asked for
//! after a layer was closed; a silent registry keeps nobody waiting for another's content for more than moments.

mod ahead;
mod along;
mod budget;
mod decode;
#[cfg(test)]
mod fakes;
mod flight;
mod layer;
mod limit;
mod near;
mod plan;
mod rest;
mod stream;
mod tally;
mod window;

#[cfg(test)]
mod failing_tests;
#[cfg(test)]
mod hurry_tests;
#[cfg(test)]
mod once_tests;
#[cfg(test)]
mod plan_tests;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::blob::cache::Cache;
use crate::blob::size::ByteSize;

use budget::Budget;
use flight::Flights;
use limit::{Arriving, LONGEST_WAIT, RateLimit, RightOfWay};
pub(super) use plan::Class;
use window::{Asked, Window};

pub(super) use layer::Layer;
pub use tally::{FetchStats, PURPOSES, TROUBLES};

/// The section `[fetch]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether the rest of a layer is fetched while the link is idle, from the mount on. Default
    /// `true`. With `false` only what is read is fetched.
    pub background: bool,
    /// Whether what a start needs is fetched before it is read: the start of a layer up to its prefetch landmark (eStargz), or
    /// else what each start reads, the program that the image names, and the libraries of what is started.
    /// Default `true`.
    pub prefetch: bool,
    /// Most bytes per second that the background fetches, over all layers. Default `0`: no limit.
    pub rate_limit: ByteSize,
    /// Most requests at a time for one layer, the background's not counted. Default 8.
    pub max_connections: NonZeroU32,
    /// Most requests at a time for all layers, the background's not counted, nor those that nothing comes to. Default 24.
    pub max_connections_total: NonZeroU32,
    /// Most requests at a time of the background. Default 4.
    pub background_connections: NonZeroU32,
    /// How far ahead of a sequential reader is fetched, in bytes of content. Default `16MiB`; `0`
    /// turns it off.
    pub readahead: ByteSize,
    /// Most bytes in flight (compressed and inflated), over all layers. Default `32MiB`.
    pub memory: ByteSize,
    /// How often content that is not the promised one is fetched again before the read fails.
    /// Default 3.
    pub corrupt_retries: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            background: true,
            prefetch: true,
            rate_limit: ByteSize(0),
            max_connections: NonZeroU32::MIN.saturating_add(7),
            max_connections_total: NonZeroU32::MIN.saturating_add(23),
            background_connections: NonZeroU32::MIN.saturating_add(3),
            readahead: ByteSize(16 << 20),
            memory: ByteSize(32 << 20),
            corrupt_retries: 3,
        }
    }
}

/// What all layers share: cache, flights, decoding threads, budgets, the background's turn.
pub struct Fetcher {
    config: Config,
    cache: Arc<Cache>,
    runtime: Handle,
    flights: Flights,
    pool: decode::Pool,
    connections: Arc<Semaphore>,
    /// Half for what is waited for, half for the background, so that neither holds up the other.
    budget: [Budget; 2],
    rate: RateLimit,
    /// What is known to be needed at a start.
    lists: Arc<RightOfWay>,
    /// Readers that had to wait so far.
    misses: AtomicU64,
    window: Arc<Window>,
    tally: tally::Tally,
    background: Mutex<Background>,
    next_layer: AtomicU64,
}

/// Layers the background has still to go through, in the order they were mounted.
#[derive(Default)]
struct Background {
    layers: VecDeque<Weak<Layer>>,
    runners: u32,
    /// Its requests at the moment.
    under_way: u32,
}

impl Fetcher {
    /// A fetcher into `cache` whose requests run on `runtime`. It starts the decoding threads, one
    /// per core.
    #[must_use]
    pub fn new(cache: Arc<Cache>, config: Config, runtime: Handle) -> Arc<Self> {
        let budget = || Budget::new(config.memory.0 / 2);
        Arc::new(Self {
            cache,
            runtime,
            flights: Flights::default(),
            pool: decode::Pool::new(),
            connections: Arc::new(Semaphore::new(config.max_connections_total.get() as usize)),
            budget: [budget(), budget()],
            rate: RateLimit::new(config.rate_limit.0),
            lists: Arc::default(),
            misses: AtomicU64::new(0),
            window: Arc::default(),
            tally: tally::Tally::default(),
            background: Mutex::default(),
            next_layer: AtomicU64::new(0),
            config,
        })
    }

    /// The cache it fills.
    #[must_use]
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// What it has fetched so far, and what is going on.
    #[must_use]
    pub fn stats(&self) -> FetchStats {
        let most = u64::from(self.config.max_connections_total.get());
        FetchStats {
            requests_now: most.saturating_sub(self.connections.available_permits() as u64),
            background_now: self.background.lock().under_way.into(),
            in_flight: self.budget.iter().map(Budget::in_flight).sum(),
            best_rate: self.window.best_rate(),
            ..self.tally.get()
        }
    }

    /// Requests so far for what nobody had asked for before a reader needed it.
    #[must_use]
    pub fn unforeseen(&self) -> u64 {
        self.tally.get().requests[Class::Urgent as usize]
    }

    /// From now on another `[fetch] rate_limit`, in bytes per second; 0 is none.
    pub fn set_rate_limit(&self, rate: u64) {
        self.rate.set(rate);
    }

    /// Whether what is needed at a start is fetched before it is read (`[fetch] prefetch`).
    #[must_use]
    pub const fn prefetches(&self) -> bool {
        self.config.prefetch
    }

    /// Runs what reads and writes the disk for long.
    pub(super) fn on_blocking_thread(&self, work: Box<dyn FnOnce() + Send>) {
        drop(self.runtime.spawn_blocking(work));
    }

    /// While what this yields lives, the background begins no new request and decodes nothing: a table of contents is on its way
    /// or worked on, or a start is under way, and more of it is known than has been asked for.
    #[must_use]
    pub fn precede(&self) -> Precedence {
        Precedence {
            _arriving: self.lists.enter(),
            _resting: self.pool.rest(LONGEST_WAIT),
        }
    }

    /// The memory for requests of this class.
    fn budget(&self, class: Class) -> &Budget {
        &self.budget[usize::from(class == Class::Background)]
    }

    /// Whether others wait for the memory that is held here.
    fn is_wanted(&self, held: &OwnedSemaphorePermit) -> bool {
        self.budget.iter().any(|budget| budget.is_wanted(held))
    }

    /// Adds a layer to the background's turn and sees to it that someone works on it.
    fn add_background(self: &Arc<Self>, layer: &Arc<Layer>) {
        if !self.config.background {
            return;
        }
        let spawn = {
            let mut background = self.background.lock();
            let known = |known: &Weak<Layer>| std::ptr::eq(known.as_ptr(), Arc::as_ptr(layer));
            if !background.layers.iter().any(known) {
                background.layers.push_back(Arc::downgrade(layer));
            }
            let idle = self.config.background_connections.get() - background.runners;
            background.runners += idle;
            idle
        };
        for _ in 0..spawn {
            let fetcher = Arc::clone(self);
            self.runtime
                .spawn(async move { fetcher.run_background().await });
        }
    }

    /// Works on what layers have left, until none has.
    async fn run_background(self: Arc<Self>) {
        loop {
            self.lists.give(LONGEST_WAIT).await;
            let turn = {
                let mut background = self.background.lock();
                let turn = self.claim_background(&mut background);
                if matches!(turn, Turn::Done) {
                    // Under the lock that `add_background` takes: no layer is overlooked.
                    background.runners -= 1;
                    return;
                }
                turn
            };
            match turn {
                Turn::Done => return,
                Turn::Wait => self.window.wait_spare().await,
                Turn::Bring(layer, segment, asked) => {
                    let bytes = asked.bytes();
                    layer.run(segment, asked, None).await;
                    self.background.lock().under_way -= 1;
                    // A reader may have taken the end out of it, after all else was asked for.
                    if layer.has_rest() {
                        self.add_background(&layer);
                    }
                    self.rate.take(bytes).await;
                }
            }
        }
    }

    /// The next segment: of the layer that a reader waited for last, else of the one that was mounted first.
    fn claim_background(&self, background: &mut Background) -> Turn {
        if !self.window.has_spare_room() {
            return match background.layers.is_empty() {
                true => Turn::Done,
                false => Turn::Wait,
            };
        }
        loop {
            let missed = |layer: &Weak<Layer>| {
                let missed = |layer: Arc<Layer>| layer.missed.load(Ordering::Relaxed);
                layer.upgrade().map_or(0, missed)
            };
            let layers = background.layers.iter().map(missed);
            let Some((at, _)) = layers.enumerate().rev().max_by_key(|(_, missed)| *missed) else {
                return Turn::Done;
            };
            if let Some(layer) = background.layers.get(at).and_then(Weak::upgrade)
                && let Some((segment, asked)) = layer.claim_background(self.cache.max_size())
            {
                background.under_way += 1;
                return Turn::Bring(layer, segment, asked);
            }
            background.layers.remove(at);
        }
    }
}

/// What a task of the background does next.
enum Turn {
    Bring(Arc<Layer>, plan::Segment, Asked),
    /// Enough is under way.
    Wait,
    Done,
}

/// See [`Fetcher::precede`].
pub struct Precedence {
    _arriving: Arriving,
    _resting: decode::Resting,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
