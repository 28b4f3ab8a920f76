//! Per-snapshot order: calls about one key run one after the other.
//!
//! # Locking
//! A call takes the locks of all keys it is about at once, in the order of the keys, so no two
//! calls can wait for each other: exclusively for the snapshots it changes, shared for the parent
//! it builds on. They are held over disk writes, never over the network.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::snapshotter::model::Key;

type Lock = Arc<RwLock<()>>;

/// The locks of all keys that are in use at the moment.
#[derive(Default)]
pub(super) struct Locks(Arc<Mutex<HashMap<Key, Lock>>>);

/// Locks that are held until this is dropped.
pub(super) struct Held {
    guards: Vec<Guard>,
    keys: Vec<Key>,
    all: Arc<Mutex<HashMap<Key, Lock>>>,
}

enum Guard {
    Shared { _guard: OwnedRwLockReadGuard<()> },
    Exclusive { _guard: OwnedRwLockWriteGuard<()> },
}

impl Locks {
    /// Waits for the locks of `changed` (exclusive) and `used` (shared).
    pub(super) async fn hold(&self, changed: &[&Key], used: Option<&Key>) -> Held {
        let mut wanted: Vec<(&Key, bool)> = changed.iter().map(|key| (*key, true)).collect();
        wanted.extend(used.map(|key| (key, false)));
        // Of two wishes for one key the exclusive one comes first and stays.
        wanted.sort_by(|a, b| a.0.cmp(b.0).then(b.1.cmp(&a.1)));
        wanted.dedup_by_key(|(key, _)| *key);
        let mut held = Held {
            guards: Vec::with_capacity(wanted.len()),
            keys: Vec::with_capacity(wanted.len()),
            all: Arc::clone(&self.0),
        };
        for (key, exclusive) in wanted {
            let lock = Arc::clone(self.0.lock().entry(key.clone()).or_default());
            // Before waiting: a caller that goes away while it waits must be tidied up after too.
            held.keys.push(key.clone());
            held.guards.push(if exclusive {
                let _guard = lock.write_owned().await;
                Guard::Exclusive { _guard }
            } else {
                let _guard = lock.read_owned().await;
                Guard::Shared { _guard }
            });
        }
        held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        self.guards.clear();
        for key in &self.keys {
            // Who waits for a lock, or is about to, holds a reference to it.
            if all
                .get(key)
                .is_some_and(|lock| Arc::strong_count(lock) == 1)
            {
                all.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    async fn waits(locks: &Locks, changed: &[&Key], used: Option<&Key>) -> bool {
        let wait = Duration::from_millis(20);
        tokio::time::timeout(wait, locks.hold(changed, used))
            .await
            .is_err()
    }

    #[tokio::test]
    async fn a_parent_is_shared_and_a_changed_snapshot_is_not() {
        let locks = Locks::default();
        let (parent, child, other) = (key("p"), key("c"), key("o"));
        let held = locks.hold(&[&child], Some(&parent)).await;
        assert!(!waits(&locks, &[&other], Some(&parent)).await);
        assert!(waits(&locks, &[&parent], None).await);
        assert!(waits(&locks, &[&child], None).await);
        drop(held);
        assert!(!waits(&locks, &[&parent, &child], None).await);
        assert!(locks.0.lock().is_empty(), "no lock outlives its use");
    }

    #[tokio::test]
    async fn one_key_named_twice_is_locked_once() {
        let locks = Locks::default();
        let same = key("same");
        let held = locks.hold(&[&same, &same], Some(&same)).await;
        assert_eq!(held.guards.len(), 1);
        assert!(waits(&locks, &[], Some(&same)).await);
    }
}
