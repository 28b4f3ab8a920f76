//! One layer as a tree: what each request of the kernel asks for, without FUSE.
//!
//! Promises: every answer is a function of the index and of the layer's content. Nothing is made
//! when a name is looked up, no handle is given out, nothing is remembered between two requests;
//! a server that takes over in the middle answers the same.

use std::collections::HashMap;
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::blob::{ChunkId, ReadAt, ReadError, WholeFile};
use crate::fs::buffers::Buffer;
use crate::fs::error::Error;
use crate::fs::index::{Index, Ino, Inode, Kind, MAX_NAME, Part};
use crate::fs::unlisted::{self, Unlisted};

/// One layer: its index and its content.
pub struct LayerFs {
    index: Arc<Index>,
    content: Arc<dyn ReadAt>,
    /// What the layers below say of folders that this one does not list.
    unlisted: OnceLock<HashMap<Ino, Unlisted>>,
}

/// An entry of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item<'a> {
    /// Its name; `.` and `..` come first.
    pub name: &'a [u8],
    /// What it names.
    pub ino: Ino,
    /// Its `d_type`.
    pub kind: u8,
    /// Where to go on after it; stable for ever.
    pub next: u64,
}

/// The outcome of a read.
pub enum Reading {
    /// All of it was held here.
    Ready(Buffer),
    /// Some of it has to be fetched, which has begun; must be awaited on the runtime.
    Waiting(BoxFuture<'static, Result<Buffer, Error>>),
}

/// Numbers for statfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statfs {
    /// Size of the cache's disk, in blocks.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Blocks that an unprivileged process may use.
    pub available: u64,
    /// Files and folders of the layer.
    pub inodes: u64,
    /// Size of a block in bytes.
    pub block: u32,
}

/// [`ReadAt::try_read`] or [`ReadAt::peek`].
type CopyChunk<'a> = dyn Fn(ChunkId, u32, &mut [u8]) -> Result<bool, ReadError> + 'a;

/// Size of a block in `statfs`, in bytes.
const BLOCK: u32 = 4096;
/// `d_type` of a folder.
const DT_DIR: u8 = 4;

impl LayerFs {
    /// The layer of this index and this content.
    #[must_use]
    pub fn new(index: Arc<Index>, content: Arc<dyn ReadAt>) -> Self {
        Self {
            index,
            content,
            unlisted: OnceLock::new(),
        }
    }

    /// Says what unlisted folders look like; counts once, before the kernel has looked at any.
    pub fn set_unlisted(&self, all: Vec<Unlisted>) {
        self.unlisted.get_or_init(|| unlisted::by_ino(all));
    }

    /// The layer's index.
    #[must_use]
    pub const fn index(&self) -> &Arc<Index> {
        &self.index
    }

    /// Attributes of a node.
    ///
    /// # Errors
    /// [`Error::NoNode`], [`Error::Damaged`].
    pub fn getattr(&self, ino: Ino) -> Result<Inode, Error> {
        let mut node = self.index.find(ino)?.ok_or(Error::NoNode(ino))?;
        if node.implicit
            && let Some(known) = self.unlisted.get().and_then(|all| all.get(&ino))
        {
            known.apply(&mut node);
        }
        Ok(node)
    }

    /// The entry `name` of a folder.
    ///
    /// # Errors
    /// [`Error::NoEntry`], [`Error::LongName`], [`Error::NotFolder`], [`Error::Damaged`].
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Inode, Error> {
        let (_, entries) = folder(&self.getattr(parent)?)?;
        if name.len() > MAX_NAME {
            return Err(Error::LongName);
        }
        let found = self.index.lookup(&entries, name)?;
        self.getattr(found.ok_or(Error::NoEntry)?)
    }

    /// Calls `each` with a folder's entries from `offset` on (0, or an [`Item::next`]) until it
    /// breaks off.
    ///
    /// # Errors
    /// [`Error::NotFolder`], [`Error::Damaged`].
    pub fn readdir(
        &self,
        ino: Ino,
        offset: u64,
        each: &mut dyn FnMut(Item<'_>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let (above, entries) = folder(&self.getattr(ino)?)?;
        let dots: [(&[u8], Ino); 2] = [(b".", ino), (b"..", above)];
        for (next, (name, ino)) in (1..).zip(dots) {
            let kind = DT_DIR;
            let item = Item {
                name,
                ino,
                kind,
                next,
            };
            if next > offset && each(item).is_break() {
                return Ok(());
            }
        }
        let skip = u32::try_from(offset.saturating_sub(2)).unwrap_or(u32::MAX);
        for (entry, next) in self
            .index
            .entries(&entries, skip)
            .zip(offset.max(2).saturating_add(1)..)
        {
            let (name, ino, kind) = entry?;
            let item = Item {
                name,
                ino,
                kind,
                next,
            };
            if each(item).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Where a symlink points.
    ///
    /// # Errors
    /// [`Error::NotSymlink`], [`Error::Damaged`].
    pub fn readlink(&self, ino: Ino) -> Result<&[u8], Error> {
        match self.getattr(ino)?.kind {
            Kind::Symlink { target, len } => Ok(self.index.target(target, len)?),
            _ => Err(Error::NotSymlink(ino)),
        }
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// [`Error::NoAttribute`], [`Error::Damaged`].
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<&[u8], Error> {
        let set = self.index.xattrs(&self.getattr(ino)?)?;
        set.get(name).ok_or(Error::NoAttribute)
    }

    /// The names of all extended attributes, a NUL after each.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        let set = self.index.xattrs(&self.getattr(ino)?)?;
        let mut names = Vec::new();
        for (name, _) in set.iter() {
            names.extend_from_slice(name);
            names.push(0);
        }
        Ok(names)
    }

    /// Numbers of the disk that holds the cache.
    #[must_use]
    pub fn statfs(&self) -> Statfs {
        let space = self.content.space();
        let block = u64::from(BLOCK);
        Statfs {
            blocks: space.disk_total / block,
            free: space.disk_free / block,
            available: space.disk_available / block,
            inodes: u64::from(self.index.summary().inodes),
            block: BLOCK,
        }
    }

    /// The file with these chunks as a file of the host, if it is complete and verified.
    #[must_use]
    pub fn whole_file(&self, chunks: &Range<u32>) -> Option<WholeFile> {
        self.content.whole_file(chunks)
    }

    /// Reads at most `len` bytes from `offset` of a file: all of them, or up to its end.
    ///
    /// # Errors
    /// [`Error::NotFile`], [`Error::Damaged`], [`Error::Content`].
    pub fn read(&self, ino: Ino, offset: u64, len: u32) -> Result<Reading, Error> {
        if let Some(buffer) = self.read_here(ino, offset, len)? {
            return Ok(Reading::Ready(buffer));
        }
        let (chunks, parts) = self.parts(ino, offset, len)?;
        Ok(Reading::Waiting(self.fetch(chunks, parts)))
    }

    /// The same if all of it is here; nothing is fetched.
    ///
    /// # Errors
    /// As [`LayerFs::read`].
    pub fn read_here(&self, ino: Ino, offset: u64, len: u32) -> Result<Option<Buffer>, Error> {
        self.copy(ino, offset, len, &|chunk, at, out| {
            self.content.try_read(chunk, at, out)
        })
    }

    /// Copies `len` bytes from `offset` of a file by `read`, unless it finds that some are not here.
    fn copy(
        &self,
        ino: Ino,
        offset: u64,
        len: u32,
        read: &CopyChunk<'_>,
    ) -> Result<Option<Buffer>, Error> {
        let (chunks, len) = self.extent(ino, offset, len)?;
        // Fits: it began as a u32.
        let mut buffer = Buffer::take(usize::try_from(len).unwrap_or(usize::MAX));
        let mut rest = &mut *buffer;
        let mut hit = Ok(true);
        self.index.parts(&chunks, offset, len, &mut |part| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(part.len as usize);
            rest = later;
            if matches!(hit, Ok(true)) {
                hit = read(part.chunk, part.at, now);
            }
        })?;
        // Of a miss the buffer goes back at once: what waits for the network must not hold memory.
        Ok(hit?.then_some(buffer))
    }

    /// The first `len` bytes of a file if all of them are here, for nobody who asked: they count as
    /// read when [`LayerFs::was_read`] says so.
    ///
    /// # Errors
    /// As [`LayerFs::read`].
    pub fn peek(&self, ino: Ino, len: u32) -> Result<Option<Buffer>, Error> {
        self.copy(ino, 0, len, &|chunk, at, out| {
            self.content.peek(chunk, at, out)
        })
    }

    /// Says that somebody read these chunks without asking for them here.
    pub fn was_read(&self, chunks: Range<u32>) {
        self.content.was_read(chunks);
    }

    /// The chunks that a read of `len` bytes from `offset` needs.
    ///
    /// # Errors
    /// [`Error::NotFile`], [`Error::Damaged`].
    pub fn chunks(&self, ino: Ino, offset: u64, len: u32) -> Result<Range<u32>, Error> {
        let (_, parts) = self.parts(ino, offset, len)?;
        let numbers = parts.first().zip(parts.last());
        Ok(numbers.map_or(0..0, |(first, last)| {
            first.chunk.0..last.chunk.0.saturating_add(1)
        }))
    }

    /// The chunks of a file, and how many of `len` bytes from `offset` it has.
    fn extent(&self, ino: Ino, offset: u64, len: u32) -> Result<(Range<u32>, u64), Error> {
        let Kind::File { size, chunks } = self.getattr(ino)?.kind else {
            return Err(Error::NotFile(ino));
        };
        Ok((chunks, u64::from(len).min(size.saturating_sub(offset))))
    }

    fn parts(&self, ino: Ino, offset: u64, len: u32) -> Result<(Range<u32>, Vec<Part>), Error> {
        let (chunks, len) = self.extent(ino, offset, len)?;
        let mut parts = Vec::new();
        self.index
            .parts(&chunks, offset, len, &mut |part| parts.push(part))?;
        Ok((chunks, parts))
    }

    /// Fetches what is not here. All requests are made before this returns, the most urgent first.
    fn fetch(
        &self,
        file: Range<u32>,
        parts: Vec<Part>,
    ) -> BoxFuture<'static, Result<Buffer, Error>> {
        let content = Arc::clone(&self.content);
        if let (Some(first), Some(last)) = (parts.first(), parts.last()) {
            content.will_read(first.chunk.0..last.chunk.0.saturating_add(1), file.clone());
        }
        let fetches = parts.iter().map(|part| {
            let part = *part;
            let fetch = content.fetch(part.chunk, file.clone());
            async move { slice(part, fetch.await) }
        });
        let fetches = futures::future::try_join_all(fetches.collect::<Vec<_>>());
        async move {
            let pieces = fetches.await?;
            let mut buffer = Buffer::take(pieces.iter().map(Bytes::len).sum());
            let mut rest = &mut *buffer;
            for piece in pieces {
                let (now, later) = std::mem::take(&mut rest).split_at_mut(piece.len());
                now.copy_from_slice(&piece);
                rest = later;
            }
            Ok(buffer)
        }
        .boxed()
    }
}

/// The part of a fetched chunk that was asked for.
fn slice(part: Part, chunk: Result<Bytes, ReadError>) -> Result<Bytes, Error> {
    let chunk = chunk?;
    let start = part.at as usize;
    let end = start.saturating_add(part.len as usize);
    if end > chunk.len() {
        let ChunkId(number) = part.chunk;
        return Err(Error::ShortChunk {
            chunk: number,
            found: chunk.len(),
            needed: end,
        });
    }
    Ok(chunk.slice(start..end))
}

fn folder(node: &Inode) -> Result<(Ino, Range<u32>), Error> {
    match &node.kind {
        Kind::Folder { parent, entries } => Ok((*parent, entries.clone())),
        _ => Err(Error::NotFolder(node.ino)),
    }
}
