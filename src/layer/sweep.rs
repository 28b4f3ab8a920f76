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

use crate::blob::LayerMap as _;
use crate::blob::cache::{Cache, Key};
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
            let readable = index.all_chunks(&mut |info| {
                sweep.keep(&Key::new(&info.proof, info.size));
                true
            });
            if !readable {
                let layer = layer.record.layer;
                tracing::warn!(%layer, "cached content not swept: the index of this layer is damaged");
                return;
            }
        }
        let swept = sweep.finish();
        *last = (!swept.is_partial).then_some(now);
        let (contents, bytes, took) = (swept.contents, swept.bytes, start.elapsed());
        tracing::info!(
            contents,
            bytes,
            ?took,
            "cached content of removed layers is gone"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::blob::Proof;
    use crate::blob::cache::{Config, Verified};
    use crate::layer::testing::{build_index, five_bytes};
    use crate::oci::Digest;

    fn content(number: u32) -> Vec<u8> {
        format!("{number:05}").into_bytes()
    }

    /// Writes the index of a layer of files of five bytes, and gives its record.
    fn layer(files: u32, path: &Path) -> LayerRecord {
        let file = |number| {
            let digest = Digest::of(&content(number));
            five_bytes(&format!("f{number}"), 0o644, 100 + 100 * number, &digest)
        };
        let toc = build_index(&(0..files).map(file).collect::<Vec<_>>(), path);
        LayerRecord {
            image: "registry.test/image:tag".to_owned(),
            also: Vec::new(),
            manifest: Digest::of(b"manifest"),
            layer: Digest::of(b"blob"),
            size: 1 << 20,
            toc,
            unlisted: Vec::new(),
        }
    }

    fn key_of(number: u32) -> Key {
        Key::new(&Proof::Sha256(Digest::of(&content(number))), 5)
    }

    fn filled(folder: &Path, files: u32) -> Cache {
        let cache = Cache::open(&folder.join("cache"), &Config::default()).unwrap();
        for number in 0..files {
            let bytes = content(number);
            let proof = Proof::Sha256(Digest::of(&bytes));
            cache.insert(&[Verified::check(&proof, 5, &bytes).unwrap()]);
        }
        cache
    }

    fn held(cache: &Cache, files: u32) -> usize {
        (0..files)
            .filter(|number| cache.contains(&key_of(*number)))
            .count()
    }

    #[test]
    fn what_a_layer_that_stays_needs_is_kept_and_the_rest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        let record = layer(1000, &path);
        let cache = filled(folder.path(), 1010);
        let kept = Kept::from([(path, Stays::new(record, None))]);
        Sweeper::default().content(&cache, &kept, 1);
        assert_eq!(held(&cache, 1010), 1000);
    }

    #[test]
    fn nothing_goes_while_nobody_knows_what_a_layer_needs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        let record = layer(1000, &path);
        let mut bytes = std::fs::read(&path).unwrap();
        let digest = Digest::of(&content(500));
        let at = bytes
            .windows(32)
            .position(|window| window == digest.as_bytes());
        bytes[at.unwrap()] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let cache = filled(folder.path(), 1010);
        let kept = Kept::from([(path, Stays::new(record, None))]);
        Sweeper::default().content(&cache, &kept, 1);
        assert_eq!(held(&cache, 1010), 1010);
    }
}
