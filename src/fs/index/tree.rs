//! The tree that a TOC's entries make, gathered in the TOC's order: names in memory, nodes and
//! chunks where they are many on disk (`spill.rs`).
//!
//! What tar does with an archive decides: the last of several entries of one name wins, a folder
//! over a folder changes its attributes and keeps what is in it, anything else replaces what was
//! there with all that was below it. Folders that are not listed are made up (0755, root, time 0).
//! Where tar would fail or leave the tree (an entry below a file or through a symlink), the layer
//! is refused, and containerd unpacks it as it sees fit. Nothing here recurses.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::fs::index::error::{Error, HELD, TreeError, io_error};
use crate::fs::index::format::{UNREAD, UNVERIFIED};
use crate::fs::index::links::Links;
use crate::fs::index::names::{self, Meaning};
use crate::fs::index::slots::{MAX_NODES, PENDING, Slots};
use crate::fs::index::spill::{Chunks, Nodes};
use crate::fs::index::xattrs::Sets;
use crate::oci::{Digest, Hasher};
use crate::stargz::{Chunk, Entry, EntryKind};

/// [`S_IFDIR`] as [`Nodes::kind`] says it.
const FOLDER_KIND: u8 = 4;
/// The root's node.
pub const ROOT: u32 = 0;

/// Types of files in `mode` (`stat.h`).
pub const S_IFMT: u32 = 0o170_000;
/// A named pipe.
pub const S_IFIFO: u32 = 0o010_000;
/// A character device.
pub const S_IFCHR: u32 = 0o020_000;
/// A folder.
pub const S_IFDIR: u32 = 0o040_000;
/// A block device.
pub const S_IFBLK: u32 = 0o060_000;
/// A regular file.
pub const S_IFREG: u32 = 0o100_000;
/// A symbolic link.
pub const S_IFLNK: u32 = 0o120_000;

/// A file or folder under construction.
#[derive(Debug, Clone, Copy, Default)]
pub struct Node {
    /// Type and permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Set of extended attributes, without the mark of an opaque folder.
    pub xattrs: u32,
    /// Modification time, seconds.
    pub mtime: i64,
    /// Modification time, nanoseconds.
    pub nanos: u32,
    /// What only its kind needs.
    pub is: Is,
}

/// What only one kind of node has.
#[derive(Debug, Clone, Copy, Default)]
pub enum Is {
    /// Nothing (a pipe).
    #[default]
    Plain,
    /// A folder.
    Folder {
        /// It hides the layers below.
        opaque: bool,
        /// The TOC does not list it.
        implicit: bool,
    },
    /// A regular file.
    File {
        /// Size in bytes.
        size: u64,
        /// First chunk.
        first: u32,
        /// Number of chunks.
        chunks: u32,
    },
    /// A symbolic link.
    Symlink {
        /// Where its target starts in [`Tree::targets`].
        target: u32,
        /// Length of its target.
        len: u32,
    },
    /// A device.
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// A chunk under construction.
#[derive(Debug, Clone, Copy)]
pub struct ChunkAt {
    /// Digest or made-up name.
    pub digest: Digest,
    /// Where in its file.
    pub at: u64,
    /// Where its member starts in the blob.
    pub offset: u64,
    /// Size, with [`UNVERIFIED`] and [`UNREAD`].
    pub size: u32,
    /// Where in the inflated member.
    pub inner: u32,
}

/// Everything a TOC says.
pub struct Tree {
    blob: Digest,
    folder: PathBuf,
    /// Files and folders; the first is the root.
    pub nodes: Nodes,
    /// Directory entries.
    pub slots: Slots,
    /// Chunks in the TOC's order, also of files that were replaced later.
    pub chunks: Chunks,
    /// Targets of symlinks.
    pub targets: Vec<u8>,
    /// Sets of extended attributes.
    pub sets: Sets,
    /// Blob offset of the prefetch landmark.
    pub landmark: Option<u64>,
    links: Links,
    /// The folder that was looked up last: entries of one folder mostly come together.
    last: (Vec<u8>, u32),
}

impl Tree {
    /// A tree of nothing but a root, for a layer with this blob.
    /// What does not fit into memory goes to nameless files in `folder`.
    pub fn new(blob: Digest, folder: &Path) -> Self {
        let root = Node {
            mode: S_IFDIR | 0o755,
            is: Is::Folder {
                opaque: false,
                implicit: true,
            },
            ..Node::default()
        };
        let mut nodes = Nodes::new(folder);
        nodes.push(root);
        Self {
            blob,
            folder: folder.to_owned(),
            nodes,
            slots: Slots::default(),
            chunks: Chunks::new(folder),
            targets: Vec::new(),
            sets: Sets::default(),
            landmark: None,
            links: Links::default(),
            last: (Vec::new(), ROOT),
        }
    }

    /// Adds the TOC's next entry.
    ///
    /// # Errors
    /// [`Error::Tree`], [`Error::Io`].
    pub fn add(&mut self, entry: &Entry<'_>) -> Result<(), Error> {
        let placed = self.place(entry);
        let kept = self.nodes.check().and_then(|()| self.chunks.check());
        kept.map_err(|error| io_error("keeping a layer's tree in", &self.folder)(error))?;
        placed.map_err(|why| why.of(&entry.name))
    }

    /// Finds out where the hard links lead. Nothing may be added afterwards.
    ///
    /// # Errors
    /// [`Error::Tree`].
    pub fn finish(&mut self) -> Result<(), Error> {
        let links = std::mem::take(&mut self.links);
        links.resolve(self)?;
        self.slots.close();
        Ok(())
    }

    /// The slot of a path; `None` when it, or a folder on the way to it, is not there.
    pub fn find(&self, path: &[u8]) -> Option<usize> {
        let (folder, name) = names::split(path);
        let mut at = ROOT;
        if !folder.is_empty() {
            for part in folder.split(|&byte| byte == b'/') {
                at = self.slots.target(self.slots.find(at, part)?)?;
            }
        }
        self.slots.find(at, name)
    }

    /// Whether a slot's target is a folder.
    pub fn is_folder(&self, target: u32) -> bool {
        self.nodes.kind(target) == Some(FOLDER_KIND)
    }

    fn place(&mut self, entry: &Entry<'_>) -> Result<(), TreeError> {
        match names::meaning(&entry.name)? {
            Meaning::Hidden => Ok(()),
            Meaning::Landmark => {
                if let EntryKind::File { chunks, .. } = &entry.kind {
                    // A member that it shares with files before it belongs to what comes before it.
                    self.landmark = chunks
                        .first()
                        .map(|chunk| chunk.offset + u64::from(chunk.inner > 0));
                }
                Ok(())
            }
            Meaning::Root => self.set_root(entry),
            Meaning::Opaque { folder } => {
                let folder = self.folder(folder)?;
                self.mark_opaque(folder);
                Ok(())
            }
            Meaning::Whiteout { folder, name } => {
                let folder = self.folder(folder)?;
                self.whiteout(folder, name, entry)
            }
            Meaning::Plain { folder, name } => {
                let folder = self.folder(folder)?;
                self.insert(folder, name, entry)
            }
        }
    }

    fn set_root(&mut self, entry: &Entry<'_>) -> Result<(), TreeError> {
        if !matches!(entry.kind, EntryKind::Dir) {
            return Err(TreeError::Root);
        }
        // Runtimes unpack into a folder of their own, 0755 and root's, and pass over its entry.
        let node = Node {
            mode: S_IFDIR | 0o755,
            uid: 0,
            gid: 0,
            xattrs: 0,
            ..self.node(entry)?
        };
        self.change_folder(ROOT, node);
        Ok(())
    }

    fn insert(&mut self, folder: u32, name: &[u8], entry: &Entry<'_>) -> Result<(), TreeError> {
        let slot = self.slots.find(folder, name);
        if let EntryKind::HardLink { target } = &entry.kind {
            // Resolved now if it can be, as tar does: what has this name later is another file.
            let known = self.find(target).and_then(|at| self.slots.target(at));
            let target = match known.filter(|known| known & PENDING == 0) {
                Some(known) if self.is_folder(known) => return Err(TreeError::LinkFolder),
                Some(known) => {
                    self.relabel(known, entry)?;
                    known
                }
                None => self.links.add(&entry.name, target)? | PENDING,
            };
            return self.put(slot, folder, name, target);
        }
        let node = self.node(entry)?;
        let old = slot.and_then(|slot| self.slots.target(slot));
        match old.filter(|old| self.is_folder(*old)) {
            Some(old) if matches!(node.is, Is::Folder { .. }) => {
                self.change_folder(old, node);
                Ok(())
            }
            _ => {
                let node = self.push(node)?;
                self.put(slot, folder, name, node)
            }
        }
    }

    /// A whiteout is about the layers below: what this layer itself has of that name stays.
    fn whiteout(&mut self, folder: u32, name: &[u8], entry: &Entry<'_>) -> Result<(), TreeError> {
        let slot = self.slots.find(folder, name);
        if slot.is_some() {
            return Ok(());
        }
        let node = self.push(Node {
            mode: S_IFCHR,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime.secs,
            nanos: entry.mtime.nanos,
            xattrs: 0,
            is: Is::Device { major: 0, minor: 0 },
        })?;
        self.put(None, folder, name, node)
    }

    /// Points the slot, or a new one, at `target`.
    fn put(
        &mut self,
        slot: Option<usize>,
        folder: u32,
        name: &[u8],
        target: u32,
    ) -> Result<(), TreeError> {
        let Some(slot) = slot else {
            return self.slots.add(folder, name, target).map(drop);
        };
        let old = self.slots.target(slot);
        if old.is_some_and(|old| self.is_folder(old)) {
            // The folder looked up last may have gone with it.
            self.last = (Vec::new(), ROOT);
        }
        self.slots.point(slot, target);
        Ok(())
    }

    /// The node of a folder, made up where it is not there yet.
    fn folder(&mut self, path: &[u8]) -> Result<u32, TreeError> {
        if path.is_empty() {
            return Ok(ROOT);
        }
        if self.last.0 == path {
            return Ok(self.last.1);
        }
        let mut at = ROOT;
        for part in path.split(|&byte| byte == b'/') {
            at = match self.slots.find(at, part) {
                None => self.make_up(at, part)?,
                Some(slot) => self
                    .slots
                    .target(slot)
                    .filter(|target| self.is_folder(*target))
                    .ok_or(TreeError::ParentKind)?,
            };
        }
        self.last.0.clear();
        self.last.0.extend_from_slice(path);
        self.last.1 = at;
        Ok(at)
    }

    fn make_up(&mut self, parent: u32, name: &[u8]) -> Result<u32, TreeError> {
        names::check(name)?;
        let node = self.push(Node {
            mode: S_IFDIR | 0o755,
            is: Is::Folder {
                opaque: false,
                implicit: true,
            },
            ..Node::default()
        })?;
        self.slots.add(parent, name, node)?;
        Ok(node)
    }

    fn push(&mut self, node: Node) -> Result<u32, TreeError> {
        let number = u32::try_from(self.nodes.len()).unwrap_or(MAX_NODES);
        if number >= MAX_NODES {
            return Err(TreeError::TooMany(MAX_NODES));
        }
        self.nodes.push(node);
        Ok(number)
    }

    fn mark_opaque(&mut self, folder: u32) {
        let Some(mut node) = self.nodes.get(folder) else {
            return;
        };
        if let Is::Folder { opaque, .. } = &mut node.is {
            *opaque = true;
        }
        self.nodes.set(folder, node);
    }

    /// A hard link's header says how its file looks from then on, as containerd unpacks it: `chown`,
    /// which takes away file capabilities, `setxattr`, `chmod` and `utimensat` on the new name.
    fn relabel(&mut self, target: u32, entry: &Entry<'_>) -> Result<(), TreeError> {
        let said = self.node(entry)?;
        let Some(mut node) = self.nodes.get(target) else {
            return Ok(());
        };
        if node.mode & S_IFMT != S_IFLNK {
            node.mode = (node.mode & S_IFMT) | (said.mode & !S_IFMT);
        }
        (node.uid, node.gid) = (said.uid, said.gid);
        (node.mtime, node.nanos) = (said.mtime, said.nanos);
        node.xattrs = self.sets.relabelled(node.xattrs, &entry.xattrs)?;
        self.nodes.set(target, node);
        Ok(())
    }

    /// New attributes for a folder that stays opaque if it was.
    fn change_folder(&mut self, folder: u32, mut node: Node) {
        let Some(old) = self.nodes.get(folder) else {
            return;
        };
        if let (Is::Folder { opaque, .. }, Is::Folder { opaque: new, .. }) = (old.is, &mut node.is)
        {
            *new = opaque;
        }
        self.nodes.set(folder, node);
    }

    /// The node that an entry describes; a hard link describes none.
    fn node(&mut self, entry: &Entry<'_>) -> Result<Node, TreeError> {
        let (kind, is) = match &entry.kind {
            EntryKind::Dir => {
                let (opaque, implicit) = (false, false);
                (S_IFDIR, Is::Folder { opaque, implicit })
            }
            EntryKind::File { size, chunks } => {
                let chunks = self.add_chunks(chunks)?;
                let (first, chunks) = (chunks.start, chunks.end - chunks.start);
                let size = *size;
                let file = Is::File {
                    size,
                    first,
                    chunks,
                };
                (S_IFREG, file)
            }
            EntryKind::Symlink { target } => {
                let start = short(self.targets.len())?;
                if self.targets.len() + target.len() > HELD {
                    return Err(TreeError::TooMuch("targets of symlinks"));
                }
                self.targets.extend_from_slice(target);
                let len = short(target.len())?;
                (S_IFLNK, Is::Symlink { target: start, len })
            }
            EntryKind::Char { major, minor } => (S_IFCHR, device(*major, *minor)),
            EntryKind::Block { major, minor } => (S_IFBLK, device(*major, *minor)),
            EntryKind::Fifo | EntryKind::HardLink { .. } => (S_IFIFO, Is::Plain),
        };
        let (mtime, nanos) = unpacked_time(entry);
        Ok(Node {
            mode: kind | (entry.mode & 0o7777),
            uid: entry.uid,
            gid: entry.gid,
            mtime,
            nanos,
            xattrs: self.sets.add(&entry.xattrs)?,
            is,
        })
    }

    fn add_chunks(&mut self, chunks: &[Chunk]) -> Result<Range<u32>, TreeError> {
        let start = short(self.chunks.len())?;
        for chunk in chunks {
            let inner = u32::try_from(chunk.inner).map_err(|_| TreeError::InnerOffset)?;
            let (digest, flag) = match chunk.digest {
                Some(digest) => (digest, 0),
                None => (self.made_up_name(chunk), UNVERIFIED),
            };
            let unread = if chunk.unread { UNREAD } else { 0 };
            self.chunks.push(&ChunkAt {
                digest,
                at: chunk.at,
                offset: chunk.offset,
                size: chunk.size | flag | unread,
                inner,
            });
        }
        Ok(start..short(self.chunks.len())?)
    }

    /// The cache's name for a chunk that nobody vouches for: from where it lies, so that it can
    /// never name the content of another layer.
    fn made_up_name(&self, chunk: &Chunk) -> Digest {
        let mut hasher = Hasher::new();
        hasher.update(b"crfs unverified chunk\0");
        hasher.update(self.blob.as_bytes());
        for number in [chunk.offset, chunk.inner, u64::from(chunk.size)] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.finish()
    }
}

/// The time that containerd sets: what 64 bits of nanoseconds since 1970 cannot say is 1970.
fn unpacked_time(entry: &Entry<'_>) -> (i64, u32) {
    const MAX: (i64, u32) = (i64::MAX / 1_000_000_000, (i64::MAX % 1_000_000_000) as u32);
    let time = (entry.mtime.secs, entry.mtime.nanos);
    if (0, 0) <= time && time <= MAX {
        time
    } else {
        (0, 0)
    }
}

const fn device(major: u32, minor: u32) -> Is {
    Is::Device { major, minor }
}

fn short(len: usize) -> Result<u32, TreeError> {
    u32::try_from(len).map_err(|_| TreeError::TooLarge)
}
