//! Giving back what layers that are gone held: their indexes and their cached content.
//!
//! # Locking
//! One sweep at a time. Layers may be mounted while content is swept: what such a layer shares with
//! one that is gone may go too, and is fetched again.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::blob::cache::{Cache, Key};
use crate::blob::{ChunkId, LayerMap as _};
use crate::fs::Index;
use crate::layer::LayerRecord;
use crate::layer::resolve::Resolver;
use crate::oci::Reference;

/// The layers that stay, each once, by the path of its index.
pub(super) type Kept = HashMap<PathBuf, Stays>;

/// A layer that stays.
pub(super) struct Stays {
    record: LayerRecord,
    /// Its index, if it is open already.
    index: Option<Arc<Index>>,
}

impl Stays {
    pub(super) const fn new(record: LayerRecord, index: Option<Arc<Index>>) -> Self {
        Self { record, index }
    }

    pub(super) fn images(&self) -> Vec<Reference> {
        self.record.images()
    }
}

/// Remembers whether there can be anything to sweep.
#[derive(Default)]
pub(super) struct Sweeper {
    /// When content was last swept: how many mounts had been taken down by then, and what had been
    /// written to the cache. What an earlier process left is found by the first sweep.
    last: Mutex<Option<(u64, u64)>>,
}

impl Sweeper {
    /// Removes every index but those kept. Blocks.
    pub(super) fn indexes(resolver: &Resolver, kept: &Kept) -> io::Result<()> {
        resolver.sweep(&|path| kept.contains_key(path))
    }

    /// Forgets cached content that no kept layer has. `unmounts` counts the mounts taken down so
    /// far. Blocks: a look-up for each chunk of each layer, and copying what shares a file with
    /// what goes.
    pub(super) fn content(&self, cache: &Cache, kept: &Kept, unmounts: u64) {
        let mut last = self.last.lock();
        let now = (unmounts, cache.stats().written);
        if *last == Some(now) {
            return;
        }
        let start = Instant::now();
        let mut sweep = cache.sweep();
        for (path, layer) in kept {
            let index = match &layer.index {
                Some(index) => Ok(Arc::clone(index)),
                None => Index::open(path, &layer.record.toc).map(Arc::new),
            };
            let index = match index {
                Ok(index) => index,
                Err(error) => {
                    let layer = layer.record.layer;
                    tracing::warn!(%layer, %error, "cached content not swept: nobody knows what this layer needs");
                    return;
                }
            };
            for chunk in 0..index.chunk_count() {
                if let Some(info) = index.chunk(ChunkId(chunk)) {
                    sweep.keep(&Key::new(&info.proof, info.size));
                }
            }
        }
        let swept = sweep.finish();
        *last = Some(now);
        let (contents, bytes, took) = (swept.contents, swept.bytes, start.elapsed());
        tracing::info!(
            contents,
            bytes,
            ?took,
            "cached content of removed layers is gone"
        );
    }
}
