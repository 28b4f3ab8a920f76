//! A layer's content in memory: the fake of [`ReadAt`] for tests of what is built on it.

use std::collections::HashSet;
use std::ops::Range;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::blob::map::ChunkId;
use crate::blob::read::{ReadAt, ReadError, Space};

/// Chunks held in a `Vec`, each a miss until it was fetched once.
#[derive(Debug, Default)]
pub struct InMemory {
    chunks: Vec<Bytes>,
    here: Mutex<HashSet<ChunkId>>,
    broken: Mutex<Option<ReadError>>,
}

impl InMemory {
    /// A layer of these chunks, none of them fetched yet.
    #[must_use]
    pub fn new(chunks: Vec<Bytes>) -> Self {
        Self {
            chunks,
            ..Self::default()
        }
    }

    /// Makes every fetch from now on fail with `error`, or work again.
    pub fn fail_with(&self, error: Option<ReadError>) {
        *self.broken.lock() = error;
    }

    /// How many chunks have been fetched.
    #[must_use]
    pub fn fetched(&self) -> usize {
        self.here.lock().len()
    }

    fn get(&self, chunk: ChunkId, at: u32, len: usize) -> Result<Bytes, ReadError> {
        let start = at as usize;
        self.chunks
            .get(chunk.0 as usize)
            .filter(|bytes| bytes.len() >= start.saturating_add(len))
            .map(|bytes| bytes.slice(start..start + len))
            .ok_or(ReadError::OutOfRange { chunk, at, len })
    }
}

impl ReadAt for InMemory {
    fn try_read(&self, chunk: ChunkId, at: u32, out: &mut [u8]) -> Result<bool, ReadError> {
        let bytes = self.get(chunk, at, out.len())?;
        let hit = self.here.lock().contains(&chunk);
        if hit {
            out.copy_from_slice(&bytes);
        }
        Ok(hit)
    }

    fn fetch(&self, chunk: ChunkId, _: Range<u32>) -> BoxFuture<'static, Result<Bytes, ReadError>> {
        let result = match (
            self.broken.lock().clone(),
            self.chunks.get(chunk.0 as usize),
        ) {
            (Some(error), _) => Err(error),
            (None, None) => Err(ReadError::OutOfRange {
                chunk,
                at: 0,
                len: 1,
            }),
            (None, Some(bytes)) => {
                self.here.lock().insert(chunk);
                Ok(bytes.clone())
            }
        };
        async move {
            // A real fetch is never ready at once.
            tokio::task::yield_now().await;
            result
        }
        .boxed()
    }

    fn will_read(&self, _: Range<u32>, _: Range<u32>) {}

    fn space(&self) -> Space {
        let layer = self.chunks.iter().map(|chunk| chunk.len() as u64).sum();
        Space {
            disk_total: 1 << 40,
            disk_free: 1 << 39,
            disk_available: 1 << 38,
            layer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_chunk_is_a_miss_until_it_was_fetched() {
        let layer = InMemory::new(vec![Bytes::from_static(b"content")]);
        let mut out = [0; 3];
        assert!(!layer.try_read(ChunkId(0), 4, &mut out).unwrap());
        assert_eq!(layer.fetch(ChunkId(0), 0..1).await.unwrap(), "content");
        assert!(layer.try_read(ChunkId(0), 4, &mut out).unwrap());
        assert_eq!(&out, b"ent");
        assert!(layer.try_read(ChunkId(0), 5, &mut out).is_err());
        assert!(layer.fetch(ChunkId(1), 0..1).await.is_err());
    }
}
