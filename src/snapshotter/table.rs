//! All snapshots in memory: which exist, how they hang together, what may be done to them.
//!
//! It holds exactly what has been acknowledged, and does no I/O. Records are shared with the
//! store, not copied.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::snapshotter::Error;
use crate::snapshotter::model::{Key, Kind, Record};

/// The snapshots.
#[derive(Default)]
pub(super) struct Table {
    by_key: BTreeMap<Key, Arc<Record>>,
    by_id: HashMap<u64, Key>,
    /// How many have this one as their parent.
    children: HashMap<Key, usize>,
    /// Lazy snapshots by the chain id they answer for and their parent.
    targets: HashMap<(String, Option<Key>), Key>,
}

impl Table {
    /// The snapshot of this key.
    pub(super) fn get(&self, key: &Key) -> Result<&Arc<Record>, Error> {
        self.by_key
            .get(key)
            .ok_or_else(|| Error::NotFound(key.clone()))
    }

    /// Whether the key or name is taken.
    pub(super) fn contains(&self, key: &Key) -> bool {
        self.by_key.contains_key(key)
    }

    /// Whether the folder of this number belongs to a snapshot.
    pub(super) fn contains_id(&self, id: u64) -> bool {
        self.by_id.contains_key(&id)
    }

    /// The snapshot whose folder has this number.
    pub(super) fn by_id(&self, id: u64) -> Option<&Arc<Record>> {
        self.by_key.get(self.by_id.get(&id)?)
    }

    /// All of them, by key.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.by_key.values()
    }

    /// The lazy snapshot that answers for a chain id on top of a parent.
    pub(super) fn target(&self, target: &str, parent: Option<&Key>) -> Option<&Key> {
        self.targets.get(&(target.to_owned(), parent.cloned()))
    }

    /// Checks that a new snapshot may have this parent.
    pub(super) fn check_parent(&self, parent: Option<&Key>) -> Result<(), Error> {
        let Some(parent) = parent else { return Ok(()) };
        match self.by_key.get(parent) {
            None => Err(Error::ParentNotFound(parent.clone())),
            Some(record) if record.kind != Kind::Committed => {
                Err(Error::ParentNotCommitted(parent.clone()))
            }
            Some(_) => Ok(()),
        }
    }

    /// Checks that a key or name is free.
    pub(super) fn check_free(&self, key: &Key) -> Result<(), Error> {
        if self.contains(key) {
            return Err(Error::AlreadyExists(key.clone()));
        }
        Ok(())
    }

    /// The snapshot of this key, if it can be committed.
    pub(super) fn active(&self, key: &Key) -> Result<&Arc<Record>, Error> {
        let record = self.get(key)?;
        if record.kind != Kind::Active {
            return Err(Error::NotActive(key.clone()));
        }
        Ok(record)
    }

    /// The snapshot of this key, if it can be removed.
    pub(super) fn removable(&self, key: &Key) -> Result<&Arc<Record>, Error> {
        let record = self.get(key)?;
        match self.children.get(key) {
            Some(&children) => Err(Error::HasChildren {
                key: key.clone(),
                children,
            }),
            None => Ok(record),
        }
    }

    /// The parents of a snapshot, the nearest first.
    pub(super) fn parents(&self, record: &Record) -> Result<Vec<Arc<Record>>, Error> {
        let mut parents = Vec::new();
        let mut next = record.parent.as_ref();
        while let Some(parent) = next {
            let found = self.by_key.get(parent);
            // No honest chain is longer than the table; damaged records could name each other.
            let Some(found) = found.filter(|_| parents.len() < self.by_key.len()) else {
                return Err(Error::BrokenChain {
                    key: record.key.clone(),
                    parent: parent.clone(),
                });
            };
            parents.push(Arc::clone(found));
            next = found.parent.as_ref();
        }
        Ok(parents)
    }

    /// Puts a snapshot in; one of the same folder is replaced, whatever its key was.
    pub(super) fn insert(&mut self, record: Arc<Record>) {
        if let Some(key) = self.by_id.get(&record.id).cloned() {
            self.remove(&key);
        }
        if let Some(parent) = &record.parent {
            *self.children.entry(parent.clone()).or_default() += 1;
        }
        if let Some(target) = record.target() {
            let at = (target.to_owned(), record.parent.clone());
            self.targets.insert(at, record.key.clone());
        }
        self.by_id.insert(record.id, record.key.clone());
        self.by_key.insert(record.key.clone(), record);
    }

    /// Takes a snapshot out.
    pub(super) fn remove(&mut self, key: &Key) {
        let Some(record) = self.by_key.remove(key) else {
            return;
        };
        self.by_id.remove(&record.id);
        if let Some(parent) = &record.parent
            && let Some(count) = self.children.get_mut(parent)
        {
            *count -= 1;
            if *count == 0 {
                self.children.remove(parent);
            }
        }
        if let Some(target) = record.target() {
            let at = (target.to_owned(), record.parent.clone());
            if self.targets.get(&at) == Some(key) {
                self.targets.remove(&at);
            }
        }
    }
}
