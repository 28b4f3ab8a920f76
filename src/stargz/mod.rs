//! The image-layer formats as pure functions over bytes: footer, TOC, chunks, verification, writing.
//!
//! A lazily readable layer is a gzip blob of many members, still an ordinary `tar.gz` to everyone
//! else (stargz-snapshotter `docs/estargz.md`, google/crfs `stargz/stargz.go`):
//!
//! ```text
//!   0                                  toc_offset                 blob size
//!   | member | member | ... | member |  TOC member   |  footer   |
//!     tar headers and file contents     gzip(tar(      empty gzip member whose extra
//!                                       stargz.        field holds toc_offset
//!                                       index.json))
//! ```
//!
//! How a layer is opened: [`Footer::parse`] finds the TOC, [`Toc::unpack`] inflates it and compares
//! it with the digest the manifest promised, [`Toc::for_each`] hands out the layer's objects. How a chunk is read: [`MemberInflater`] (or [`inflate_member`]) inflates
//! the gzip member it lies in, [`verify_chunk`] compares it with the TOC's digest.
//!
//! Nothing here does I/O but to read what it is given, and nothing a blob claims is believed: every function is total over its
//! input, ends in bounded time and memory ([`Limits`]), and answers bad input with a typed
//! [`Error`].

mod error;
mod footer;
mod member;
mod toc;
pub mod write;

use crate::oci::Digest;

pub use error::{EntryError, Error};
pub use footer::{Footer, Format};
pub use member::{MemberInflater, Status, inflate_member};
#[cfg(test)]
use toc::inflate_toc;
pub use toc::{Chunk, Entry, EntryKind, Mtime, Reread, Toc};

/// Name of the tar entry that holds the TOC's JSON (stargz-snapshotter `docs/estargz.md`).
pub const TOC_NAME: &str = "stargz.index.json";

/// Name of the file, in the root of the layer, that ends the area worth prefetching.
pub const PREFETCH_LANDMARK: &[u8] = b".prefetch.landmark";

/// Name of the file, in the root of the layer, that says that nothing is worth prefetching.
pub const NO_PREFETCH_LANDMARK: &[u8] = b".no.prefetch.landmark";

/// Key of a TOC entry (a `reg` or a `chunk`), ours: this chunk lies before the prefetch landmark only
/// because others of its file are read at a start. Readers that do not know it fetch it as well.
pub const UNREAD: &str = "unread";

/// Both landmarks. They are ordinary entries of the TOC; a file system hides them in its root, and
/// only there.
pub const LANDMARKS: [&[u8]; 2] = [PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK];

/// What a TOC may at most claim; anything above is refused with a typed error.
///
/// The kernel's own limits are not adjustable and stand in the parsers: 255 bytes for a component
/// and for the name of an extended attribute, 4095 for a path and for the target of a symlink,
/// 64 KiB for the value of an extended attribute and for the list of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Size of the TOC's JSON, uncompressed, in bytes. It costs time, not memory.
    pub toc_json: u64,
    /// Entries in the TOC, chunks included.
    pub entries: u32,
    /// Size of one chunk, uncompressed, in bytes.
    pub chunk: u32,
    /// How far into one inflated gzip member a chunk may reach, in bytes.
    pub member: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            toc_json: 1 << 30,
            entries: 2_000_000,
            chunk: 64 << 20,
            member: 256 << 20,
        }
    }
}

/// Checks the content of one chunk against the digest that the TOC names for it.
///
/// # Errors
/// [`Error::ChunkDigest`]: these are other bytes, and nobody may see them.
pub fn verify_chunk(content: &[u8], expected: &Digest) -> Result<(), Error> {
    let found = Digest::of(content);
    if found == *expected {
        return Ok(());
    }
    Err(Error::ChunkDigest {
        expected: *expected,
        found,
        len: content.len(),
    })
}

#[cfg(test)]
mod tests;
