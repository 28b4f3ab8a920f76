//! Single-flight: who waits for which content, over all layers.
//!
//! The first to miss a content leads its flight and has it fetched through its own layer; who
//! comes later waits with it. A failure is final only for waiters of the leader's layer: to the
//! others it says to try through theirs, so one bad registry never fails the rest.
//!
//! Locking: one mutex, nothing else is locked under it but a shard of the cache's index (in
//! `join`, through `held`). Content is put into the cache before its flight ends, so that whoever
//! finds no flight finds the content.

use std::collections::HashMap;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::blob::cache::Key;
use crate::blob::read::ReadError;

/// What a waiter is told; `None` means that the leader's layer gave up and another may try.
pub(super) type Outcome = Option<Result<Bytes, ReadError>>;

/// What `join` found.
pub(super) enum Join {
    /// The content is in the cache by now.
    Held,
    /// Someone else has it fetched.
    Follow(oneshot::Receiver<Outcome>),
    /// The caller must have it fetched.
    Lead(oneshot::Receiver<Outcome>),
}

struct Flight {
    leader: u64,
    /// The layer of each waiter and where to tell it.
    waiters: Vec<(u64, oneshot::Sender<Outcome>)>,
}

/// All flights of a process.
#[derive(Default)]
pub(super) struct Flights {
    table: Mutex<HashMap<Key, Flight>>,
}

impl Flights {
    /// Waits for `key` on behalf of `layer`.
    pub(super) fn join(&self, key: Key, layer: u64, held: &dyn Fn() -> bool) -> Join {
        let mut table = self.table.lock();
        let (tell, outcome) = oneshot::channel();
        if let Some(flight) = table.get_mut(&key) {
            flight.waiters.push((layer, tell));
            return Join::Follow(outcome);
        }
        if held() {
            return Join::Held;
        }
        table.insert(
            key,
            Flight {
                leader: layer,
                waiters: vec![(layer, tell)],
            },
        );
        Join::Lead(outcome)
    }

    /// Whether nobody waits for anything.
    pub(super) fn is_empty(&self) -> bool {
        self.table.lock().is_empty()
    }

    /// Whether someone waits for `key`.
    pub(super) fn awaits(&self, key: &Key) -> bool {
        self.table.lock().contains_key(key)
    }

    /// Gives content to all who wait for it; what nobody waits for is not copied.
    pub(super) fn complete<'a>(&self, contents: impl Iterator<Item = (Key, &'a [u8])>) {
        let mut table = self.table.lock();
        for (key, content) in contents {
            if table.is_empty() {
                return;
            }
            let Some(flight) = table.remove(&key) else {
                continue;
            };
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
        if table.get(key).is_some_and(|flight| flight.leader == leader) {
            let waiters = table.remove(key).map(|flight| flight.waiters);
            tell_all(waiters.unwrap_or_default(), leader, error);
        }
    }

    /// Ends all flights that `leader` leads.
    pub(super) fn fail_all(&self, leader: u64, error: &ReadError) {
        let mut table = self.table.lock();
        for (_, flight) in table.extract_if(|_, flight| flight.leader == leader) {
            tell_all(flight.waiters, leader, error);
        }
    }
}

fn tell_all(waiters: Vec<(u64, oneshot::Sender<Outcome>)>, leader: u64, error: &ReadError) {
    for (layer, tell) in waiters {
        let _ = tell.send((layer == leader).then(|| Err(error.clone())));
    }
}
