//! A layer's index: its whole tree in one compact file, built once from the TOC, then mapped.
//!
//! Promises:
//! - Node ids follow from the TOC alone: id = position of the inode record + 1, the root is 1, the
//!   names of a hard-linked file share one. Same TOC, same ids, on every node, mount and restart.
//! - [`Index::open`] parses nothing and its cost does not grow with the layer, but for 4 bytes to
//!   checksum per 16 KiB of index.
//! - A damaged file yields [`Damaged`], never a panic, never another file's bytes: each block is
//!   compared with its checksum when it is first touched, and every reference is checked against
//!   the bounds of its section.
//!
//! Layout: `INDEX_FORMAT.md` beside this file. Crash behaviour: `write.rs`. Locking: none needed.

mod error;
mod format;
mod layout;
mod links;
mod mapped;
mod members;
mod names;
mod paths;
mod slots;
mod spill;
mod tree;
mod view;
mod write;
mod xattrs;

use std::path::Path;

use crate::oci::Digest;
use crate::stargz::{Limits, Toc};

pub use error::{Damaged, Error, TreeError};
pub use mapped::Mapped;
pub use names::MAX_NAME;
pub use view::{Dirents, Index, Ino, Inode, Kind, Part, Summary};
pub use xattrs::Set;

/// Builds the index of a layer at `path`. `data_end` is where the blob's data ends and its TOC
/// begins, `blob` the digest of the compressed blob. When it returns, the file is durable.
///
/// # Errors
/// [`Error::Toc`] and [`Error::Tree`] when the layer is refused, [`Error::Io`]. Nothing is left.
pub fn build(
    toc: &Toc,
    limits: &Limits,
    data_end: u64,
    blob: Digest,
    path: &Path,
) -> Result<(), Error> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let mut tree = tree::Tree::new(blob, folder);
    toc.for_each::<Error>(limits, data_end, &mut |entry| tree.add(&entry))?;
    tree.finish()?;
    let source = write::Source {
        toc: *toc.digest(),
        blob,
        data_end,
    };
    write::write(tree, source, path)
}

#[cfg(test)]
mod tests;
