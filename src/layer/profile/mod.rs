//! Profiles: what an image's start reads, in which order, learned by watching and used the next time.
//!
//! A container's start is recorded (see [`record`]): every chunk of every lazy layer, in the order
//! of its first read. What comes of it is merged into what earlier starts have shown (see
//! [`merge`]), and kept as one small file for each stack of lazy layers (see [`folder`]). The next
//! time that stack is pulled, or a container starts on it, those chunks are fetched first, in that
//! order (see [`crate::layer::start`]).
//!
//! Content is named by path and place in the file, so a profile is also good for the next version of
//! the image, and can be given out when neither image nor cache is on the node any more.

mod folder;
mod merge;
mod record;

use std::collections::HashSet;
use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::blob::ByteSize;
use crate::oci::Digest;

pub use folder::{Error, Folder};
pub(super) use record::{Recorder, StartedLayer};

/// A month as durations are written in the configuration: 30.44 days.
const MONTH: Duration = Duration::from_secs(2_630_016);

/// The section `[profile]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether the start of containers is recorded. Default `true`.
    pub record: bool,
    /// Whether what was recorded is fetched first at the next start. Default `true`.
    pub apply: bool,
    /// How long after a container was prepared its reads count as its start. Default `20s`.
    #[serde(with = "humantime_serde")]
    pub window: Duration,
    /// Most bytes of content in a profile. Default `128MiB`.
    pub max_size: ByteSize,
    /// How long a profile is kept that is not used. Default `3months`.
    #[serde(with = "humantime_serde")]
    pub keep: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            record: true,
            apply: true,
            window: Duration::from_secs(20),
            max_size: ByteSize(128 << 20),
            keep: MONTH * 3,
        }
    }
}

/// An image that a profile was recorded of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The reference by which it was pulled, as text (`host/name:tag`).
    pub name: String,
    /// Its manifest.
    pub manifest: Digest,
}

/// What the starts of one stack of lazy layers have read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// The images it was recorded of, latest first: several where they have the same layers.
    pub images: Vec<Image>,
    /// The lazy layers, lowest first.
    pub layers: Vec<Digest>,
    /// When it last changed, in seconds since 1970.
    pub updated: u64,
    /// Starts that it was made of.
    pub starts: u32,
    /// What is read.
    pub order: Order,
}

/// Pieces of files in the order in which they should be fetched.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    files: Vec<File>,
    pieces: Vec<Piece>,
}

/// A file of one layer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "(u16, String)", into = "(u16, String)")]
struct File {
    /// Position in the profile's layers.
    layer: u16,
    /// Its path from the layer's root, without a slash at the start.
    path: String,
}

/// A piece of a file: a chunk of it, as it was cut when it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u64, u32, u8)", into = "(u32, u64, u32, u8)")]
struct Piece {
    /// Position in the order's files.
    file: u32,
    /// Where in the file it starts, in bytes.
    at: u64,
    /// Its length in bytes.
    size: u32,
    /// Cold starts in a row that did not read it.
    missed: u8,
}

impl From<(u16, String)> for File {
    fn from((layer, path): (u16, String)) -> Self {
        Self { layer, path }
    }
}

impl From<File> for (u16, String) {
    fn from(file: File) -> Self {
        (file.layer, file.path)
    }
}

impl From<(u32, u64, u32, u8)> for Piece {
    fn from((file, at, size, missed): (u32, u64, u32, u8)) -> Self {
        Self {
            file,
            at,
            size,
            missed,
        }
    }
}

impl From<Piece> for (u32, u64, u32, u8) {
    fn from(piece: Piece) -> Self {
        (piece.file, piece.at, piece.size, piece.missed)
    }
}

/// A piece of a layer: where it stands in the order, and what it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted<'a> {
    /// Position in the order.
    pub rank: u32,
    /// The file's path from the layer's root.
    pub path: &'a str,
    /// Where in the file it starts, in bytes.
    pub at: u64,
    /// Its length in bytes.
    pub size: u32,
}

/// What names the profile of these lazy layers, lowest first.
#[must_use]
pub(super) fn key(layers: &[Digest]) -> Digest {
    let mut text = b"crfs profile".to_vec();
    for layer in layers {
        text.extend_from_slice(layer.as_bytes());
    }
    Digest::of(&text)
}

impl Profile {
    /// The paths of all files, each once, in the order of their first read, from the image's root.
    pub fn paths(&self) -> impl Iterator<Item = String> {
        let mut seen = HashSet::new();
        let files = self.order.pieces.iter().filter_map(|piece| {
            let file = self.order.files.get(piece.file as usize);
            file.map(|file| file.path.as_str())
        });
        files
            .filter(move |path| seen.insert(*path))
            .map(|path| format!("/{path}"))
    }

    /// All pieces in their order, adjacent ones as one: the path from the image's root, and the bytes of
    /// the file. It is what `crfs convert --prefetch` takes.
    pub fn pieces(&self) -> Vec<(String, Range<u64>)> {
        let mut runs: Vec<(u32, Range<u64>)> = Vec::new();
        for piece in &self.order.pieces {
            let bytes = piece.at..piece.at.saturating_add(piece.size.into());
            match runs.last_mut() {
                Some((file, run)) if *file == piece.file && run.end == bytes.start => {
                    run.end = bytes.end;
                }
                _ => runs.push((piece.file, bytes)),
            }
        }
        let named = runs.into_iter().filter_map(|(file, run)| {
            let file = self.order.files.get(file as usize)?;
            Some((format!("/{}", file.path), run))
        });
        named.collect()
    }

    /// Bytes of content in it.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.order.bytes()
    }

    /// What of it lies in `layer`, if the image now has the layers `now`. A file of a layer that the
    /// image no longer has is looked for in those that are new.
    pub(super) fn wanted<'a>(
        &'a self,
        layer: &Digest,
        now: &[Digest],
    ) -> impl Iterator<Item = Wanted<'a>> {
        let is_new = !self.layers.contains(layer);
        let takes: Vec<bool> = self
            .layers
            .iter()
            .map(|old| old == layer || is_new && !now.contains(old))
            .collect();
        (0..)
            .zip(&self.order.pieces)
            .filter_map(move |(rank, piece)| {
                let file = self.order.files.get(piece.file as usize)?;
                let takes = takes.get(usize::from(file.layer)) == Some(&true);
                takes.then_some(Wanted {
                    rank,
                    path: &file.path,
                    at: piece.at,
                    size: piece.size,
                })
            })
    }

    /// Whether every number in it leads somewhere.
    fn is_sound(&self) -> bool {
        let layers = self.layers.len();
        let files = self.order.files.len();
        let file = |file: &File| usize::from(file.layer) < layers;
        let piece = |piece: &Piece| (piece.file as usize) < files;
        self.order.files.iter().all(file) && self.order.pieces.iter().all(piece)
    }
}

impl Order {
    fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| u64::from(piece.size)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::merge::tests::order;
    use super::*;

    #[test]
    fn paths_are_listed_once_in_the_order_of_first_read() {
        let profile = Profile {
            images: Vec::new(),
            layers: vec![Digest::of(b"0"), Digest::of(b"1")],
            updated: 0,
            starts: 1,
            order: order(&[
                (1, "b", 0),
                (0, "a/x", 0),
                (1, "b", 1),
                (1, "b", 2),
                (0, "b", 0),
                (0, "b", 3),
            ]),
        };
        assert_eq!(profile.paths().collect::<Vec<_>>(), ["/b", "/a/x"]);
        let pieces = profile.pieces();
        let pieces: Vec<_> = pieces
            .iter()
            .map(|(path, run)| (&**path, run.clone()))
            .collect();
        assert_eq!(
            pieces,
            [
                ("/b", 0..1 << 20),
                ("/a/x", 0..1 << 20),
                ("/b", 1 << 20..3 << 20),
                ("/b", 0..1 << 20),
                ("/b", 3 << 20..4 << 20)
            ]
        );
        assert_eq!(profile.bytes(), 6 << 20);
        assert!(profile.is_sound());
    }

    #[test]
    fn the_next_version_of_an_image_is_wanted_by_path() {
        let [base, old, new, other] = [b"0", b"1", b"2", b"3"].map(|text| Digest::of(text));
        let profile = Profile {
            images: Vec::new(),
            layers: vec![base, old],
            updated: 0,
            starts: 1,
            order: order(&[(1, "app", 0), (0, "libc", 0), (1, "app", 1)]),
        };
        let wanted = |layer, now: &[Digest]| {
            let wanted = profile.wanted(&layer, now);
            wanted
                .map(|wanted| (wanted.rank, wanted.at >> 20))
                .collect::<Vec<_>>()
        };
        assert_eq!(wanted(base, &[base, old]), [(1, 0)]);
        assert_eq!(wanted(old, &[base, old]), [(0, 0), (2, 1)]);
        assert_eq!(wanted(base, &[base, new]), [(1, 0)]);
        assert_eq!(wanted(new, &[base, new]), [(0, 0), (2, 1)]);
        assert!(
            wanted(other, &[base, old, other]).is_empty(),
            "a layer on top"
        );
        assert_ne!(key(&[base, old]), key(&[old, base]));
    }
}
