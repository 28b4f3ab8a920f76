//! Nodes and chunks of a tree under construction, on disk where they are many.
//!
//! A layer of a million files has 104 MB of them, and the daemon that builds its index is small. A
//! few thousand of the last are in memory; the others are in a file without a name, which is gone
//! when the process is. Chunks are only ever read in order; nodes also one by one, by blocks of
//! which some are kept, as those of one folder mostly lie together.
//!
//! A disk that fails is noticed at once and reported by [`Nodes::check`] and [`Chunks::check`]:
//! what is read after that is of no value.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use tempfile::SpooledTempFile;

use crate::fs::index::format::{INODE_LEN, InodeRecord};
use crate::fs::index::tree::{ChunkAt, Is, Node, S_IFMT};
use crate::oci::Digest;

/// Nodes that are in memory, at most.
const HELD: usize = 16 << 10;
/// Nodes in a block.
const BLOCK: usize = 85;
/// Blocks that are kept.
const BLOCKS: usize = 128;
/// Bytes of chunks that are in memory, at most.
const HELD_CHUNKS: usize = 1 << 20;
/// Bytes of a chunk.
const CHUNK: usize = 56;

const OPAQUE: u32 = 1;
const IMPLICIT: u32 = 2;

/// Nodes by number.
pub struct Nodes {
    folder: PathBuf,
    /// Type of each node: `S_IFMT` of its mode, shifted right by 12.
    kinds: Vec<u8>,
    /// The last ones, from number `from` on.
    held: Vec<Node>,
    from: usize,
    /// Those before.
    file: Option<File>,
    blocks: Vec<(usize, Vec<u8>)>,
    failed: Option<io::Error>,
}

impl Nodes {
    /// None yet; a file is made in `folder` when one is needed.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            kinds: Vec::new(),
            held: Vec::new(),
            from: 0,
            file: None,
            blocks: vec![(usize::MAX, Vec::new()); BLOCKS],
            failed: None,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Adds a node.
    pub fn push(&mut self, node: Node) {
        self.kinds.push(kind(&node));
        if self.held.len() >= HELD {
            self.spill();
        }
        self.held.push(node);
    }

    /// A node's type, as in `dirent.d_type`.
    pub fn kind(&self, number: u32) -> Option<u8> {
        self.kinds.get(number as usize).copied()
    }

    /// A node.
    pub fn get(&mut self, number: u32) -> Option<Node> {
        let number = number as usize;
        if let Some(at) = number.checked_sub(self.from) {
            return self.held.get(at).copied();
        }
        let (block, at) = (number / BLOCK, number % BLOCK);
        let (kept, bytes) = self.blocks.get_mut(block % BLOCKS)?;
        if *kept != block {
            // The last block of the file may be short.
            bytes.resize(BLOCK * INODE_LEN, 0);
            let read = self.file.as_ref().map(|file| read_some(file, bytes, block));
            if let Some(Err(error)) = read {
                self.failed.get_or_insert(error);
            }
            *kept = block;
        }
        let record = bytes.get(at * INODE_LEN..(at + 1) * INODE_LEN)?;
        InodeRecord::decode(record).map(decode)
    }

    /// Changes a node.
    pub fn set(&mut self, number: u32, node: Node) {
        let at = number as usize;
        if let Some(known) = self.kinds.get_mut(at) {
            *known = kind(&node);
        }
        if let Some(at) = at.checked_sub(self.from) {
            if let Some(place) = self.held.get_mut(at) {
                *place = node;
            }
            return;
        }
        if let Some((kept, _)) = self.blocks.get_mut(at / BLOCK % BLOCKS) {
            *kept = usize::MAX;
        }
        let mut bytes = Vec::with_capacity(INODE_LEN);
        encode(&node).encode(&mut bytes);
        let written = self
            .file
            .as_ref()
            .map(|file| file.write_all_at(&bytes, (at * INODE_LEN) as u64));
        if let Some(Err(error)) = written {
            self.failed.get_or_insert(error);
        }
    }

    /// Whether the disk did its part.
    ///
    /// # Errors
    /// It did not.
    pub fn check(&mut self) -> io::Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    fn spill(&mut self) {
        let mut bytes = Vec::with_capacity(self.held.len() * INODE_LEN);
        for node in self.held.drain(..) {
            encode(&node).encode(&mut bytes);
        }
        let start = self.from * INODE_LEN;
        self.from += bytes.len() / INODE_LEN;
        // The block that ended with the last node before.
        for (kept, _) in &mut self.blocks {
            *kept = usize::MAX;
        }
        let file = match self.file.take() {
            Some(file) => Ok(file),
            None => tempfile::tempfile_in(&self.folder),
        };
        let written = file.and_then(|file| {
            file.write_all_at(&bytes, start as u64)?;
            Ok(file)
        });
        match written {
            Ok(file) => self.file = Some(file),
            Err(error) => _ = self.failed.get_or_insert(error),
        }
    }
}

fn read_some(file: &File, bytes: &mut [u8], block: usize) -> io::Result<()> {
    let (mut at, start) = (0, (block * BLOCK * INODE_LEN) as u64);
    while let Some(rest) = bytes.get_mut(at..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, start + at as u64)? {
            0 => break,
            len => at += len,
        }
    }
    Ok(())
}

fn kind(node: &Node) -> u8 {
    // Fits: types have four bits.
    u8::try_from((node.mode & S_IFMT) >> 12).unwrap_or_default()
}

/// A node as an inode record, which has room for all of it: `nlink`, which nodes do not have, says
/// what `Is` it is of.
fn encode(node: &Node) -> InodeRecord {
    let (nlink, a, b, c) = match node.is {
        Is::Plain => (0, 0, 0, 0),
        Is::Folder { opaque, implicit } => {
            let flag = |set, flag| if set { flag } else { 0 };
            (1, 0, flag(opaque, OPAQUE) | flag(implicit, IMPLICIT), 0)
        }
        Is::File {
            size,
            first,
            chunks,
        } => (2, size, first, chunks),
        Is::Symlink { target, len } => (3, 0, target, len),
        Is::Device { major, minor } => (4, 0, major, minor),
    };
    InodeRecord {
        mode: node.mode,
        uid: node.uid,
        gid: node.gid,
        nlink,
        mtime: node.mtime,
        nanos: node.nanos,
        xattrs: node.xattrs,
        a,
        b,
        c,
    }
}

fn decode(record: InodeRecord) -> Node {
    let (a, b, c) = (record.a, record.b, record.c);
    let is = match record.nlink {
        1 => Is::Folder {
            opaque: b & OPAQUE != 0,
            implicit: b & IMPLICIT != 0,
        },
        2 => Is::File {
            size: a,
            first: b,
            chunks: c,
        },
        3 => Is::Symlink { target: b, len: c },
        4 => Is::Device { major: b, minor: c },
        _ => Is::Plain,
    };
    Node {
        mode: record.mode,
        uid: record.uid,
        gid: record.gid,
        xattrs: record.xattrs,
        mtime: record.mtime,
        nanos: record.nanos,
        is,
    }
}

/// Chunks in the order they came.
pub struct Chunks {
    out: BufWriter<SpooledTempFile>,
    len: usize,
    failed: Option<io::Error>,
}

impl Chunks {
    /// None yet; a file is made in `folder` when one is needed.
    pub fn new(folder: &Path) -> Self {
        let file = tempfile::spooled_tempfile_in(HELD_CHUNKS, folder);
        Self {
            out: BufWriter::with_capacity(64 << 10, file),
            len: 0,
            failed: None,
        }
    }

    /// How many there are.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Adds a chunk.
    pub fn push(&mut self, chunk: &ChunkAt) {
        let mut bytes = [0; CHUNK];
        let mut rest = bytes.as_mut_slice();
        let written = rest
            .write_all(chunk.digest.as_bytes())
            .and_then(|()| rest.write_all(&chunk.at.to_le_bytes()))
            .and_then(|()| rest.write_all(&chunk.offset.to_le_bytes()))
            .and_then(|()| rest.write_all(&chunk.size.to_le_bytes()))
            .and_then(|()| rest.write_all(&chunk.inner.to_le_bytes()))
            .and_then(|()| self.out.write_all(&bytes));
        if let Err(error) = written {
            self.failed.get_or_insert(error);
        }
        self.len += 1;
    }

    /// Whether the disk did its part.
    ///
    /// # Errors
    /// It did not.
    pub fn check(&mut self) -> io::Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Calls `each` with all chunks in order.
    ///
    /// # Errors
    /// The disk's, or that of `each`.
    pub fn for_each(&mut self, each: &mut dyn FnMut(&ChunkAt) -> io::Result<()>) -> io::Result<()> {
        self.out.flush()?;
        let file = self.out.get_mut();
        file.seek(SeekFrom::Start(0))?;
        let mut reader = BufReader::with_capacity(64 << 10, file);
        let mut bytes = [0; CHUNK];
        for _ in 0..self.len {
            reader.read_exact(&mut bytes)?;
            each(&parse(&bytes).ok_or(io::ErrorKind::InvalidData)?)?;
        }
        Ok(())
    }
}

fn parse(bytes: &[u8; CHUNK]) -> Option<ChunkAt> {
    let (digest, rest) = bytes.split_first_chunk()?;
    let (at, rest) = rest.split_first_chunk()?;
    let (offset, rest) = rest.split_first_chunk()?;
    let (size, rest) = rest.split_first_chunk()?;
    let (inner, _) = rest.split_first_chunk()?;
    Some(ChunkAt {
        digest: Digest::from_bytes(*digest),
        at: u64::from_le_bytes(*at),
        offset: u64::from_le_bytes(*offset),
        size: u32::from_le_bytes(*size),
        inner: u32::from_le_bytes(*inner),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_what_they_were_in_memory_and_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let mut nodes = Nodes::new(folder.path());
        let node = |number: u32| Node {
            mode: if number.is_multiple_of(3) {
                0o040_755
            } else {
                0o100_644
            },
            uid: number,
            gid: 1,
            xattrs: 2,
            mtime: -3,
            nanos: 4,
            is: match number % 5 {
                0 => Is::Plain,
                1 => Is::Folder {
                    opaque: true,
                    implicit: number.is_multiple_of(2),
                },
                2 => Is::File {
                    size: 1 << 40,
                    first: number,
                    chunks: 9,
                },
                3 => Is::Symlink {
                    target: number,
                    len: 8,
                },
                _ => Is::Device {
                    major: number,
                    minor: 7,
                },
            },
        };
        let count = 3 * u32::try_from(HELD).unwrap() + 100;
        for number in 0..count {
            nodes.push(node(number));
            if number % 1000 == 999 {
                // Also one that has just gone to the disk, and one that has long been there.
                for known in [number / 2, number - 1] {
                    assert_eq!(nodes.get(known).map(|n| n.uid), Some(known));
                }
            }
        }
        for number in [5, 70_000 % count, count - 1] {
            let changed = Node {
                gid: 77,
                ..node(number)
            };
            nodes.set(number, changed);
            assert_eq!(nodes.get(number).map(|n| n.gid), Some(77));
            nodes.set(number, node(number));
        }
        // Far apart, so that blocks replace each other, and in order.
        for number in (0..count).step_by(4001).chain(0..count) {
            let found = nodes.get(number).unwrap();
            assert_eq!(format!("{found:?}"), format!("{:?}", node(number)));
            assert_eq!(nodes.kind(number), Some(kind(&found)));
        }
        assert!(nodes.get(count).is_none() && nodes.kind(count).is_none());
        assert_eq!(nodes.len(), count as usize);
        nodes.check().unwrap();
    }

    #[test]
    fn a_disk_that_fails_is_reported() {
        let mut nodes = Nodes::new(Path::new("/does/not/exist"));
        for _ in 0..=HELD {
            nodes.push(Node::default());
        }
        nodes.check().unwrap_err();
        let mut chunks = Chunks::new(Path::new("/does/not/exist"));
        let chunk = ChunkAt {
            digest: Digest::of(b""),
            at: 0,
            offset: 0,
            size: 1,
            inner: 0,
        };
        for _ in 0..=(HELD_CHUNKS / CHUNK) + 2000 {
            chunks.push(&chunk);
        }
        chunks.check().unwrap_err();
    }
}
