//! Single-flight: who waits for which content, over all layers.
//!
//! The first to miss a content, or to say that it will read it, leads its flight and has it fetched
//! through its own layer; who comes later waits with it. A failure is final only for waiters of the leader's layer: to the
//! others it says to try through theirs, so one bad registry never fails the rest.
//!
//! A failure is remembered for a moment. The kernel asks for one chunk in several requests at once, and
//! one that comes when the flight has just ended wants no second flight: it asked before anybody was told.
//!
//! Locking: one mutex, nothing else is locked under it but a shard of the cache's index (in
//! `begin` and `join`, through `held`). Content is put into the cache before its flight ends, so that whoever
//! finds no flight finds the content.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::blob::cache::Key;
use crate::blob::read::ReadError;

/// How long a failure is remembered: what two requests of the kernel for one chunk may be apart on a busy
/// machine, and less than it takes anyone to try again.
pub(super) const MEMORY: Duration = Duration::from_millis(100);
/// Most failures remembered.
const MOST: usize = 64;

/// What a waiter is told; `None` means that the leader's layer gave up and another may try.
pub(super) type Outcome = Option<Result<Bytes, ReadError>>;

/// What `join` found.
pub(super) enum Join {
    /// The content is in the cache by now.
    Held,
    /// Someone else has it fetched, or has just failed to.
    Follow(oneshot::Receiver<Outcome>),
    /// The caller must have it fetched.
    Lead(oneshot::Receiver<Outcome>),
}

struct Flight {
    leader: u64,
    /// The layer of each waiter and where to tell it.
    waiters: Vec<(u64, oneshot::Sender<Outcome>)>,
}

/// What comes of beginning a flight.
enum Begun<'a> {
    Now(&'a mut Flight),
    /// There was one.
    Before(&'a mut Flight),
    /// None is needed: the content is in the cache.
    Held,
    /// None begins: this layer's last one has just failed.
    Failed(ReadError),
}

/// All flights of a process.
#[derive(Default)]
pub(super) struct Flights {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    flights: HashMap<Key, Flight>,
    /// Those that failed last, the oldest first.
    failed: VecDeque<Failure>,
}

struct Failure {
    key: Key,
    leader: u64,
    error: ReadError,
    when: Instant,
}

impl Table {
    /// Begins the flight of `key`, unless there is one or needs to be none.
    fn begin(&mut self, key: Key, layer: u64, held: &dyn Fn() -> bool) -> Begun<'_> {
        if !self.flights.contains_key(&key) {
            if held() {
                return Begun::Held;
            }
            if let Some(error) = self.recall(&key, layer) {
                return Begun::Failed(error);
            }
        }
        match self.flights.entry(key) {
            Entry::Occupied(flight) => Begun::Before(flight.into_mut()),
            Entry::Vacant(place) => Begun::Now(place.insert(Flight {
                leader: layer,
                waiters: Vec::new(),
            })),
        }
    }

    /// Ends a flight without content.
    fn fail(&mut self, key: Key, flight: Flight, error: &ReadError) {
        let leader = flight.leader;
        for (layer, tell) in flight.waiters {
            let _ = tell.send((layer == leader).then(|| Err(error.clone())));
        }
        if self.failed.len() == MOST {
            self.failed.pop_front();
        }
        let (error, when) = (error.clone(), Instant::now());
        self.failed.push_back(Failure {
            key,
            leader,
            error,
            when,
        });
    }

    /// What the last flight of this layer for `key` was told, if that was just now.
    fn recall(&mut self, key: &Key, layer: u64) -> Option<ReadError> {
        self.failed.retain(|failed| failed.when.elapsed() < MEMORY);
        let mut failed = self.failed.iter().rev();
        let last = failed.find(|failed| failed.key == *key && failed.leader == layer)?;
        Some(last.error.clone())
    }
}

impl Flights {
    /// Begins the flight of `key` for those who will join; yields whether it is up to `layer` to bring it.
    pub(super) fn begin(&self, key: Key, layer: u64, held: &dyn Fn() -> bool) -> bool {
        match self.table.lock().begin(key, layer, held) {
            Begun::Now(_) => true,
            Begun::Before(flight) => flight.leader == layer,
            Begun::Held | Begun::Failed(_) => false,
        }
    }

    /// Waits for `key` on behalf of `layer`.
    pub(super) fn join(&self, key: Key, layer: u64, held: &dyn Fn() -> bool) -> Join {
        let (tell, outcome) = oneshot::channel();
        match self.table.lock().begin(key, layer, held) {
            Begun::Now(flight) => {
                flight.waiters.push((layer, tell));
                Join::Lead(outcome)
            }
            Begun::Before(flight) => {
                flight.waiters.push((layer, tell));
                Join::Follow(outcome)
            }
            Begun::Held => Join::Held,
            Begun::Failed(error) => {
                let _ = tell.send(Some(Err(error)));
                Join::Follow(outcome)
            }
        }
    }

    /// Whether nobody waits for anything, or is about to.
    pub(super) fn is_empty(&self) -> bool {
        self.table.lock().flights.is_empty()
    }

    /// Whether someone waits for `key`, or is about to.
    pub(super) fn awaits(&self, key: &Key) -> bool {
        self.table.lock().flights.contains_key(key)
    }

    /// Gives content to all who wait for it; what nobody waits for is not copied.
    pub(super) fn complete<'a>(&self, contents: impl Iterator<Item = (Key, &'a [u8])>) {
        let mut table = self.table.lock();
        for (key, content) in contents {
            if table.flights.is_empty() {
                return;
            }
            let Some(flight) = table.flights.remove(&key) else {
                continue;
            };
            if flight.waiters.is_empty() {
                continue;
            }
            let content = Bytes::copy_from_slice(content);
            for (_, tell) in flight.waiters {
                // A waiter that went away is not missed.
                let _ = tell.send(Some(Ok(content.clone())));
            }
        }
    }

    /// Ends the flight of `key` if `leader` leads it.
    pub(super) fn fail(&self, key: &Key, leader: u64, error: &ReadError) {
        let mut table = self.table.lock();
        let led = |flight: &Flight| flight.leader == leader;
        if table.flights.get(key).is_some_and(led)
            && let Some(flight) = table.flights.remove(key)
        {
            table.fail(*key, flight, error);
        }
    }

    /// Ends all flights that `leader` leads.
    pub(super) fn fail_all(&self, leader: u64, error: &ReadError) {
        let mut table = self.table.lock();
        let led = |_: &Key, flight: &mut Flight| flight.leader == leader;
        for (key, flight) in table.flights.extract_if(led).collect::<Vec<_>>() {
            table.fail(key, flight, error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::map::Proof;
    use crate::oci::Digest;

    fn follow(join: Join) -> Outcome {
        let Join::Follow(mut outcome) = join else {
            panic!("a new flight");
        };
        outcome.try_recv().unwrap()
    }

    #[test]
    fn a_failure_is_known_to_the_late_of_its_layer_and_not_for_long() {
        let flights = Flights::default();
        let key = Key::new(&Proof::Sha256(Digest::of(b"content")), 7);
        let blob = Digest::of(b"blob");
        let error = ReadError::Closed { blob };
        let lead = |layer| matches!(flights.join(key, layer, &|| false), Join::Lead(_));
        assert!(lead(1));
        flights.fail(&key, 1, &error);
        let late = follow(flights.join(key, 1, &|| false));
        assert!(matches!(late, Some(Err(ReadError::Closed { .. }))));
        assert!(matches!(flights.join(key, 1, &|| true), Join::Held));
        assert!(lead(2), "another layer has another registry");
        flights.complete(std::iter::once((key, b"content".as_slice())));
        std::thread::sleep(MEMORY);
        assert!(lead(1), "who tries again is not answered from memory");
    }
}
