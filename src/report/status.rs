//! The numbers of a node, and the status made of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::api;
use super::{Counts, Degraded, Kind, Node, Reason, Record, Reloaded, Sums};
use crate::blob::fetch::{PURPOSES, TROUBLES};
use crate::fs::Failure;
use crate::layer::Health;
use crate::oci::label;

/// Everything there is a number of, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Tallies {
    /// Since the node began to serve.
    pub uptime: Duration,
    /// The snapshots there are.
    pub snapshots: TrackedSnapshots,
    /// How Prepares were answered.
    pub answers: Counts,
    /// Lazy layers that are not mounted at present.
    pub degraded: u64,
    /// What became of mounts.
    pub health: Health,
    /// What layers have done.
    pub sums: Sums,
}

/// How many snapshots there are of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrackedSnapshots {
    /// Lazy layers.
    pub lazy: u64,
    /// Committed ones that were unpacked.
    pub unpacked: u64,
    /// Writable ones.
    pub active: u64,
    /// Read-only views.
    pub views: u64,
    /// Images that any of the lazy layers was pulled as part of.
    pub images: u64,
    /// Unpacked layers by [`Reason::index`].
    pub reasons: [u64; Reason::ALL.len()],
}

impl TrackedSnapshots {
    /// Counts them.
    #[must_use]
    pub fn count(records: &[Arc<Record>]) -> Self {
        let mut found = Self::default();
        let mut images = BTreeSet::new();
        for record in records {
            match (&record.lazy, record.kind) {
                (Some(lazy), _) => {
                    found.lazy += 1;
                    images.insert(&lazy.image);
                    images.extend(&lazy.also);
                }
                (None, Kind::Committed) => {
                    found.unpacked += 1;
                    let reason = super::reason_of(record).map(|(reason, _)| reason.index());
                    if let Some(count) = reason.and_then(|at| found.reasons.get_mut(at)) {
                        *count += 1;
                    }
                }
                (None, Kind::Active) => found.active += 1,
                (None, Kind::View) => found.views += 1,
            }
        }
        found.images = images.len() as u64;
        found
    }
}

impl Node {
    /// How the node fares.
    #[must_use]
    pub fn status(&self) -> api::StatusReply {
        let tallies = self.tallies();
        let degraded = self.0.snapshotter.degraded();
        let reloaded = self.0.reloaded.lock().clone();
        api::StatusReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            root: self.0.snapshotter.root().display().to_string(),
            degraded: degraded.into_iter().map(degraded_layer).collect(),
            reload: reloaded.map(reload),
            ..tallies.into()
        }
    }
}

impl From<Tallies> for api::StatusReply {
    fn from(tallies: Tallies) -> Self {
        let Tallies {
            uptime,
            snapshots,
            answers,
            health,
            sums,
            ..
        } = tallies;
        let reasons = Reason::ALL.map(Reason::name);
        Self {
            uptime_seconds: uptime.as_secs(),
            mounts: Some(api::Mounts {
                served: health.mounts,
                taken_over: health.taken_over,
                lost: health.lost,
            }),
            snapshots: Some(api::Snapshots {
                lazy: snapshots.lazy,
                unpacked: snapshots.unpacked,
                active: snapshots.active,
                views: snapshots.views,
                images: snapshots.images,
            }),
            answers: Some(api::Answers {
                lazy: answers.lazy,
                not_lazy: occurred(&reasons, &answers.refused),
            }),
            requests: Some(requests(&sums)),
            cache: Some(cache(&sums)),
            link: Some(link(&sums)),
            background: Some(api::Background {
                members: sums.members,
                left: sums.background_left,
            }),
            ..Self::default()
        }
    }
}

fn requests(sums: &Sums) -> api::Requests {
    let requests = &sums.requests;
    api::Requests {
        hits: requests.hits.count(),
        fetched: requests.fetched.count(),
        hit_bytes: requests.hit_bytes,
        fetched_bytes: requests.fetched_bytes,
        waiting: requests.waiting,
        passed: requests.passed,
        failed: occurred(&Failure::ALL.map(Failure::name), &requests.failures),
    }
}

fn cache(sums: &Sums) -> api::Cache {
    let (cache, (disk_total, disk_free, _)) = (&sums.cache, sums.disk);
    api::Cache {
        held: cache.held,
        max_size: cache.max_size,
        entries: cache.entries,
        written: cache.written,
        evicted: cache.evicted,
        damaged: cache.damaged,
        write_errors: cache.write_errors,
        disk_free,
        disk_total,
    }
}

fn link(sums: &Sums) -> api::Link {
    let fetch = &sums.fetch;
    let all = |counts: &[u64]| {
        let counts = PURPOSES.iter().zip(counts);
        counts.map(|(name, count)| counted(name, *count)).collect()
    };
    api::Link {
        bytes: all(&fetch.bytes),
        requests: all(&fetch.requests),
        failed: occurred(&TROUBLES, &fetch.troubles),
        http_requests: sums.http_requests,
        http_received: sums.http_received,
        requests_now: fetch.requests_now,
        background_now: fetch.background_now,
        best_rate: fetch.best_rate as u64,
    }
}

fn occurred(names: &[&str], counts: &[u64]) -> Vec<api::Count> {
    let all = names.iter().zip(counts).filter(|(_, count)| **count > 0);
    all.map(|(name, count)| counted(name, *count)).collect()
}

fn counted(name: &str, count: u64) -> api::Count {
    let name = name.to_owned();
    api::Count { name, count }
}

fn degraded_layer(degraded: Degraded) -> api::Degraded {
    api::Degraded {
        snapshot: degraded.key.to_string(),
        layer: degraded.layer.to_string(),
        why: degraded.why.unwrap_or_default(),
        tries: degraded.tries,
    }
}

fn reload(reloaded: Reloaded) -> api::Reload {
    api::Reload {
        seconds_ago: reloaded.at.elapsed().as_secs(),
        applied: reloaded.applied,
        refused: reloaded.refused,
        error: reloaded.error.unwrap_or_default(),
    }
}

/// Whether a container, or whoever else looks at files, uses this snapshot: not one that containerd
/// unpacks a layer into.
pub(super) fn is_in_use(record: &Record) -> bool {
    match record.kind {
        Kind::View => true,
        Kind::Active => !record.labels.contains_key(label::SNAPSHOT_REF),
        Kind::Committed => false,
    }
}
