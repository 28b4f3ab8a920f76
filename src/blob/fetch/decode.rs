//! Inflates, verifies, stores: the part of fetching that costs CPU, on threads of its own.
//!
//! Threads and not the runtime's blocking pool, because they keep their buffers (inflater and
//! output) from member to member, and because what a reader waits for overtakes the background.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::OwnedSemaphorePermit;

use crate::blob::cache::{Home, Key, Verified};
use crate::blob::fetch::layer::Layer;
use crate::blob::fetch::plan::Class;
use crate::blob::map::{ChunkId, ChunkInfo, MemberId};
use crate::blob::stats::Counters;
use crate::stargz::MemberInflater;

/// Output buffers above this are given back after use.
const KEPT: usize = 8 << 20;
/// Threads at most; above, the link is slower than they are.
const MOST_THREADS: usize = 8;

/// Priority of the threads that decode what nobody waits for: containers go before it.
const BACKGROUND_NICE: i32 = 10;

/// Members that were received as a whole.
pub(super) struct Job {
    pub layer: Arc<Layer>,
    /// Each with its compressed bytes in pieces.
    pub members: Vec<(u32, Vec<Bytes>)>,
    /// Their share of the memory budget, given back when the job is done.
    pub permits: Vec<OwnedSemaphorePermit>,
}

/// Whom a thread works for. Each has threads of its own, so that what is wanted never waits for the end of what nobody
/// wants yet, nor for a thread that the machine runs last.
#[derive(Clone, Copy)]
enum Kind {
    Wanted,
    Background,
}

#[derive(Default)]
struct Queue {
    /// By [`Kind`].
    jobs: [VecDeque<Job>; 2],
    /// For how many the background rests, and until when at most.
    resting: usize,
    until: Option<Instant>,
    closed: bool,
}

impl Queue {
    /// How long jobs of this kind are to rest.
    fn rest(&self, kind: Kind) -> Option<Duration> {
        let until = match kind {
            Kind::Background if self.resting > 0 => self.until?,
            Kind::Background | Kind::Wanted => return None,
        };
        until
            .checked_duration_since(Instant::now())
            .filter(|rest| !rest.is_zero())
    }
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    more: [Condvar; 2],
}

/// The threads.
pub(super) struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    pub(super) fn new() -> Self {
        let shared = Arc::new(Shared::default());
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        for (kind, name) in [(Kind::Wanted, "decode"), (Kind::Background, "decode-bg")] {
            for number in 0..cores.min(MOST_THREADS) {
                let shared = Arc::clone(&shared);
                let thread = std::thread::Builder::new().name(format!("{name}-{number}"));
                if let Err(error) = thread.spawn(move || Worker::default().run(kind, &shared)) {
                    // With one thread less it is slower; with none nothing would be read.
                    tracing::error!(%error, number, "cannot start a decoding thread");
                }
            }
        }
        Self { shared }
    }

    /// Decodes `job`, whose members were fetched for `class` or less pressing reasons.
    pub(super) fn submit(&self, job: Job, class: Class) {
        let kind = match class {
            Class::Background => Kind::Background,
            Class::Urgent | Class::Ahead | Class::List => Kind::Wanted,
        };
        self.shared.queue.lock().jobs[kind as usize].push_back(job);
        self.shared.more[kind as usize].notify_one();
    }

    /// While what this yields lives, what nobody wants yet stays as it came, for `longest` at most.
    pub(super) fn rest(&self, longest: Duration) -> Resting {
        let mut queue = self.shared.queue.lock();
        if queue.resting == 0 {
            queue.until = Some(Instant::now() + longest);
        }
        queue.resting += 1;
        Resting(Arc::clone(&self.shared))
    }

    /// Someone has come to want `members`: if they were received for the background, they are not kept waiting behind the rest.
    pub(super) fn hurry(&self, layer: &Layer, members: &[u32]) {
        if members.is_empty() {
            return;
        }
        let mut queue = self.shared.queue.lock();
        let [wanted, background] = &mut queue.jobs;
        for member in members {
            let is_in = |job: &Job| {
                std::ptr::eq(&*job.layer, layer)
                    && job.members.iter().any(|(other, _)| other == member)
            };
            let found = background.iter().position(is_in);
            if let Some(job) = found.and_then(|at| background.remove(at)) {
                wanted.push_back(job);
                self.shared.more[Kind::Wanted as usize].notify_one();
            }
        }
    }
}

/// See [`Pool::rest`].
pub(super) struct Resting(Arc<Shared>);

impl Drop for Resting {
    fn drop(&mut self) {
        self.0.queue.lock().resting -= 1;
        self.0.more[Kind::Background as usize].notify_all();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared
            .more
            .iter()
            .for_each(|more| _ = more.notify_all());
    }
}

impl Shared {
    fn next(&self, kind: Kind) -> Option<Job> {
        let mut queue = self.queue.lock();
        let more = &self.more[kind as usize];
        loop {
            let rest = queue.rest(kind);
            if rest.is_none()
                && let Some(job) = queue.jobs[kind as usize].pop_front()
            {
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            match rest {
                Some(rest) => _ = more.wait_for(&mut queue, rest),
                None => more.wait(&mut queue),
            }
        }
    }
}

/// A chunk in the output buffer.
struct Found {
    id: ChunkId,
    info: ChunkInfo,
    /// Start in the buffer.
    at: usize,
    /// Where it is to lie in a large file.
    home: Option<Home>,
}

/// What of a job is good, and which members are not.
#[derive(Default)]
struct Sorted {
    good: Vec<Found>,
    bad: Vec<(u32, String)>,
}

struct Worker {
    inflater: MemberInflater,
    out: Vec<u8>,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            inflater: MemberInflater::new(0),
            out: Vec::new(),
        }
    }
}

impl Worker {
    fn run(mut self, kind: Kind, shared: &Shared) {
        if matches!(kind, Kind::Background) {
            // Of the calling thread only. Where it is refused, the background takes what it gets.
            let _ = rustix::process::setpriority_process(None, BACKGROUND_NICE);
        }
        while let Some(job) = shared.next(kind) {
            // A bug in here must not cost the thread and with it every later read.
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.work(&job)));
            if caught.is_err() {
                let members = job.members.iter().map(|(member, _)| *member);
                job.layer.undecodable(members, "decoding panicked");
            }
            self.out.clear();
            if self.out.capacity() > KEPT {
                self.out = Vec::new();
            }
        }
    }

    fn work(&mut self, job: &Job) {
        let mut sorted = Sorted::default();
        self.out.clear();
        for (member, pieces) in &job.members {
            self.member(&job.layer, *member, pieces, &mut sorted);
        }
        let content = |found: &Found| self.out.get(found.at..found.at + found.info.size as usize);
        let verified: Vec<_> = sorted
            .good
            .iter()
            .filter_map(|found| {
                let checked = Verified::check(&found.info.proof, found.info.size, content(found)?);
                checked
                    .map(|good| good.at(found.home.as_ref()))
                    .or_else(|| {
                        let what = format!("chunk {} has another digest", found.id.0);
                        sorted.bad.push((found.info.member.0, what));
                        None
                    })
            })
            .collect();
        let shared = job.layer.fetcher();
        let cached = shared.cache.insert(&verified);
        Counters::add(&job.layer.counters.cached, cached);
        shared.flights.complete(
            verified
                .iter()
                .map(|content| (*content.key(), content.bytes())),
        );
        for found in sorted.good.iter().filter(|found| found.home.is_some()) {
            job.layer.whole.written(found.id);
        }
        job.layer
            .decoded(job.members.iter().map(|(member, _)| *member), sorted.bad);
    }

    /// Inflates one member behind what is in `out` and lists those of its chunks that are needed.
    fn member(&mut self, layer: &Layer, member: u32, pieces: &[Bytes], sorted: &mut Sorted) {
        let Some(place) = layer.map.member(MemberId(member)) else {
            return;
        };
        let base = self.out.len();
        self.inflater.reset(place.inflated);
        let inflated = pieces
            .iter()
            .try_for_each(|piece| self.inflater.push(piece, &mut self.out).map(drop))
            .and_then(|()| self.inflater.finish());
        let shared = layer.fetcher();
        let waiting = !shared.flights.is_empty();
        layer.map.chunks_of(MemberId(member), &mut |id| {
            let Some(info) = layer.map.chunk(id) else {
                return;
            };
            let key = Key::new(&info.proof, info.size);
            let needed = !shared.cache.contains(&key) || waiting && shared.flights.awaits(&key);
            let at = usize::try_from(info.inner)
                .ok()
                .and_then(|inner| base.checked_add(inner));
            let end = at.and_then(|at| at.checked_add(info.size as usize));
            match (at, end) {
                _ if !needed => {}
                (Some(at), Some(end)) if end <= self.out.len() => {
                    let home = layer.whole.home(id);
                    sorted.good.push(Found { id, info, at, home });
                }
                _ => {
                    let what = match &inflated {
                        Err(error) => error.to_string(),
                        Ok(()) => format!("chunk {} lies beyond the member's end", id.0),
                    };
                    sorted.bad.push((member, what));
                }
            }
        });
    }
}
