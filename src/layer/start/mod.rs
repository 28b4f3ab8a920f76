//! The start of an image: fetches what is known to be needed, in the order in which it will be.
//!
//! Begins as soon as a layer's index is there, before it is mounted; nothing waits for it. What is
//! needed are the pieces that a profile names; where there is none, what lies before each layer's
//! landmark, the lowest layer first: there are the loader and the libraries, on top is what uses them; and
//! where there is none of these either, what [`super::guess`] makes of the image. Without a profile it is also watched
//! which programs and libraries are read, and what those need is fetched too ([`watch`]).
//! It is handed out in windows over all layers, so that what is needed first does not share the link
//! with what is needed last; within a window each layer's chunks are asked for as they lie, adjacent
//! ones together.
//!
//! Locking: the queue is locked to change it, never across I/O.

mod watch;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::blob::fetch::Fetcher;
use crate::blob::{Blob, ChunkId};
use crate::fs::Index;
use crate::layer::guess::{self, Place, Program, Search};
use crate::layer::profile::Profile;
use crate::oci::Digest;

/// Bytes of content in a window; as many again may be on their way from the one before. Two of them
/// are some 6 MB of blob: enough to fill 200 Mbit/s at 250 ms, or 1 Gbit/s at 50 ms. Measured (Python
/// with numpy, 50 ms, 200 Mbit/s, a converted profile, medians of 3): 4 MiB 1.68 s, 8 MiB 1.57, 64 MiB
/// 1.56 with more fetched that nobody had asked for yet; no difference by larger gaps within a request.
const WINDOW: u64 = 8 << 20;
/// How often it is looked whether a window has arrived: of the order of a short round trip.
const LOOK: Duration = Duration::from_millis(3);
/// How long nothing may arrive until the rest is left to the readers: the registry is in trouble.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the background is left out after all that is known to be needed was asked for, and so many requests for something else
/// end that.
/// Measured (Python with numpy started before on the node, medians of 3): a second container right after the first takes
/// 0.14 and 0.16 s (10 ms and 1 Gbit/s; 50 ms and 200 Mbit/s) instead of 0.21 and 0.20. A second is too short for a program that
/// computes for longer (Java compiling its source, 2 runs each way in turn): a second container then takes 1.3 to 2.0 s, and
/// 0.8 to 0.9 s with four seconds, as by overlayfs. Where the first start had no profile the second container rests when it starts:
/// 0.53 and 0.39 s (30 ms and 300 Mbit/s, medians of 7 in turn on a slow machine; overlayfs 0.31), and since what was received is
/// not decoded either, 0.36 and 0.33 (10 in turn; overlayfs 0.32).
const SETTLED: Duration = Duration::from_secs(4);
const UNFORESEEN: u64 = 8;
/// How soon after one such rest a further container of the same image gets another: where they are started all the time, the
/// rest of the image comes nevertheless.
const RESTED: Duration = Duration::from_secs(20);
/// Part of what lies before a landmark that a profile must name to be believed instead: less comes
/// of a start that was not the image's usual one.
const LANDMARK_SHARE: u64 = 4;

/// A piece to be fetched.
#[derive(Clone)]
struct Item {
    blob: Weak<Blob>,
    chunk: ChunkId,
    size: u64,
}

/// A layer whose content was handed in.
struct Opened {
    layer: Digest,
    index: Arc<Index>,
    blob: Weak<Blob>,
}

#[derive(Default)]
struct State {
    /// In the order they came.
    opened: Vec<Opened>,
    /// What the image starts, once that has been asked for, and as long as nothing was made of it.
    program: Option<Option<Program>>,
    /// What was guessed, and where the image has more looked for; until a container starts and these files are looked into.
    begun: Option<(Search, Vec<Place>)>,
    /// Whether it is watched what is read.
    is_following: bool,
    /// Whether a container has been prepared, or anything was read.
    is_started: bool,
    /// Whether a profile or a landmark says what is needed.
    is_known: bool,
    /// When the background was left out last for a container all of whose layers had been read.
    rested: Option<Instant>,
    /// What is left to fetch, by its place in the order; the second number tells two layers apart that
    /// have the same file, the third the chunks of one piece.
    queue: BTreeMap<(u32, usize, u32), Item>,
    /// Bytes of content that were asked for.
    asked: u64,
    is_feeding: bool,
}

impl State {
    /// What is to be looked into first, once a container starts or anything is read.
    fn begins(&mut self, is_read: bool) -> Option<(Search, Vec<Place>)> {
        self.is_started |= is_read;
        self.begun.take_if(|_| self.is_started)
    }
}

/// One image that is being pulled or started.
pub(super) struct Start {
    fetcher: Arc<Fetcher>,
    profile: Option<Profile>,
    /// The lazy layers of the image.
    layers: Vec<Digest>,
    state: Mutex<State>,
}

impl Start {
    /// Of an image with these lazy layers. Fetches nothing yet.
    pub(super) fn new(
        fetcher: Arc<Fetcher>,
        profile: Option<Profile>,
        layers: Vec<Digest>,
    ) -> Arc<Self> {
        Arc::new(Self {
            fetcher,
            profile,
            layers,
            state: Mutex::default(),
        })
    }

    /// A layer's content can be fetched from now on. Begins with that, once for each content,
    /// without waiting. Must be called within a tokio runtime.
    pub(super) fn opened(self: &Arc<Self>, layer: Digest, index: &Arc<Index>, blob: &Arc<Blob>) {
        let number = {
            let mut state = self.state.lock();
            let known = |known: &Opened| known.blob.as_ptr() == Arc::as_ptr(blob);
            if state.opened.iter().any(known) {
                return;
            }
            state.opened.push(Opened {
                layer,
                index: Arc::clone(index),
                blob: Arc::downgrade(blob),
            });
            state.opened.len()
        };
        let (this, index, blob) = (Arc::clone(self), Arc::clone(index), Arc::clone(blob));
        // Looks up every path of the profile: milliseconds.
        tokio::task::spawn_blocking(move || {
            this.enqueue(layer, number, &index, &blob);
            this.guess();
            this.follow();
        });
    }

    /// A container is prepared: what its program needs is fetched now, and not by a pull that nobody starts. If all layers were
    /// `read` by one before it, so was most of what it needs.
    pub(super) async fn container(&self, read: bool) {
        let rests = {
            let mut state = self.state.lock();
            state.is_started = true;
            let rests = read && state.rested.is_none_or(|last| last.elapsed() > RESTED);
            if rests {
                state.rested = Some(Instant::now());
            }
            rests
        };
        if rests {
            let _precedence = self.fetcher.precede();
            self.settle().await;
        }
    }

    /// Whether it helps to know what the image starts, as far as can be told before its layers are there.
    pub(super) fn needs_guess(&self) -> bool {
        self.profile.is_none() && self.fetcher.prefetches()
    }

    /// The image starts this, or nobody knows what. To be said once; must be called within a tokio runtime.
    pub(super) fn starts(self: &Arc<Self>, program: Option<Program>) {
        self.state.lock().program = Some(program);
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || this.guess());
    }

    /// Once all layers are there, and what the image starts: if nothing else says what is needed, what is likely to be.
    fn guess(self: &Arc<Self>) {
        let (program, stack) = {
            let mut state = self.state.lock();
            let stack = self.stack(&state);
            let Some(stack) = stack.filter(|_| !state.is_known && self.needs_guess()) else {
                return;
            };
            let Some(program) = state.program.take() else {
                return;
            };
            (program, stack)
        };
        let indexes: Vec<&Index> = stack.iter().map(|(index, _)| &**index).collect();
        let places = guess::files(&indexes, program.as_ref());
        let mut items = Vec::new();
        for (rank, place) in (0..).zip(&places) {
            let Some((index, blob)) = stack.get(place.layer) else {
                continue;
            };
            let Some(blob) = blob.upgrade() else { continue };
            let bytes = 0..place.size.min(guess::LARGEST);
            let _ = index.each_chunk_in(&place.chunks, bytes, &mut |chunk, size| {
                let item = Item::new(&blob, chunk, size);
                items.push(((rank, place.layer, chunk.0), item));
            });
        }
        self.queue(items);
        let search = program.map(|program| program.search).unwrap_or_default();
        self.state.lock().begun = Some((search, places));
    }

    /// All layers, topmost first, once they are there.
    fn stack(&self, state: &State) -> Option<Vec<(Arc<Index>, Weak<Blob>)>> {
        let place = |layer: &Digest| state.opened.iter().find(|opened| opened.layer == *layer);
        let topmost_first = self.layers.iter().rev().map(place);
        topmost_first
            .map(|opened| opened.map(|one| (Arc::clone(&one.index), one.blob.clone())))
            .collect()
    }

    fn enqueue(self: &Arc<Self>, layer: Digest, number: usize, index: &Index, blob: &Arc<Blob>) {
        let mut items = self.items(layer, index, blob);
        let named: u64 = items.iter().map(|(_, item)| item.size).sum();
        let landmark = blob.before_landmark();
        let before: u64 = landmark.iter().map(|(_, size)| u64::from(*size)).sum();
        if named.saturating_mul(LANDMARK_SHARE) < before {
            let lowest_first = self.layers.iter().position(|known| *known == layer);
            let rank = match (&self.profile, lowest_first) {
                (None, Some(position)) => u32::try_from(position).unwrap_or(u32::MAX),
                _ => u32::MAX,
            };
            let item = |(chunk, size)| Item::new(blob, chunk, size);
            items.extend(landmark.into_iter().map(|found| (rank, item(found))));
        }
        let items = items.into_iter();
        let items = items.map(|(rank, item)| ((rank, number, item.chunk.0), item));
        self.state.lock().is_known |= self.profile.is_some() || items.len() > 0;
        self.queue(items);
    }

    fn queue(self: &Arc<Self>, items: impl IntoIterator<Item = ((u32, usize, u32), Item)>) {
        let feed = {
            let mut state = self.state.lock();
            state.queue.extend(items);
            let feed = !state.is_feeding && !state.queue.is_empty();
            state.is_feeding |= feed;
            feed
        };
        if feed {
            let this = Arc::clone(self);
            tokio::spawn(async move { this.feed().await });
        }
    }

    /// What the profile names of a layer.
    fn items(&self, layer: Digest, index: &Index, blob: &Arc<Blob>) -> Vec<(u32, Item)> {
        let profile = self.profile.iter();
        let wanted = profile.flat_map(|profile| profile.wanted(&layer, &self.layers));
        // Pieces of one file mostly follow each other.
        let (mut path, mut chunks) = ("", 0..0);
        let mut items = Vec::new();
        for piece in wanted {
            if piece.path != path {
                path = piece.path;
                // Damage shows when the file is read.
                let found = index.chunks_at(path.as_bytes()).ok().flatten();
                chunks = found.unwrap_or(0..0);
            }
            let bytes = piece.at..piece.at.saturating_add(piece.size.into());
            // Cut otherwise, or shorter, in another version of the image.
            let _ = index.each_chunk_in(&chunks, bytes, &mut |chunk, size| {
                items.push((piece.rank, Item::new(blob, chunk, size)));
            });
        }
        items
    }

    /// Hands out windows until nothing is left.
    async fn feed(self: Arc<Self>) {
        let _precedence = self.fetcher.precede();
        let mut flying: Vec<Item> = Vec::new();
        loop {
            let window = self.next_window();
            if window.is_empty() {
                let is_done = {
                    let mut state = self.state.lock();
                    // Under the lock that `enqueue` takes: nothing is overlooked.
                    state.is_feeding = !state.queue.is_empty();
                    !state.is_feeding
                };
                if !is_done {
                    continue;
                }
                if self.state.lock().is_known {
                    self.settle().await;
                }
                return;
            }
            ask_for(&window);
            flying.extend(window);
            if !arrived(&mut flying).await {
                tracing::debug!("nothing arrives, the rest is fetched when it is read");
                self.state.lock().queue.clear();
            }
        }
    }

    /// Waits until a container has started whose content is here: it and the next of the same image have the node's CPUs for
    /// themselves. Ends early if readers miss what was not foreseen.
    async fn settle(&self) {
        let (began, before) = (Instant::now(), self.fetcher.unforeseen());
        while began.elapsed() < SETTLED && self.fetcher.unforeseen() - before < UNFORESEEN {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The next pieces that are not here.
    fn next_window(&self) -> Vec<Item> {
        let mut state = self.state.lock();
        let mut window = Vec::new();
        let mut bytes = 0;
        // A start must not evict its own beginning.
        let most = self.fetcher.cache().max_size() / 2;
        while bytes < WINDOW
            && let Some((_, item)) = state.queue.pop_first()
        {
            if !item.is_here() && state.asked + item.size <= most {
                state.asked += item.size;
                bytes += item.size;
                window.push(item);
            }
        }
        window
    }
}

impl Item {
    fn new(blob: &Arc<Blob>, chunk: ChunkId, size: u32) -> Self {
        Self {
            blob: Arc::downgrade(blob),
            chunk,
            size: size.into(),
        }
    }

    /// Whether nothing is to be waited for: it is cached, or the layer is gone.
    fn is_here(&self) -> bool {
        let blob = self.blob.upgrade();
        blob.is_none_or(|blob| blob.holds(self.chunk))
    }
}

fn ask_for(window: &[Item]) {
    let mut rest: Vec<&Item> = window.iter().collect();
    while let Some(first) = rest.first() {
        let blob = first.blob.clone();
        let of_blob = |item: &&Item| Weak::ptr_eq(&item.blob, &blob);
        let chunks: Vec<_> = rest.extract_if(.., |item| of_blob(&&**item)).collect();
        let chunks: Vec<_> = chunks.iter().map(|item| item.chunk).collect();
        if let Some(blob) = blob.upgrade() {
            blob.prefetch(&chunks);
        }
    }
}

/// Waits until at most a window is on its way; false if nothing arrives any more.
async fn arrived(flying: &mut Vec<Item>) -> bool {
    let mut last = Instant::now();
    loop {
        let before = flying.len();
        flying.retain(|item| !item.is_here());
        let bytes: u64 = flying.iter().map(|item| item.size).sum();
        if bytes < WINDOW {
            return true;
        }
        if flying.len() < before {
            last = Instant::now();
        } else if last.elapsed() > PATIENCE {
            return false;
        }
        tokio::time::sleep(LOOK).await;
    }
}
