//! Reading content block by block, each compared with its checksum.
//!
//! Content and checksums may lie in one file (a pack) or in two (a whole file, see
//! [`super::whole`]); either way a block is never handed out unchecked.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::blob::cache::record::{BLOCK, Key};

/// Blocks whose checksums are read together: 1 MiB of content.
pub(super) const GROUP: usize = 64;

/// Why a content cannot be served. Either way it is dropped and fetched again.
#[derive(Debug, thiserror::Error)]
pub(super) enum Damage {
    #[error("reading: {0}")]
    Io(#[from] io::Error),
    #[error("the record's header is damaged or another's")]
    Header,
    #[error("checksum of block {0} is wrong")]
    Block(u32),
}

/// Where a content and its checksums lie.
pub(super) struct Blocks<'a> {
    /// What names the content, and seeds its checksums.
    pub key: &'a Key,
    /// Holds the content.
    pub content: &'a File,
    /// Its first byte.
    pub start: u64,
    /// Holds the checksums, four bytes for each block.
    pub sums: &'a File,
    /// The first of them.
    pub table: u64,
}

/// Checksums of up to [`GROUP`] blocks.
pub(super) type Sums = [u8; 4 * GROUP];

impl Blocks<'_> {
    /// Copies `out.len()` bytes from `at`, which the caller has checked to lie within the content.
    /// `sums` holds the checksums of the first group if they were read before.
    pub(super) fn read(&self, at: u32, out: &mut [u8], sums: Option<&Sums>) -> Result<(), Damage> {
        let mut table = sums.copied().unwrap_or([0; 4 * GROUP]);
        let mut loaded = sums.map(|_| 0);
        let blocks = self.key.blocks() as usize;
        let (mut from, mut rest) = (at as usize, out);
        while !rest.is_empty() {
            let group = from / (GROUP * BLOCK as usize);
            if loaded != Some(group) {
                let len = 4 * (blocks - GROUP * group).min(GROUP);
                let at = self.table + (4 * GROUP * group) as u64;
                self.sums.read_exact_at(&mut table[..len], at)?;
                loaded = Some(group);
            }
            let group_end = (group + 1) * GROUP * BLOCK as usize;
            let (now, later) = rest.split_at_mut(rest.len().min(group_end - from));
            self.read_group(group * GROUP, &table, from, now)?;
            from += now.len();
            rest = later;
        }
        Ok(())
    }

    /// Fills `out` from `from` of the content, within the group that begins with block `first`:
    /// whole blocks straight, the ends through a block of stack.
    fn read_group(
        &self,
        first: usize,
        table: &Sums,
        mut from: usize,
        mut out: &mut [u8],
    ) -> Result<(), Damage> {
        let (block, size) = (BLOCK as usize, self.key.size() as usize);
        while !out.is_empty() {
            let (number, stop) = (from / block, from + out.len());
            let start = number * block;
            // The last block of the content counts as whole, short as it may be.
            let full = if stop == size {
                stop
            } else {
                stop - stop % block
            };
            let taken = if from == start && full > from {
                let now = &mut out[..full - from];
                self.fill(from, now)?;
                for (number, bytes) in (number..).zip(now.chunks(block)) {
                    self.check(first, table, number, bytes)?;
                }
                now.len()
            } else {
                let mut scratch = [0; BLOCK as usize];
                let scratch = &mut scratch[..size.min(start + block) - start];
                self.fill(start, scratch)?;
                self.check(first, table, number, scratch)?;
                let wanted = &scratch[from - start..];
                let len = out.len().min(wanted.len());
                out[..len].copy_from_slice(&wanted[..len]);
                len
            };
            from += taken;
            out = &mut out[taken..];
        }
        Ok(())
    }

    fn fill(&self, at: usize, out: &mut [u8]) -> Result<(), Damage> {
        Ok(self.content.read_exact_at(out, self.start + at as u64)?)
    }

    fn check(&self, first: usize, table: &Sums, number: usize, bytes: &[u8]) -> Result<(), Damage> {
        let block = u32::try_from(number).map_err(|_| Damage::Header)?;
        let at = 4 * (number - first);
        let stored = table.get(at..at + 4).ok_or(Damage::Block(block))?;
        if stored == self.key.checksum(block, bytes).to_le_bytes() {
            Ok(())
        } else {
            Err(Damage::Block(block))
        }
    }
}
