//! Which gzip members a layer's chunks lie in.

use std::io;

use crate::fs::index::format::{MemberRecord, SIZE};
use crate::fs::index::spill::Chunks;

/// The members of a layer, and which chunks each of them holds.
pub struct Members {
    /// One record for each distinct offset, in ascending order.
    pub records: Vec<MemberRecord>,
    /// The member of each chunk.
    pub of_chunk: Vec<u32>,
    /// Numbers of chunks, those of one member together, in ascending order.
    pub chunks: Vec<u32>,
}

impl Members {
    /// Sorts chunks by the member they lie in.
    ///
    /// # Errors
    /// The disk's that holds the chunks.
    pub fn new(chunks: &mut Chunks) -> io::Result<Self> {
        let mut offsets: Vec<u64> = Vec::new();
        chunks.for_each(&mut |chunk| {
            // Neighbours mostly lie in one member: no room for each of them.
            if offsets.last() != Some(&chunk.offset) {
                offsets.push(chunk.offset);
            }
            Ok(())
        })?;
        // A TOC is mostly written in the order of the blob, for which this costs one pass.
        offsets.sort();
        offsets.dedup();
        let mut records: Vec<MemberRecord> = offsets
            .iter()
            .map(|&offset| MemberRecord {
                offset,
                inflated: 0,
                first: 0,
            })
            .collect();
        let mut of_chunk = Vec::with_capacity(chunks.len());
        let mut hint = 0;
        chunks.for_each(&mut |chunk| {
            hint = find(&offsets, chunk.offset, hint);
            of_chunk.push(u32::try_from(hint).unwrap_or(u32::MAX));
            if let Some(record) = records.get_mut(hint) {
                let size = chunk.size & SIZE;
                let end = u64::from(chunk.inner) + u64::from(size);
                record.inflated = record.inflated.max(end);
                // Counts first; the loop below turns counts into starts.
                record.first += 1;
            }
            Ok(())
        })?;
        let mut sum = 0;
        for record in &mut records {
            let count = record.first;
            record.first = sum;
            sum += count;
        }
        let chunks = group(&records, &of_chunk);
        Ok(Self {
            records,
            of_chunk,
            chunks,
        })
    }
}

/// Position of `offset`, looked for where the last one was, right after it, and then everywhere.
fn find(offsets: &[u64], offset: u64, hint: usize) -> usize {
    [hint, hint + 1]
        .into_iter()
        .find(|at| offsets.get(*at) == Some(&offset))
        .unwrap_or_else(|| offsets.partition_point(|known| *known < offset))
}

fn group(records: &[MemberRecord], of_chunk: &[u32]) -> Vec<u32> {
    let mut next: Vec<u32> = records.iter().map(|record| record.first).collect();
    let mut grouped = vec![0; of_chunk.len()];
    for (number, member) in (0..).zip(of_chunk) {
        let Some(at) = next.get_mut(*member as usize) else {
            continue;
        };
        if let Some(place) = grouped.get_mut(*at as usize) {
            *place = number;
        }
        *at += 1;
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::index::format::{UNREAD, UNVERIFIED};
    use crate::fs::index::tree::ChunkAt;
    use crate::oci::Digest;

    fn members(all: &[ChunkAt]) -> Members {
        let folder = tempfile::tempdir().unwrap();
        let mut chunks = Chunks::new(folder.path());
        all.iter().for_each(|chunk| chunks.push(chunk));
        Members::new(&mut chunks).unwrap()
    }

    #[test]
    fn chunks_are_grouped_by_distinct_offset_whatever_their_order() {
        let chunk = |offset, inner, size| ChunkAt {
            digest: Digest::of(b""),
            at: 0,
            offset,
            size,
            inner,
        };
        let members = members(&[
            chunk(100, 0, 10),
            chunk(100, 10, 5 | UNVERIFIED),
            chunk(900, 0, 7 | UNREAD),
            chunk(50, 3, 4),
            chunk(100, 2, 1),
        ]);
        let records: Vec<_> = members
            .records
            .iter()
            .map(|r| (r.offset, r.inflated, r.first))
            .collect();
        assert_eq!(records, [(50, 7, 0), (100, 15, 1), (900, 7, 4)]);
        assert_eq!(members.of_chunk, [1, 1, 2, 0, 1]);
        assert_eq!(members.chunks, [3, 0, 1, 4, 2]);
        assert!(super::tests::members(&[]).records.is_empty());
    }
}
