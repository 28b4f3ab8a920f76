//! The bytes that open the checksums of a whole file: what it is, and its seal. Pure functions.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;

use crate::blob::cache::record::{number, wide};
use crate::oci::Digest;

/// Length of the header of a file of checksums.
pub(super) const SUMS_HEADER: usize = 64;
/// Length of the seal that follows it.
pub(super) const SEAL: usize = 64;

const MAGIC: [u8; 8] = *b"CRFSsum1";
const SEAL_MAGIC: [u8; 8] = *b"CRFSseal";

/// What a whole file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SumsHeader {
    /// Its number.
    pub id: u32,
    /// How many chunks it has.
    pub chunks: u32,
    /// Its size in bytes.
    pub size: u64,
    /// The digest of its list of chunks.
    pub name: Digest,
}

impl SumsHeader {
    /// Its bytes.
    pub(super) fn write(&self) -> [u8; SUMS_HEADER] {
        let mut out = [0; SUMS_HEADER];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&self.id.to_le_bytes());
        out[12..16].copy_from_slice(&self.chunks.to_le_bytes());
        out[16..24].copy_from_slice(&self.size.to_le_bytes());
        out[24..56].copy_from_slice(self.name.as_bytes());
        let crc = crc32fast::hash(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Its meaning, if these are the first bytes of the checksums of whole file `id`.
    pub(super) fn read(id: u32, bytes: &[u8; SUMS_HEADER + SEAL]) -> Option<Self> {
        let mut name = [0; 32];
        name.copy_from_slice(&bytes[24..56]);
        let header = Self {
            id: number(bytes, 8),
            chunks: number(bytes, 12),
            size: wide(bytes, 16),
            name: Digest::from_bytes(name),
        };
        let right = bytes[..8] == MAGIC
            && number(bytes, 60) == crc32fast::hash(&bytes[..60])
            && header.id == id;
        right.then_some(header)
    }
}

/// That all of a file was verified, and how to see that nobody has touched it since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seal {
    /// The boot it was made in: nothing is synced, so a power loss voids it.
    pub boot: [u8; 16],
    inode: u64,
    size: u64,
    /// Nanoseconds of the last change of content, and of anything.
    mtime: i64,
    ctime: i64,
}

impl Seal {
    /// The seal of a file as it is now.
    pub(super) fn of(meta: &Metadata, boot: [u8; 16]) -> Self {
        let nanos = |seconds: i64, nanos: i64| seconds.wrapping_mul(1_000_000_000) + nanos;
        Self {
            boot,
            inode: meta.ino(),
            size: meta.size(),
            mtime: nanos(meta.mtime(), meta.mtime_nsec()),
            ctime: nanos(meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Its bytes.
    pub(super) fn write(&self) -> [u8; SEAL] {
        let mut out = [0; SEAL];
        out[..8].copy_from_slice(&SEAL_MAGIC);
        out[8..24].copy_from_slice(&self.boot);
        for (at, value) in [(24, self.inode), (32, self.size)] {
            out[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        for (at, value) in [(40, self.mtime), (48, self.ctime)] {
            out[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let crc = crc32fast::hash(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The seal behind the header of a file of checksums, if there is one.
    pub(super) fn read(bytes: &[u8; SUMS_HEADER + SEAL]) -> Option<Self> {
        let mut out = [0; SEAL];
        out.copy_from_slice(&bytes[SUMS_HEADER..]);
        let right = out[..8] == SEAL_MAGIC && number(&out, 60) == crc32fast::hash(&out[..60]);
        let mut boot = [0; 16];
        boot.copy_from_slice(&out[8..24]);
        right.then(|| Self {
            boot,
            inode: wide(&out, 24),
            size: wide(&out, 32),
            mtime: wide(&out, 40).cast_signed(),
            ctime: wide(&out, 48).cast_signed(),
        })
    }
}

/// This boot of the machine, if the kernel says which it is.
pub(super) fn boot() -> Option<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&digits, 16)
        .ok()
        .map(u128::to_be_bytes)
}
