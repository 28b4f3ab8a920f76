//! The seam below the file system: chunks of one layer, from the cache or from afar.

use std::ops::Range;

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::blob::cache::WholeFile;
use crate::blob::map::ChunkId;
use crate::oci::Digest;
use crate::registry;

/// Why a chunk could not be read. Every one is an `EIO` to the reader; the next read tries again.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The caller asked for a chunk, or a part of one, that the layer does not have.
    #[error("chunk {chunk:?} of the layer has no {len} bytes at {at}")]
    OutOfRange {
        /// The chunk asked for.
        chunk: ChunkId,
        /// Where in it, in bytes.
        at: u32,
        /// How many bytes.
        len: usize,
    },
    /// The registry could not be read.
    #[error("fetching from blob {blob}: {source}")]
    Source {
        /// The blob that was read.
        blob: Digest,
        /// What the registry said.
        source: registry::Error,
    },
    /// What came from the registry is not the promised content, also after fetching it again.
    #[error("blob {blob} at {offset}: {what}, {attempts} times in a row")]
    Corrupt {
        /// The blob that was read.
        blob: Digest,
        /// Where the member with the wrong content starts, in bytes.
        offset: u64,
        /// What is wrong with it.
        what: String,
        /// How often it was fetched.
        attempts: u32,
    },
    /// The layer was removed while the read waited.
    #[error("layer {blob} was closed")]
    Closed {
        /// The layer's blob.
        blob: Digest,
    },
}

/// Numbers for `statfs` and `Usage`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// Size of the disk that holds the cache, in bytes.
    pub disk_total: u64,
    /// Free bytes of that disk.
    pub disk_free: u64,
    /// Bytes of that disk that an unprivileged process may use.
    pub disk_available: u64,
    /// Bytes of this layer's content that the cache holds. What several layers share is counted
    /// for each of them; may be some seconds old.
    pub layer: u64,
}

/// One layer's content, as the file system reads it.
pub trait ReadAt: Send + Sync {
    /// Copies `out.len()` bytes from offset `at` of the chunk if it is held here, checked against
    /// its checksums. `Ok(false)` is a miss: `out` holds nothing of use. Never waits for the
    /// network and allocates nothing on a hit, so a FUSE thread may call it.
    ///
    /// # Errors
    /// [`ReadError::OutOfRange`]. Damage in the cache is a miss, not an error.
    fn try_read(&self, chunk: ChunkId, at: u32, out: &mut [u8]) -> Result<bool, ReadError>;

    /// The same for nobody who asked: it does not count as read, but is what a reader in order needs next.
    ///
    /// # Errors
    /// As [`ReadAt::try_read`].
    fn peek(&self, chunk: ChunkId, at: u32, out: &mut [u8]) -> Result<bool, ReadError> {
        self.try_read(chunk, at, out)
    }

    /// Says that these chunks were read, from what [`ReadAt::peek`] gave.
    fn was_read(&self, chunks: Range<u32>) {
        let _ = chunks;
    }

    /// Brings the chunk and yields all of its verified bytes. The request is made when this is
    /// called, not when the future is first polled, so that several calls in a row become one
    /// range; dropping the future gives up waiting. `file` is the range of all chunks of the file
    /// that is read, for read-ahead.
    fn fetch(
        &self,
        chunk: ChunkId,
        file: Range<u32>,
    ) -> BoxFuture<'static, Result<Bytes, ReadError>>;

    /// Says that one read needs all of `chunks` of `file`, before they are fetched one by one:
    /// those that are not held are asked for together. Waits for nothing. Without it the chunks of
    /// one read may become several requests, and look like those of a sequential reader.
    fn will_read(&self, chunks: Range<u32>, file: Range<u32>);

    /// The file with these chunks as a file of the host, complete and verified, for the kernel to
    /// read by itself; it stays there as long as the result lives. Waits for nothing.
    fn whole_file(&self, file: &Range<u32>) -> Option<WholeFile> {
        let _ = file;
        None
    }

    /// Numbers for `statfs`: one system call on the cache's disk.
    fn space(&self) -> Space;
}
