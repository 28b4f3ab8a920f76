//! What each lazy layer holds, who uses it, when it was last read.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use super::status::is_in_use;
use super::{Node, Record, api};
use crate::layer::MountReport;
use crate::oci::Digest;
use crate::snapshotter::{Key, Kind};

impl Node {
    /// Each lazy layer once, the images in the order of their names. Goes over the chunks of all:
    /// not for an asynchronous thread.
    #[must_use]
    pub fn layers(&self) -> Vec<api::Layer> {
        let records = self.0.snapshotter.records();
        let users = users(&records);
        let mounts: HashMap<PathBuf, MountReport> = {
            let mounts = self.0.layers.mounts().into_iter();
            mounts.map(|mount| (mount.target.clone(), mount)).collect()
        };
        let degraded = self.0.snapshotter.degraded();
        let mut found: BTreeMap<(String, Digest), api::Layer> = BTreeMap::new();
        for record in &records {
            let Some(lazy) = &record.lazy else { continue };
            let layer = found
                .entry((lazy.image.clone(), lazy.layer))
                .or_insert_with(|| api::Layer {
                    layer: lazy.layer.to_string(),
                    image: lazy.image.clone(),
                    also: lazy.also.clone(),
                    size: lazy.size,
                    ..api::Layer::default()
                });
            layer.users += users.get(&record.key).copied().unwrap_or(0);
            match mounts.get(&self.0.snapshotter.files(record)) {
                Some(mount) => add(layer, mount),
                None => {
                    let waiting = degraded.iter().find(|waiting| waiting.key == record.key);
                    let why = waiting.and_then(|waiting| waiting.why.clone());
                    layer.degraded = why.unwrap_or_else(|| "not mounted yet".to_owned());
                }
            }
            let views = records.iter().filter(|view| view.kind == Kind::View);
            let own = views.filter_map(|view| {
                let target = self.0.snapshotter.own_mount(view, record);
                mounts.get(&target)
            });
            own.for_each(|mount| add(layer, mount));
        }
        found.into_values().collect()
    }
}

/// Adds a mount. Content and what is fetched of it are shared by all mounts of a layer.
fn add(layer: &mut api::Layer, mount: &MountReport) {
    layer.mounts += 1;
    layer.content = mount.content;
    layer.held = mount.held;
    layer.index = mount.index;
    layer.fetched = mount.stats.fetched;
    layer.requests = mount.stats.requests;
    layer.background_left = mount.stats.background_left;
    layer.hits += mount.counts.hits;
    layer.misses += mount.counts.misses;
    layer.failures += mount.counts.failures;
    if let Some(open) = mount.open {
        *layer.open.get_or_insert(0) += open;
    }
    let last = mount.since_last_read.map(|since| since.as_secs_f64());
    layer.last_read_seconds = match (layer.last_read_seconds, last) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
}

/// How many containers and views stand on each snapshot.
pub(super) fn users(records: &[Arc<Record>]) -> HashMap<Key, u32> {
    let by_key: HashMap<&Key, &Record> = records.iter().map(|r| (&r.key, &**r)).collect();
    let mut users = HashMap::new();
    for record in records.iter().filter(|record| is_in_use(record)) {
        let mut below = record.parent.as_ref();
        while let Some(key) = below {
            *users.entry(key.clone()).or_insert(0) += 1;
            below = by_key.get(key).and_then(|record| record.parent.as_ref());
        }
    }
    users
}
