//! The seam above the registry: one remote blob, read by byte ranges.

use std::ops::Range;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::oci::Digest;
use crate::registry::Error;

/// The bytes of one answered range, in order, as they arrive.
pub type ByteStream = BoxStream<'static, Result<Bytes, Error>>;

/// One remote blob, read by byte ranges. Nothing it yields has been verified.
pub trait RangeSource: Send + Sync {
    /// Digest of the whole blob, by which logs and errors name it.
    fn digest(&self) -> Digest;

    /// Size of the whole blob in bytes, from the descriptor in the verified manifest.
    fn size(&self) -> u64;

    /// Asks for `range`, which lies within the blob and is not empty.
    ///
    /// The stream yields exactly `range.end - range.start` bytes or ends with an error: a short
    /// answer, a longer one or another range is never passed on as if it were right. Retries,
    /// renewal of credentials and mirrors happen below; dropping the future or the stream gives
    /// the request up.
    ///
    /// # Errors
    /// The registry cannot be reached, refuses, or answers with something else.
    fn range(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>>;

    /// What was read of `range` is not what it should have been: where there is another place to
    /// read it from, that is asked from now on.
    fn was_wrong(&self, _range: Range<u64>) {}
}
