//! Which files a node should fetch at once, before anyone reads them.
//!
//! They come first in the blob, before a landmark, so that one range of bytes holds them all. A
//! tar's order matters where a hard link follows its target and a folder its parent, so those
//! come along.

use std::collections::HashSet;
use std::io::Read;

use super::error::Error;
use super::names::components;
use super::scan::{Entry, Kind, Scanner};

/// Paths of files to fetch at once, as their image sees them.
#[derive(Debug, Clone, Default)]
pub struct Prefetch {
    paths: HashSet<Vec<u8>>,
}

/// What of one layer comes first.
pub(super) struct Selection {
    paths: HashSet<Vec<u8>>,
    folders: HashSet<Vec<u8>>,
}

impl Prefetch {
    /// A list from its text: one path a line, empty lines mean nothing.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let lines = text
            .split(|&b| b == b'\n')
            .map(|line| match line.strip_suffix(b"\r") {
                Some(line) => clean(line),
                None => clean(line),
            });
        Self {
            paths: lines.filter(|path| !path.is_empty()).collect(),
        }
    }

    /// Whether nothing is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// What of the tar that `open` opens is listed, or `None` if nothing is. Reads the tar until
    /// no further target of a hard link turns up: nearly always once or twice.
    pub(super) fn select<'a>(
        &self,
        open: &mut dyn FnMut() -> Result<Box<dyn Read + 'a>, Error>,
    ) -> Result<Option<Selection>, Error> {
        let mut wanted = self.paths.clone();
        let mut found = HashSet::new();
        while !wanted.is_empty() {
            let mut tar = Scanner::new(open()?);
            let mut headers = Vec::new();
            let mut more = HashSet::new();
            while let Some(entry) = tar.next(&mut headers)? {
                headers.clear();
                tar.skip(entry.size)?;
                tar.padding(entry.size, &mut headers)?;
                headers.clear();
                let path = clean(&entry.name);
                if !wanted.contains(&path) {
                    continue;
                }
                if entry.kind == Kind::HardLink {
                    more.insert(clean(&entry.link));
                }
                found.insert(path);
            }
            more.retain(|path| !found.contains(path));
            wanted = more;
        }
        let folders = found.iter().flat_map(|path| parents(path)).collect();
        Ok((!found.is_empty()).then_some(Selection {
            paths: found,
            folders,
        }))
    }
}

impl Selection {
    /// Whether the entry comes before the landmark.
    pub(super) fn has(&self, entry: &Entry) -> bool {
        let path = clean(&entry.name);
        self.paths.contains(&path) || (entry.kind == Kind::Dir && self.folders.contains(&path))
    }
}

fn clean(name: &[u8]) -> Vec<u8> {
    components(name).collect::<Vec<_>>().join(&b'/')
}

fn parents(path: &[u8]) -> Vec<Vec<u8>> {
    let slashes = path.iter().enumerate().filter(|(_, b)| **b == b'/');
    slashes
        .filter_map(|(i, _)| path.get(..i))
        .map(<[u8]>::to_vec)
        .collect()
}
