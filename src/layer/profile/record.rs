//! Watches what starting containers read.
//!
//! A recording begins when a container is prepared on a stack of lazy layers, and ends when its
//! window is over. Whenever reads have come and none has for a while it is written down, so that a
//! profile is there seconds after the workload got going, and a crash costs little. It keeps no
//! layer alive: an image may be removed meanwhile.
//!
//! Locking: the map of recordings is locked to look up and change it; each recording's `base` by
//! whoever writes it down, which reads and writes files.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::blob::{ChunkId, LayerMap as _, ReadLog};
use crate::fs::Index;
use crate::layer::profile::merge::merge;
use crate::layer::profile::{Config, Error, File, Folder, Image, Order, Piece, Profile, key};
use crate::oci::Digest;

/// How often a recording is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Most images that are named in a profile.
const MOST_IMAGES: usize = 8;

/// A layer of a stack that a container starts on.
pub(in crate::layer) struct StartedLayer {
    /// Its compressed blob.
    pub layer: Digest,
    /// Its index.
    pub index: Arc<Index>,
    /// What is read of it from now on.
    pub reads: ReadLog,
}

/// Recordings under way.
pub(in crate::layer) struct Recorder {
    folder: Arc<Folder>,
    config: Config,
    running: Arc<Mutex<HashMap<Digest, Arc<Recording>>>>,
}

struct Recording {
    folder: Arc<Folder>,
    max_size: u64,
    key: Digest,
    image: Image,
    layers: Vec<StartedLayer>,
    /// Nothing of the image ran before.
    cold: bool,
    began: Instant,
    /// What was known before it began, once it was looked up.
    base: Mutex<Option<Option<Profile>>>,
}

impl Recorder {
    pub(in crate::layer) fn new(folder: Arc<Folder>, config: Config) -> Self {
        Self {
            folder,
            config,
            running: Arc::default(),
        }
    }

    /// Records a start of `image` on the lazy layers that `layers` yields, lowest first, unless it is
    /// being recorded. `cold` if nothing of them was read since they were mounted.
    pub(in crate::layer) fn begin(
        &self,
        image: Image,
        digests: &[Digest],
        cold: bool,
        layers: impl FnOnce() -> Vec<StartedLayer>,
    ) {
        if !self.config.record {
            return;
        }
        let key = key(digests);
        let recording = {
            let mut running = self.running.lock();
            if running.contains_key(&key) {
                return;
            }
            let recording = Arc::new(Recording {
                folder: Arc::clone(&self.folder),
                max_size: self.config.max_size.0,
                key,
                image,
                layers: layers(),
                cold,
                began: Instant::now(),
                base: Mutex::new(None),
            });
            running.insert(key, Arc::clone(&recording));
            recording
        };
        let (running, window) = (Arc::clone(&self.running), self.config.window);
        tokio::spawn(async move {
            recording.follow(window).await;
            running.lock().remove(&key);
        });
    }

    /// Writes down what was recorded so far. Blocks.
    pub(in crate::layer) fn settle(&self) {
        let running: Vec<_> = self.running.lock().values().cloned().collect();
        running.iter().for_each(|recording| recording.settle());
    }
}

impl Recording {
    async fn follow(self: &Arc<Self>, window: Duration) {
        let (mut written, mut last) = (0, 0);
        loop {
            let is_over = self.began.elapsed() >= window;
            let count = self.count();
            if count != written && (count == last || is_over) {
                written = count;
                let this = Arc::clone(self);
                let settled = tokio::task::spawn_blocking(move || this.settle()).await;
                if let Err(error) = settled {
                    tracing::error!(%error, "a profile was not written down");
                }
            }
            if is_over {
                return;
            }
            last = count;
            let left = window.saturating_sub(self.began.elapsed());
            tokio::time::sleep(LOOK.min(left)).await;
        }
    }

    fn count(&self) -> u64 {
        let counts = self.layers.iter().map(|layer| layer.reads.count());
        counts.map(u64::from).sum()
    }

    fn settle(&self) {
        if let Err(error) = self.write() {
            let image = &self.image.name;
            tracing::warn!(image, %error, "profile of a start not written down");
        }
    }

    fn write(&self) -> Result<(), Error> {
        // Two at a time would overwrite each other.
        let mut base = self.base.lock();
        let base = match &mut *base {
            Some(base) => base,
            unknown @ None => unknown.insert(self.folder.load(&self.key)?),
        };
        let read = self.order();
        if read.pieces.is_empty() {
            return Ok(());
        }
        let known = base.as_ref().map(|profile| &profile.order);
        let order = merge(
            known.unwrap_or(&Order::default()),
            &read,
            self.cold,
            self.max_size,
        );
        let mut images = vec![self.image.clone()];
        let earlier = base.iter().flat_map(|profile| &profile.images);
        images.extend(earlier.filter(|image| **image != self.image).cloned());
        images.truncate(MOST_IMAGES);
        if let Some(base) = base
            && base.order == order
            && base.images == images
        {
            self.folder.used(&self.key);
            return Ok(());
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let profile = Profile {
            images,
            layers: self.layers.iter().map(|layer| layer.layer).collect(),
            updated: since.unwrap_or_default().as_secs(),
            starts: base
                .as_ref()
                .map_or(0, |base| base.starts)
                .saturating_add(1),
            order,
        };
        self.folder.save(&self.key, &profile)?;
        let (image, files, bytes) = (&self.image.name, profile.paths().count(), profile.bytes());
        tracing::info!(image, files, bytes, cold = self.cold, "start recorded");
        Ok(())
    }

    /// What was read so far, of all layers in one order.
    fn order(&self) -> Order {
        let mut order = Order::default();
        let mut read = Vec::new();
        for (position, layer) in (0..).zip(&self.layers) {
            let reads = layer.reads.list();
            let chunks: Vec<_> = reads.iter().map(|read| read.chunk).collect();
            let places = places(layer, position, &chunks, &mut order.files);
            read.extend(reads.iter().filter_map(|read| {
                let piece = places.get(&read.chunk)?;
                Some((read.at, *piece))
            }));
        }
        read.sort_by_key(|(at, _)| *at);
        order.pieces = read.into_iter().map(|(_, piece)| piece).collect();
        order
    }
}

/// What file each of `chunks` is a piece of. Files are added to the table.
fn places(
    layer: &StartedLayer,
    position: u16,
    chunks: &[ChunkId],
    files: &mut Vec<File>,
) -> HashMap<ChunkId, Piece> {
    let wanted: HashSet<_> = chunks.iter().copied().collect();
    let mut places = HashMap::new();
    if chunks.is_empty() {
        return places;
    }
    let walked = layer.index.files_with(chunks, &mut |path, range| {
        let Ok(path) = str::from_utf8(path) else {
            // No TOC can name it.
            return;
        };
        let file = u32::try_from(files.len()).unwrap_or(u32::MAX);
        files.push(File {
            layer: position,
            path: path.to_owned(),
        });
        for id in range.map(ChunkId).filter(|id| wanted.contains(id)) {
            let (Some(info), Some(at)) = (layer.index.chunk(id), layer.index.place(id)) else {
                continue;
            };
            let piece = Piece {
                file,
                at,
                size: info.size,
                missed: 0,
            };
            places.insert(id, piece);
        }
    });
    if let Err(error) = walked {
        tracing::warn!(layer = %layer.layer, %error, "start only recorded in part");
    }
    places
}
