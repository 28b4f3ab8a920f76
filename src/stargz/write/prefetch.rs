//! Which files a node should fetch at once, before anyone reads them.
//!
//! They come first in the blob, in the order of the list and before a landmark, so that one range of
//! bytes holds them all. A tar's order matters where a hard link follows its target and a folder its
//! parent, so those come along and before. Of a large file of which only some bytes are listed all
//! chunks come along too, and the others are marked (see [`super::json`]).

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write as _};
use std::ops::Range;

use super::error::Error;
use super::names::components;
use super::own;
use super::scan::{Entry, Kind, Scanner};

/// Files to fetch at once, as their image sees them, or pieces of them, in the order in which they
/// are read.
#[derive(Debug, Clone, Default)]
pub struct Prefetch {
    files: HashMap<Vec<u8>, Listed>,
}

/// What is listed of a path.
#[derive(Debug, Clone, Default)]
struct Listed {
    /// Position in the list.
    rank: usize,
    /// The bytes that are read; `None` is all of it.
    bytes: Option<Vec<Range<u64>>>,
}

/// What of one layer comes first.
pub(super) struct Selection {
    files: HashMap<Vec<u8>, Listed>,
    /// Folders on the way to them.
    folders: HashSet<Vec<u8>>,
}

impl Prefetch {
    /// A list from its text: one path a line, in the order in which they are read; behind a path there
    /// may be a tab and the first and the last byte that are read of it (`/usr/bin/app<TAB>0-524287`),
    /// in as many lines as it has such pieces. Empty lines mean nothing.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let mut files: HashMap<Vec<u8>, Listed> = HashMap::new();
        for (rank, line) in text.split(|&b| b == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let (path, bytes) = match piece(line) {
                Some((path, bytes)) => (clean(path), Some(vec![bytes])),
                None => (clean(line), None),
            };
            if path.is_empty() {
                continue;
            }
            let new = Listed { rank, bytes };
            files
                .entry(path)
                .and_modify(|known| known.join(&new))
                .or_insert(new);
        }
        Self { files }
    }

    /// Whether nothing is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// What of the tar that `open` opens is listed, or `None` if nothing is. Reads the tar until
    /// no further target of a hard link turns up: nearly always once or twice.
    pub(super) fn select<'a>(
        &self,
        open: &mut dyn FnMut() -> Result<Box<dyn Read + 'a>, Error>,
    ) -> Result<Option<Selection>, Error> {
        let mut wanted = self.files.clone();
        let mut found: HashMap<Vec<u8>, Listed> = HashMap::new();
        let (mut others, mut links) = (HashSet::new(), Vec::new());
        while !wanted.is_empty() {
            let mut tar = Scanner::new(open()?);
            let mut headers = Vec::new();
            let mut more: HashMap<Vec<u8>, Listed> = HashMap::new();
            while let Some(entry) = tar.next(&mut headers)? {
                headers.clear();
                tar.skip(entry.size)?;
                tar.padding(entry.size, &mut headers)?;
                headers.clear();
                let path = clean(&entry.name);
                if entry.kind != Kind::Dir {
                    others.insert(path.clone());
                }
                let Some(listed) = wanted.get(&path) else {
                    continue;
                };
                if entry.kind == Kind::HardLink {
                    let target = clean(&entry.link);
                    links.push((path.clone(), target.clone()));
                    more.entry(target)
                        .and_modify(|known| known.join(listed))
                        .or_insert_with(|| listed.clone());
                }
                found
                    .entry(path)
                    .and_modify(|known| known.join(listed))
                    .or_insert_with(|| listed.clone());
            }
            more.retain(|path, _| !found.contains_key(path));
            wanted = more;
        }
        targets_first(&mut found, &links);
        let mut folders: HashSet<_> = found.keys().flat_map(|path| parents(path)).collect();
        folders.extend(found.keys().filter(|path| !others.contains(*path)).cloned());
        Ok((!found.is_empty()).then_some(Selection {
            files: found,
            folders,
        }))
    }
}

impl Listed {
    /// What both list, at the place of the earlier one.
    fn join(&mut self, other: &Self) {
        self.rank = self.rank.min(other.rank);
        match (&mut self.bytes, &other.bytes) {
            (Some(bytes), Some(more)) => bytes.extend_from_slice(more),
            (bytes, _) => *bytes = None,
        }
    }
}

/// Sees to it that no link comes before its target, also where links lead to links.
fn targets_first(found: &mut HashMap<Vec<u8>, Listed>, links: &[(Vec<u8>, Vec<u8>)]) {
    // Each round brings at least one to its place; nearly always none is left to bring.
    for _ in links {
        let mut done = true;
        for (link, target) in links {
            let Some(listed) = found.get(link).cloned() else {
                continue;
            };
            let Some(known) = found.get_mut(target) else {
                continue;
            };
            done &= known.rank <= listed.rank;
            known.join(&listed);
        }
        if done {
            return;
        }
    }
}

impl Selection {
    /// Whether the entry comes before the landmark.
    pub(super) fn has(&self, entry: &Entry) -> bool {
        self.place(entry).is_some()
    }

    /// Whether any of these bytes of the file are listed.
    pub(super) fn reads(&self, entry: &Entry, bytes: Range<u64>) -> bool {
        let listed = self.files.get(&clean(&entry.name));
        let pieces = listed.and_then(|listed| listed.bytes.as_ref());
        let meets = |piece: &Range<u64>| piece.start < bytes.end && bytes.start < piece.end;
        pieces.is_none_or(|pieces| pieces.iter().any(meets))
    }

    /// Copies what comes first out of a tar, and yields it in the order in which it comes, each entry
    /// as a tar without an end. Its data waits in a temporary file.
    pub(super) fn extract<R: Read>(&self, tar: &mut Scanner<R>) -> Result<Extracted, Error> {
        let spool = tempfile::tempfile().map_err(Error::Output)?;
        let mut out = BufWriter::with_capacity(1 << 18, spool);
        let (mut places, mut at) = (Vec::new(), 0_u64);
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let Some(entry) = tar.next(&mut bytes)? else {
                break;
            };
            let Some(place) = self
                .place(&entry)
                .filter(|_| own::reserved(&entry).is_none())
            else {
                tar.skip(entry.size)?;
                tar.padding(entry.size, &mut bytes)?;
                continue;
            };
            out.write_all(&bytes).map_err(Error::Output)?;
            let mut len = bytes.len() as u64;
            let mut left = entry.size;
            while left > 0 {
                bytes.clear();
                let piece = left.min(PIECE);
                tar.data(piece, &mut bytes)?;
                out.write_all(&bytes).map_err(Error::Output)?;
                left -= piece;
            }
            bytes.clear();
            tar.padding(entry.size, &mut bytes)?;
            out.write_all(&bytes).map_err(Error::Output)?;
            len += entry.size + bytes.len() as u64;
            places.push((place, at..at + len));
            at += len;
        }
        // Entries of one path stay in the order they had.
        places.sort_by_key(|(place, _)| *place);
        let spool = out
            .into_inner()
            .map_err(|failed| Error::Output(failed.into_error()))?;
        let places = places.into_iter().map(|(_, bytes)| bytes).collect();
        Ok(Extracted { spool, places })
    }

    /// Where the entry stands among those that come first: folders, whose order is that of the tar,
    /// then all else in that of the list.
    fn place(&self, entry: &Entry) -> Option<usize> {
        let path = clean(&entry.name);
        if self.folders.contains(&path) && (entry.kind == Kind::Dir) {
            return Some(0);
        }
        self.files.get(&path).map(|listed| listed.rank + 1)
    }
}

/// How much of an entry is in memory at a time, in bytes.
const PIECE: u64 = 1 << 20;

/// One of the entries in a temporary file.
pub(super) type Piece<'a> = io::Take<BufReader<&'a File>>;

/// Entries in a temporary file.
pub(super) struct Extracted {
    spool: File,
    places: Vec<Range<u64>>,
}

impl Extracted {
    /// Calls `each` with one entry after the other.
    pub(super) fn for_each(
        &self,
        each: &mut dyn FnMut(&mut Scanner<Piece<'_>>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for bytes in &self.places {
            let mut spool = &self.spool;
            spool
                .seek(SeekFrom::Start(bytes.start))
                .map_err(Error::Input)?;
            let entry = BufReader::new(spool).take(bytes.end - bytes.start);
            each(&mut Scanner::new(entry))?;
        }
        Ok(())
    }
}

/// A path with the bytes behind its tab, if the line ends in such.
fn piece(line: &[u8]) -> Option<(&[u8], Range<u64>)> {
    let tab = line.iter().rposition(|&b| b == b'\t')?;
    let (path, bytes) = (line.get(..tab)?, line.get(tab + 1..)?);
    let (first, last) = str::from_utf8(bytes).ok()?.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((path, first..last.saturating_add(1)))
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
