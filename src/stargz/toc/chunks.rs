//! The chunks of one file, gathered and checked: together they cover it exactly.
//!
//! In the TOC a file is a `reg` entry, which is also its first chunk, and then its other chunks as
//! `chunk` entries. A `chunkSize` of zero means "up to the end of the file".

use crate::oci::Digest;
use crate::stargz::EntryError;
use crate::stargz::toc::Chunk;
use crate::stargz::toc::json::RawEntry;
use crate::stargz::toc::walk::Rules;

/// Gathers chunks; used again for each file.
#[derive(Default)]
pub(super) struct Gather {
    chunks: Vec<Chunk>,
    /// Size of the file.
    size: u64,
    /// Where the next chunk has to start.
    next: u64,
}

impl Gather {
    /// Starts a file with its `reg` entry.
    pub(super) fn start(
        &mut self,
        reg: &RawEntry<'_>,
        rules: &Rules<'_>,
    ) -> Result<(), EntryError> {
        self.chunks.clear();
        self.next = 0;
        self.size = reg.size;
        if reg.size > 0 {
            return self.add(reg, rules);
        }
        // An empty file has no chunk, whatever offset it has.
        if reg.chunk_size > 0 || reg.chunk_offset > 0 {
            return Err(self.beyond(reg));
        }
        Ok(())
    }

    /// Adds the chunk in a `reg` or `chunk` entry.
    pub(super) fn add(&mut self, raw: &RawEntry<'_>, rules: &Rules<'_>) -> Result<(), EntryError> {
        if raw.chunk_offset != self.next {
            return Err(EntryError::ChunkOffset {
                expected: self.next,
                found: raw.chunk_offset,
            });
        }
        let left = self.size - self.next;
        if left == 0 || raw.chunk_size > left {
            return Err(self.beyond(raw));
        }
        let size = if raw.chunk_size == 0 {
            left
        } else {
            raw.chunk_size
        };
        let short = u32::try_from(size)
            .ok()
            .filter(|size| *size <= rules.limits.chunk);
        let short = short.ok_or(EntryError::ChunkLarge {
            size,
            limit: rules.limits.chunk,
        })?;
        self.place(raw, size, rules)?;
        self.chunks.push(Chunk {
            offset: raw.offset,
            inner: raw.inner_offset,
            at: self.next,
            size: short,
            digest: digest(&raw.chunk_digest)?,
            unread: raw.unread,
        });
        self.next += size;
        Ok(())
    }

    /// Ends the file: its size and all its chunks. `whole` is the digest of the whole file, which
    /// is as good as a chunk's own if the file is one chunk.
    pub(super) fn finish(
        &mut self,
        whole: &str,
        rules: &Rules<'_>,
    ) -> Result<(u64, &[Chunk]), EntryError> {
        if self.next != self.size {
            return Err(EntryError::ChunksShort {
                found: self.next,
                size: self.size,
            });
        }
        if let [only] = self.chunks.as_mut_slice()
            && only.digest.is_none()
        {
            only.digest = digest(whole)?;
        }
        let bare = self.chunks.iter().find(|chunk| chunk.digest.is_none());
        if let Some(bare) = bare
            && rules.digests
        {
            return Err(EntryError::DigestMissing { at: bare.at });
        }
        Ok((self.size, &self.chunks))
    }

    /// Whether the chunk's place in the blob and in its member is one.
    fn place(&self, raw: &RawEntry<'_>, size: u64, rules: &Rules<'_>) -> Result<(), EntryError> {
        if raw.offset >= rules.data_end {
            return Err(EntryError::Offset {
                offset: raw.offset,
                end: rules.data_end,
            });
        }
        let limit = rules.limits.member;
        let end = raw.inner_offset.saturating_add(size);
        if end > limit {
            return Err(EntryError::InnerOffset { end, limit });
        }
        Ok(())
    }

    fn beyond(&self, raw: &RawEntry<'_>) -> EntryError {
        EntryError::ChunkBeyond {
            at: raw.chunk_offset,
            size: raw.chunk_size,
            file: self.size,
        }
    }
}

fn digest(text: &str) -> Result<Option<Digest>, EntryError> {
    if text.is_empty() {
        return Ok(None);
    }
    Ok(Some(text.parse()?))
}
