//! Open passthrough files: what a successor must know to open an inode again that is still open.
//!
//! All opens of an inode that overlap must have one backing id, else the kernel fails them with EIO;
//! the id is the kernel's and cannot be derived. A record per open file, 64 bytes:
//!
//! ```text
//!  0 u32 phase (0 free, 1 open)   4 u32 slot of the mount    8 u64 inode   16 u64 unique of the OPEN
//! 24 u32 backing id              28 u32 mode                32 u32 generation
//! ```
//!
//! The kernel's file handle is the record's slot and generation, so a RELEASE that is sent again hits
//! nothing, and an OPEN that is sent again is found by its `unique`.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;

use super::{Error, OPENS_AT, long, read, word, write, write_phase};

const RECORD: usize = 64;

/// The kernel sets this bit of `unique` in a request that it sends again (`FUSE_UNIQUE_RESEND`).
const RESENT: u64 = 1 << 63;

/// An open, as asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    /// The inode.
    pub ino: u64,
    /// `unique` of the OPEN request.
    pub unique: u64,
    /// The backing id it is to be answered with; 0: none, by READ.
    pub backing: u32,
    /// What of the flags must be the same for all opens of the inode; the caller's own encoding.
    pub mode: u32,
}

/// A recorded open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFile {
    /// What the kernel knows it by.
    pub handle: u64,
    /// What was asked for.
    pub open: Open,
}

/// The outcome of recording an open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// A new record.
    New(OpenFile),
    /// The same request was recorded before: answer with this, its backing id included.
    Again(OpenFile),
}

/// The table's index.
#[derive(Debug, Default)]
pub(super) struct Opens {
    files: BTreeMap<u32, (u32, OpenFile)>,
    /// Free slots with their last generation.
    free: Vec<(u32, u32)>,
    end: u32,
    by_request: BTreeMap<(u32, u64), u32>,
    by_mount: BTreeSet<(u32, u32)>,
}

impl Opens {
    pub(super) fn read(fd: BorrowedFd<'_>, length: u64) -> Result<Self, Error> {
        let mut opens = Self::default();
        let count = length.saturating_sub(OPENS_AT).div_ceil(RECORD as u64);
        for slot in 0..u32::try_from(count).map_err(|_| Error::State("it is too long"))? {
            let mut record = [0; RECORD];
            read(fd, &mut record, place(slot))?;
            let generation = word(&record, 32);
            if word(&record, 0) == 0 {
                opens.free.push((slot, generation));
                continue;
            }
            let open = Open {
                ino: long(&record, 8),
                unique: long(&record, 16),
                backing: word(&record, 24),
                mode: word(&record, 28),
            };
            opens.index(
                slot,
                word(&record, 4),
                OpenFile {
                    handle: handle(slot, generation),
                    open,
                },
            );
        }
        opens.end = u32::try_from(count).map_err(|_| Error::State("it is too long"))?;
        Ok(opens)
    }

    pub(super) fn insert(
        &mut self,
        fd: BorrowedFd<'_>,
        mount: u32,
        mut open: Open,
    ) -> Result<Opened, Error> {
        let resent = open.unique & RESENT != 0;
        open.unique &= !RESENT;
        let first = self
            .by_request
            .get(&(mount, open.unique))
            .and_then(|slot| self.files.get(slot));
        if let (true, Some((_, file))) = (resent, first) {
            return Ok(Opened::Again(*file));
        }
        let (slot, generation) = self.free.pop().unwrap_or((self.end, 0));
        let generation = generation.wrapping_add(1);
        let mut record = [0; RECORD];
        let fields: [(usize, &[u8]); 6] = [
            (4, &mount.to_ne_bytes()),
            (8, &open.ino.to_ne_bytes()),
            (16, &open.unique.to_ne_bytes()),
            (24, &open.backing.to_ne_bytes()),
            (28, &open.mode.to_ne_bytes()),
            (32, &generation.to_ne_bytes()),
        ];
        for (at, bytes) in fields {
            if let Some(place) = record.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        }
        write(fd, &record, place(slot))?;
        write_phase(fd, place(slot), 1)?;
        self.end = self.end.max(slot + 1);
        let file = OpenFile {
            handle: handle(slot, generation),
            open,
        };
        self.index(slot, mount, file);
        Ok(Opened::New(file))
    }

    pub(super) fn remove(
        &mut self,
        fd: BorrowedFd<'_>,
        handle: u64,
    ) -> Result<Option<OpenFile>, Error> {
        let slot = (handle & u64::from(u32::MAX)) as u32;
        let Some((mount, file)) = self.files.get(&slot).copied() else {
            return Ok(None);
        };
        if file.handle != handle {
            return Ok(None);
        }
        write_phase(fd, place(slot), 0)?;
        self.files.remove(&slot);
        self.by_mount.remove(&(mount, slot));
        self.by_request.remove(&(mount, file.open.unique));
        self.free.push((slot, (handle >> 32) as u32));
        Ok(Some(file))
    }

    pub(super) fn of_mount(&self, mount: u32) -> Vec<OpenFile> {
        let slots = self.by_mount.range((mount, 0)..=(mount, u32::MAX));
        slots
            .filter_map(|(_, slot)| self.files.get(slot))
            .map(|(_, file)| *file)
            .collect()
    }

    fn index(&mut self, slot: u32, mount: u32, file: OpenFile) {
        self.by_request.insert((mount, file.open.unique), slot);
        self.by_mount.insert((mount, slot));
        self.files.insert(slot, (mount, file));
    }
}

fn place(slot: u32) -> u64 {
    OPENS_AT + u64::from(slot) * RECORD as u64
}

fn handle(slot: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(slot)
}
