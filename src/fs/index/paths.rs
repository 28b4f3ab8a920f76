//! From paths to chunks and back: what a profile of first reads needs, which is kept by path.

use std::collections::HashSet;
use std::ops::Range;

use crate::blob::ChunkId;
use crate::fs::index::error::Damaged;
use crate::fs::index::format::SIZE;
use crate::fs::index::view::{Index, Ino, Kind};

/// `d_type` of a regular file and of a folder.
const DT_REG: u8 = 8;
const DT_DIR: u8 = 4;
/// The deepest folder that is gone into: the kernel's longest path has no deeper.
const MAX_DEPTH: usize = 2048;

/// A folder being gone through: what is left of its entries, and how long the path to it is.
struct Level {
    rest: Range<u32>,
    path: usize,
}

impl Index {
    /// The chunks of the regular file at `path`, which is relative to the layer's root; `None` if
    /// there is no such file. Symlinks are not followed.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn chunks_at(&self, path: &[u8]) -> Result<Option<Range<u32>>, Damaged> {
        match self.kind_at(path.split(|byte| *byte == b'/'))? {
            Some(Kind::File { chunks, .. }) => Ok(Some(chunks)),
            _ => Ok(None),
        }
    }

    /// What is at the path of these names from the layer's root on; `None` if nothing is. Symlinks are not followed.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn kind_at<'a>(
        &self,
        names: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Option<Kind>, Damaged> {
        let mut kind = self.find(Ino::ROOT)?.map(|node| node.kind);
        for name in names {
            let Some(Kind::Folder { entries, .. }) = kind else {
                return Ok(None);
            };
            let Some(ino) = self.lookup(&entries, name)? else {
                return Ok(None);
            };
            kind = self.find(ino)?.map(|node| node.kind);
        }
        Ok(kind)
    }

    /// Calls `each` with those chunks, and their sizes, of the file with `chunks` that have any of
    /// these bytes of it.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn each_chunk_in(
        &self,
        chunks: &Range<u32>,
        bytes: Range<u64>,
        each: &mut dyn FnMut(ChunkId, u32),
    ) -> Result<(), Damaged> {
        for number in self.chunk_at(chunks, bytes.start)?..chunks.end {
            let record = self.chunk_record(number)?;
            let size = record.size & SIZE;
            if record.at >= bytes.end {
                break;
            }
            if record.at + u64::from(size) > bytes.start {
                each(ChunkId(number), size);
            }
        }
        Ok(())
    }

    /// Calls `each` with the path and the chunks of every regular file that has one of `wanted`; of
    /// the names of a hard-linked file with one. Goes through the whole tree: about 100 ms for a
    /// million files.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn files_with(
        &self,
        wanted: &[ChunkId],
        each: &mut dyn FnMut(&[u8], Range<u32>),
    ) -> Result<(), Damaged> {
        let mut wanted: Vec<u32> = wanted.iter().map(|chunk| chunk.0).collect();
        wanted.sort();
        let has_any = |chunks: &Range<u32>| {
            let at = wanted.partition_point(|chunk| *chunk < chunks.start);
            wanted.get(at).is_some_and(|chunk| *chunk < chunks.end)
        };
        let mut linked = HashSet::new();
        let mut path = Vec::new();
        let mut levels = Vec::new();
        if let Some(Kind::Folder { entries, .. }) = self.find(Ino::ROOT)?.map(|node| node.kind) {
            levels.push(Level {
                rest: entries,
                path: 0,
            });
        }
        while let Some(level) = levels.last_mut() {
            path.truncate(level.path);
            let Some(next) = self.entries(&level.rest, 0).next() else {
                levels.pop();
                continue;
            };
            level.rest.start += 1;
            let (name, ino, kind) = next?;
            if !matches!(kind, DT_REG | DT_DIR) {
                continue;
            }
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            let Some(node) = self.find(ino)? else {
                continue;
            };
            match node.kind {
                Kind::Folder { entries, .. } if levels.len() < MAX_DEPTH => levels.push(Level {
                    rest: entries,
                    path: path.len(),
                }),
                Kind::File { chunks, .. }
                    if has_any(&chunks) && (node.nlink == 1 || linked.insert(ino)) =>
                {
                    each(&path, chunks);
                }
                _ => {}
            }
        }
        Ok(())
    }
}
