//! Writing an index file.
//!
//! Crash behaviour: the file is written under a temporary name beside its own, flushed to the disk,
//! renamed, and the folder is flushed. Under its own name it is always whole; a crash leaves at
//! most a temporary file, which the owner of the folder may delete.

use std::fs::File;
use std::io::{BufWriter, Seek as _, SeekFrom, Write};
use std::path::Path;

use crate::fs::index::error::{Error, io_error};
use crate::fs::index::format::{
    BLOCK, CHUNK_LEN, ChunkRecord, DirentRecord, HAS_ACL, HAS_OPAQUE, HAS_XATTRS, HEADER_LEN,
    Header, IMPLICIT, InodeRecord, SECTIONS, Span,
};
use crate::fs::index::layout::{Layout, NOWHERE, Totals};
use crate::fs::index::members::Members;
use crate::fs::index::slots::Slots;
use crate::fs::index::spill::Nodes;
use crate::fs::index::tree::{Is, Node, Tree};
use crate::oci::Digest;

/// Bytes written at a time. The page cache keeps together what is written together, and the kernel (since 6.18) maps
/// as much of it when one page is touched: a larger one makes all of the index resident, whatever is used of it.
const PIECE: usize = 64 << 10;

/// What an index is of.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// The TOC.
    pub toc: Digest,
    /// The compressed blob.
    pub blob: Digest,
    /// Where the blob's data ends.
    pub data_end: u64,
}

/// Writes the index of a finished tree to `path`.
///
/// # Errors
/// [`Error::Io`]; [`Error::Tree`] when the format cannot hold it.
pub fn write(mut tree: Tree, source: Source, path: &Path) -> Result<(), Error> {
    let layout = Layout::new(&tree)?;
    mark_opaque(&mut tree, &layout)?;
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let temporary = tempfile::Builder::new()
        .prefix(".index-")
        .tempfile_in(folder)
        .map_err(io_error("creating a temporary file in", folder))?;
    let writing = io_error("writing the index", path);
    Writer::new(temporary.as_file())
        .and_then(|writer| writer.run(tree, layout, source))
        .map_err(writing)?;
    let file = temporary.as_file();
    file.sync_all().map_err(io_error("flushing", path))?;
    let persisted = temporary.persist(path);
    persisted.map_err(|failed| io_error("renaming to", path)(failed.error))?;
    let flushed = File::open(folder).and_then(|folder| folder.sync_all());
    flushed.map_err(io_error("flushing", folder))
}

/// Gives every opaque folder the attribute that says so.
fn mark_opaque(tree: &mut Tree, layout: &Layout) -> Result<(), Error> {
    for &number in &layout.order {
        if !tree.is_folder(number) {
            continue;
        }
        let node = tree.nodes.get(number);
        if let Some(mut node) = node.filter(|n| matches!(n.is, Is::Folder { opaque: true, .. })) {
            let marked = tree.sets.with_opaque(node.xattrs);
            node.xattrs = marked.map_err(|why| why.of(b""))?;
            tree.nodes.set(number, node);
        }
    }
    Ok(())
}

/// Writes sections one after the other, and the header when all of them are known.
struct Writer<'a> {
    out: BufWriter<&'a File>,
    record: Vec<u8>,
    sections: Vec<Span>,
    start: u64,
    at: u64,
    crc: crc32fast::Hasher,
    sums: Vec<u8>,
}

impl<'a> Writer<'a> {
    fn new(file: &'a File) -> std::io::Result<Self> {
        let mut out = BufWriter::with_capacity(PIECE, file);
        out.seek(SeekFrom::Start(HEADER_LEN))?;
        Ok(Self {
            out,
            record: Vec::with_capacity(CHUNK_LEN),
            sections: Vec::with_capacity(SECTIONS),
            start: HEADER_LEN,
            at: HEADER_LEN,
            crc: crc32fast::Hasher::new(),
            sums: Vec::new(),
        })
    }

    fn run(mut self, tree: Tree, layout: Layout, source: Source) -> std::io::Result<()> {
        let Tree {
            mut nodes,
            slots,
            mut chunks,
            targets,
            sets,
            landmark,
            ..
        } = tree;
        let totals = self.inodes(&mut nodes, &layout)?;
        self.dirents(&nodes, &slots, &layout)?;
        self.names(&slots, &layout)?;
        self.put(&targets)?;
        self.end_section();
        let mut flags = 0;
        for (flag, set) in [(HAS_OPAQUE, totals.opaque > 0), (HAS_ACL, sets.has_acl())] {
            flags |= if set { flag } else { 0 };
        }
        // What is not needed any more makes room for the members.
        drop((nodes, slots, layout));
        let members = Members::new(&mut chunks)?;
        let mut of_chunk = members.of_chunk.iter();
        chunks.for_each(&mut |chunk| {
            let member = of_chunk.next().copied().unwrap_or(u32::MAX);
            self.encode(|out| {
                let record = ChunkRecord {
                    digest: chunk.digest,
                    at: chunk.at,
                    size: chunk.size,
                    member,
                    inner: chunk.inner,
                };
                record.encode(out);
            })
        })?;
        self.end_section();
        for member in &members.records {
            self.encode(|out| member.encode(out))?;
        }
        self.end_section();
        for chunk in &members.chunks {
            self.put(&chunk.to_le_bytes())?;
        }
        self.end_section();
        let sets = sets.into_bytes();
        flags |= if sets.is_empty() { 0 } else { HAS_XATTRS };
        self.put(&sets)?;
        self.end_section();
        self.finish(Header {
            flags,
            toc: source.toc,
            blob: source.blob,
            file_len: 0,
            data_end: source.data_end,
            landmark: landmark.unwrap_or(u64::MAX),
            content: totals.content,
            files: totals.files,
            folders: totals.folders,
            implicit: totals.implicit,
            sums_crc: 0,
            sections: [Span::default(); SECTIONS],
        })
    }

    fn inodes(&mut self, nodes: &mut Nodes, layout: &Layout) -> std::io::Result<Totals> {
        let mut totals = Totals::default();
        let mut first_entry = 0;
        for &number in &layout.order {
            let Some(node) = nodes.get(number) else {
                continue;
            };
            totals.add(&node);
            let record = inode(&node, number, layout, first_entry);
            if matches!(node.is, Is::Folder { .. }) {
                first_entry += record.c;
            }
            self.encode(|out| record.encode(out))?;
        }
        self.end_section();
        nodes.check()?;
        Ok(totals)
    }

    fn dirents(&mut self, nodes: &Nodes, slots: &Slots, layout: &Layout) -> std::io::Result<()> {
        let mut name = 0;
        for &folder in &layout.order {
            for slot in layout.entries(slots, folder) {
                let len = slots.name(slot).len();
                let record = DirentRecord {
                    name,
                    inode: position(layout, slot.target),
                    // Fits: names have at most 255 bytes.
                    name_len: u8::try_from(len).unwrap_or(u8::MAX),
                    kind: nodes.kind(slot.target).unwrap_or_default(),
                };
                name += u32::from(record.name_len);
                self.encode(|out| record.encode(out))?;
            }
        }
        self.end_section();
        Ok(())
    }

    fn names(&mut self, slots: &Slots, layout: &Layout) -> std::io::Result<()> {
        for &folder in &layout.order {
            for slot in layout.entries(slots, folder) {
                self.put(slots.name(slot))?;
            }
        }
        Ok(())
    }

    /// Ends the last block, writes the checksums and the header.
    fn finish(mut self, mut header: Header) -> std::io::Result<()> {
        if !(self.at - HEADER_LEN).is_multiple_of(BLOCK) {
            self.end_block();
        }
        let sums = std::mem::take(&mut self.sums);
        self.out.write_all(&sums)?;
        self.sections.push(Span {
            start: self.at,
            len: sums.len() as u64,
        });
        header.file_len = self.at + sums.len() as u64;
        header.sums_crc = crc32fast::hash(&sums);
        for (place, span) in header.sections.iter_mut().zip(&self.sections) {
            *place = *span;
        }
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&header.encode())?;
        self.out.flush()
    }

    fn encode(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> std::io::Result<()> {
        let mut record = std::mem::take(&mut self.record);
        record.clear();
        encode(&mut record);
        let written = self.put(&record);
        self.record = record;
        written
    }

    /// Writes bytes and adds them to the checksums of their blocks.
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = BLOCK - (self.at - HEADER_LEN) % BLOCK;
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at(rest.len().min(room));
            self.out.write_all(now)?;
            self.crc.update(now);
            self.at += now.len() as u64;
            if now.len() == room {
                self.end_block();
            }
            rest = later;
        }
        Ok(())
    }

    fn end_block(&mut self) {
        let crc = std::mem::take(&mut self.crc).finalize();
        self.sums.extend_from_slice(&crc.to_le_bytes());
    }

    fn end_section(&mut self) {
        self.sections.push(Span {
            start: self.start,
            len: self.at - self.start,
        });
        self.start = self.at;
    }
}

fn inode(node: &Node, number: u32, layout: &Layout, first_entry: u32) -> InodeRecord {
    let get = |list: &[u32]| list.get(number as usize).copied().unwrap_or_default();
    // All fit: Layout::new refused what does not.
    let names_len = u32::try_from(layout.names_len).unwrap_or_default();
    let (a, b, c) = match node.is {
        Is::Plain => (0, 0, 0),
        Is::Folder { .. } => {
            let count = u32::try_from(layout.entry_count(number)).unwrap_or_default();
            (u64::from(get(&layout.parent)) + 1, first_entry, count)
        }
        Is::File {
            size,
            first,
            chunks,
        } => (size, first, chunks),
        Is::Symlink { target, len } => (u64::from(len), names_len + target, 0),
        Is::Device { major, minor } => (0, major, minor),
    };
    let implicit = matches!(node.is, Is::Folder { implicit: true, .. });
    InodeRecord {
        mode: node.mode | if implicit { IMPLICIT } else { 0 },
        uid: node.uid,
        gid: node.gid,
        nlink: get(&layout.links),
        mtime: node.mtime,
        nanos: node.nanos,
        xattrs: node.xattrs,
        a,
        b,
        c,
    }
}

fn position(layout: &Layout, node: u32) -> u32 {
    layout
        .position
        .get(node as usize)
        .copied()
        .unwrap_or(NOWHERE)
}
