//! Types of the API and types of the snapshotter.

use std::sync::Arc;

use containerd_snapshots::api::snapshots::v1 as api;
use containerd_snapshots::api::types;
use prost::Message as _;

use crate::overlay::options::Mount;
use crate::snapshotter::{Kind, Record, Stamp, Usage};

/// Snapshots in one message of a List, as containerd's own service sends them.
const BATCH: usize = 100;
/// Bytes after which a message is sent though it holds fewer. One snapshot is at most a message
/// that was received once, and a little more.
const BATCH_BYTES: usize = 1 << 20;

pub(super) fn mounts(mounts: Vec<Mount>) -> Vec<types::Mount> {
    let mount = |mount: Mount| types::Mount {
        r#type: mount.kind.to_owned(),
        source: mount.source,
        target: String::new(),
        options: mount.options,
    };
    mounts.into_iter().map(mount).collect()
}

pub(super) fn info(record: &Record) -> api::Info {
    let kind = match record.kind {
        Kind::View => api::Kind::View,
        Kind::Active => api::Kind::Active,
        Kind::Committed => api::Kind::Committed,
    };
    api::Info {
        name: record.key.as_str().to_owned(),
        parent: record
            .parent
            .as_ref()
            .map_or_else(String::new, |key| key.as_str().to_owned()),
        kind: kind.into(),
        created_at: Some(timestamp(record.created)),
        updated_at: Some(timestamp(record.updated)),
        labels: record.labels.clone().into_iter().collect(),
    }
}

pub(super) fn usage(usage: Usage) -> api::UsageResponse {
    api::UsageResponse {
        size: i64::try_from(usage.bytes).unwrap_or(i64::MAX),
        inodes: i64::try_from(usage.inodes).unwrap_or(i64::MAX),
    }
}

/// Snapshots in groups that each fit into a message.
pub(super) fn batches(records: Vec<Arc<Record>>) -> impl Iterator<Item = Vec<api::Info>> {
    let mut records = records.into_iter().peekable();
    std::iter::from_fn(move || {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(record) = records.next_if(|_| batch.len() < BATCH && bytes < BATCH_BYTES) {
            let info = info(&record);
            bytes += info.encoded_len();
            batch.push(info);
        }
        (!batch.is_empty()).then_some(batch)
    })
}

fn timestamp(stamp: Stamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: stamp.secs,
        nanos: i32::try_from(stamp.nanos).unwrap_or(0),
    }
}
