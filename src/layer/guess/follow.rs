//! What started programs and loaded libraries need: looked up as soon as the beginning of their file is here, so that it is
//! on its way before the loader has come to it.
//!
//! Begins with the program that an image names, and goes on with what is read: whatever else is executed or loaded at run
//! time is read from its first byte on.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::blob::{ChunkId, LayerMap as _};
use crate::fs::Index;
use crate::layer::guess::needs::{Lacks, Needs, Wanted, needs};
use crate::layer::guess::place::{Place, find, origin};
use crate::layer::guess::{LARGEST, Search};

/// Most files that are looked into, and that may be waited for at a time.
const MOST_FILES: usize = 4096;
const MOST_OPEN: usize = 1024;
/// A file of more chunks than this is no program.
const MOST_CHUNKS: u32 = 8192;
/// The largest layer, in files and folders, in which it is looked up where a file lies: some 20 ms.
const MOST_INODES: u32 = 200_000;
/// How long it may look into the files of one start in all. A file takes some 0.1 ms; what takes longer was made for that.
const MOST_TIME: Duration = Duration::from_secs(2);

/// What has come of a layer's content.
pub(in crate::layer) trait Content: Send {
    /// Copies bytes from `at` of a chunk, if it is here. Nobody has read it by that.
    fn look(&self, chunk: ChunkId, at: u32, out: &mut [u8]) -> bool;

    /// Whether a chunk is here.
    fn holds(&self, chunk: ChunkId) -> bool;

    /// What was read for the first time since this was called last.
    fn reads(&mut self) -> Vec<ChunkId>;

    /// Whether nobody uses the layer any more.
    fn is_gone(&self) -> bool;
}

/// A layer of the stack.
pub(in crate::layer) struct Layer {
    pub index: Arc<Index>,
    pub content: Box<dyn Content>,
}

/// A chunk that will be needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::layer) struct Wish {
    /// The layer's place in the stack.
    pub layer: usize,
    /// Which.
    pub chunk: ChunkId,
    /// Its size in bytes.
    pub size: u32,
}

/// A file that could not be told yet.
struct Open {
    place: Place,
    /// What has to arrive first, once that is known.
    lacks: Option<ChunkId>,
}

/// Files that are looked into.
pub(in crate::layer) struct Follow {
    /// Topmost first.
    layers: Vec<Layer>,
    search: Search,
    /// By layer and first chunk, what was looked into or is to be.
    known: HashSet<(usize, u32)>,
    /// What was wished for.
    wished: HashSet<(usize, u32)>,
    open: Vec<Open>,
    /// What is left of [`MOST_TIME`].
    left: Duration,
}

impl Follow {
    /// Of containers on these layers, topmost first.
    pub(in crate::layer) fn new(layers: Vec<Layer>) -> Self {
        Self {
            layers,
            search: Search::default(),
            known: HashSet::new(),
            wished: HashSet::new(),
            open: Vec::new(),
            left: MOST_TIME,
        }
    }

    /// What an image starts, and where it has programs and libraries looked for.
    pub(in crate::layer) fn begin(&mut self, search: Search, places: Vec<Place>) {
        self.search = search;
        places.into_iter().for_each(|place| self.add(place));
    }

    /// Whether nobody uses any of the layers.
    pub(in crate::layer) fn is_over(&self) -> bool {
        self.layers.iter().all(|layer| layer.content.is_gone())
    }

    /// Notes what was read meanwhile. Whether there is anything to look into that was not here before.
    pub(in crate::layer) fn has_news(&mut self) -> bool {
        for (number, layer) in self.layers.iter_mut().enumerate() {
            for chunk in layer.content.reads() {
                if self.open.len() < MOST_OPEN
                    && let Some(place) = file_from(&layer.index, number, chunk)
                {
                    self.open.extend(new(&mut self.known, place));
                }
            }
        }
        self.open.iter().any(|open| self.has_arrived(open))
    }

    fn has_arrived(&self, open: &Open) -> bool {
        let layer = self.layers.get(open.place.layer);
        let holds = |chunk| layer.is_none_or(|layer| layer.content.holds(chunk));
        open.lacks.is_none_or(holds)
    }

    /// Looks into the files whose beginning is here, and into what they need, and so on. Gives what is to be fetched, in
    /// the order in which it will be needed. Reads indexes and the cache.
    pub(in crate::layer) fn step(&mut self) -> Vec<Wish> {
        let until = Instant::now() + self.left;
        let mut wishes = Vec::new();
        let mut lacking = Vec::new();
        while !self.open.is_empty() {
            for open in std::mem::take(&mut self.open) {
                if !self.has_arrived(&open) {
                    lacking.push(open);
                } else if Instant::now() < until {
                    lacking.extend(self.look_into(open.place, until, &mut wishes));
                }
            }
        }
        self.open = lacking;
        self.left = until.saturating_duration_since(Instant::now());
        wishes
    }

    /// Gives it back if more of it has to arrive first.
    fn look_into(
        &mut self,
        mut place: Place,
        until: Instant,
        wishes: &mut Vec<Wish>,
    ) -> Option<Open> {
        match self.needs(&place) {
            Ok(needs) => {
                for range in needs.read.iter().cloned() {
                    self.wish(&place, range, wishes);
                }
                self.add_all(place, needs, until);
                None
            }
            Err(Lacks(range)) => {
                // With nothing to wait for it is damaged: who reads it is told.
                let lacks = self.missing(&place, range.clone())?;
                self.wish(&place, range, wishes);
                if self.seems_program(&mut place) {
                    let end = place.size.saturating_sub(1)..place.size;
                    self.wish(&place, end, wishes);
                }
                Some(Open {
                    place,
                    lacks: Some(lacks),
                })
            }
        }
    }

    fn needs(&self, place: &Place) -> Result<Needs, Lacks> {
        let Some(layer) = self.layers.get(place.layer) else {
            return Ok(Needs::default());
        };
        needs(place.size, &|at, out| {
            let (mut done, mut is_here) = (0, true);
            let parts = layer
                .index
                .parts(&place.chunks, at, out.len() as u64, &mut |part| {
                    let piece = out.get_mut(done..done + part.len as usize);
                    is_here = is_here
                        && piece
                            .is_some_and(|piece| layer.content.look(part.chunk, part.at, piece));
                    done += part.len as usize;
                });
            parts.is_ok() && is_here
        })
    }

    /// The first chunk with these bytes that is not here.
    fn missing(&self, place: &Place, range: Range<u64>) -> Option<ChunkId> {
        let layer = self.layers.get(place.layer)?;
        let mut missing = None;
        let each = &mut |chunk, _| {
            if missing.is_none() && !layer.content.holds(chunk) {
                missing = Some(chunk);
            }
        };
        let walked = layer.index.each_chunk_in(&place.chunks, range, each);
        walked.ok().and(missing)
    }

    /// Whether a file of several chunks is a program or a library by its name: what is written to, with the dynamic
    /// section, lies at the end of these, and is then fetched together with the beginning.
    fn seems_program(&self, place: &mut Place) -> bool {
        if place.chunks.len() < 2 {
            return false;
        }
        let unknown = || self.path_of(place.layer, &place.chunks).unwrap_or_default();
        let path = place.path.take().unwrap_or_else(unknown);
        let mut names = path.rsplit(|byte| *byte == b'/');
        let name = names.next().unwrap_or_default();
        let is_library = name.windows(3).any(|part| part == b".so");
        let is_program = names.next().is_some_and(|folder| folder.ends_with(b"bin"));
        place.path = Some(path);
        is_library || is_program
    }

    fn wish(&mut self, place: &Place, range: Range<u64>, wishes: &mut Vec<Wish>) {
        let Some(layer) = self.layers.get(place.layer) else {
            return;
        };
        let range = range.start..range.end.min(range.start.saturating_add(LARGEST));
        let wished = &mut self.wished;
        let _ = layer
            .index
            .each_chunk_in(&place.chunks, range, &mut |chunk, size| {
                if wished.insert((place.layer, chunk.0)) {
                    wishes.push(Wish {
                        layer: place.layer,
                        chunk,
                        size,
                    });
                }
            });
    }

    fn add(&mut self, place: Place) {
        if self.open.len() < MOST_OPEN {
            self.open.extend(new(&mut self.known, place));
        }
    }

    fn add_all(&mut self, mut place: Place, needs: Needs, until: Instant) {
        if place.path.is_none() && needs.folders.iter().any(|folder| folder.contains(&b'$')) {
            place.path = self.path_of(place.layer, &place.chunks);
        }
        let stack: Vec<&Index> = self.layers.iter().map(|layer| &*layer.index).collect();
        let folders = origin(&needs.folders, place.path.as_deref());
        let in_time = needs.wanted.iter().take_while(|_| Instant::now() < until);
        let found = in_time.filter_map(|wanted| match wanted {
            Wanted::Path(path) => find(&stack, path),
            Wanted::Program(name) => self.search.program(&stack, name),
            Wanted::Library(name) => self.search.library(&stack, &folders, name),
        });
        let found: Vec<_> = found.collect();
        found.into_iter().for_each(|place| self.add(place));
    }

    fn path_of(&self, layer: usize, chunks: &Range<u32>) -> Option<Vec<u8>> {
        let index = &self.layers.get(layer)?.index;
        if index.summary().inodes > MOST_INODES {
            return None;
        }
        let mut found = None;
        let wanted = [ChunkId(chunks.start)];
        let walked = index.files_with(&wanted, &mut |path, _| found = Some(path.to_vec()));
        walked.ok().and(found)
    }
}

/// `place` to be looked into, if it was not known.
fn new(known: &mut HashSet<(usize, u32)>, place: Place) -> Option<Open> {
    let is_new = known.len() < MOST_FILES && known.insert((place.layer, place.chunks.start));
    is_new.then_some(Open { place, lacks: None })
}

/// The file that begins with `chunk`, if one does.
fn file_from(index: &Index, layer: usize, chunk: ChunkId) -> Option<Place> {
    let size = |number| Some(u64::from(index.chunk(ChunkId(number))?.size));
    if index.place(chunk)? != 0 {
        return None;
    }
    let (mut end, mut bytes) = (chunk.0 + 1, size(chunk.0)?);
    // A file's chunks follow each other, and the next file's first is at the start of that.
    while end - chunk.0 < MOST_CHUNKS
        && index.place(ChunkId(end)).is_some_and(|at| at == bytes)
        && let Some(more) = size(end)
    {
        bytes += more;
        end += 1;
    }
    Some(Place {
        layer,
        chunks: chunk.0..end,
        size: bytes,
        path: None,
    })
}
