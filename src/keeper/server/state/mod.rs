//! What a successor cannot derive, in a memfd that travels with the descriptors: the `FUSE_INIT`
//! exchange of each mount, and the table of open passthrough files.
//!
//! Layout, all numbers in this machine's byte order (the file never leaves it):
//!
//! ```text
//! 0          "crfsSTA1"   8 u32 how many slots of mounts were ever used
//! 4096       mounts, 512 bytes each:
//!              0 u32 phase (0 free, 1 answering, 2 answered)   4 u16 name length
//!              6 u16 request length   8 u16 reply length
//!             16 name (256)   272 request (112)   384 reply (128)
//! 256 MiB    open files, 64 bytes each, see `opens`
//! ```
//!
//! The file is sparse: holes cost nothing, so both tables grow without moving.
//!
//! Locking: one lock over the tables' index; one process writes.
//!
//! Crash behaviour: memory of a memfd is whole after a process died, only the order of writes counts.
//! A record's body is written while its phase says free, its phase last, in one aligned word.

mod opens;

pub use opens::{Open, OpenFile, Opened};

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::MemfdFlags;

use self::opens::Opens;
use crate::keeper::Error;
use crate::keeper::protocol::FdName;

const MAGIC: &[u8; 8] = b"crfsSTA1";
const END_AT: u64 = 8;
const MOUNTS_AT: u64 = 4096;
const MOUNT: usize = 512;
const OPENS_AT: u64 = 256 * 1024 * 1024;
/// Mounts that fit before the open files.
const SLOTS: u32 = 500_000;
// Field and room of each part of a mount's record.
const NAME: (usize, usize) = (16, 256);
const REQUEST: (usize, usize) = (272, 112);
const REPLY: (usize, usize) = (384, 128);

/// How far a mount's handshake has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Phase {
    /// The reply is known, the kernel may not have it yet.
    Answering = 1,
    /// The kernel has the reply.
    Answered = 2,
}

/// The recorded handshake of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// How far it has come.
    pub phase: Phase,
    /// `FUSE_INIT` as the kernel sent it; at most 112 bytes.
    pub request: Vec<u8>,
    /// The reply; at most 128 bytes.
    pub reply: Vec<u8>,
}

/// The memfd and an index of it.
#[derive(Debug)]
pub struct State {
    fd: Arc<OwnedFd>,
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    mounts: BTreeMap<FdName, (u32, Mount)>,
    free: Vec<u32>,
    end: u32,
    opens: Opens,
}

impl State {
    /// A new, empty table.
    pub fn create() -> Result<OwnedFd, Error> {
        let fd = rustix::fs::memfd_create("crfs-state", MemfdFlags::CLOEXEC)
            .map_err(Error::io("make a memfd"))?;
        write(fd.as_fd(), MAGIC, 0)?;
        Ok(fd)
    }

    /// Reads a table, which may come from a predecessor.
    pub fn open(fd: Arc<OwnedFd>) -> Result<Self, Error> {
        let fail = Error::io("read the kept table of mounts");
        let length = rustix::fs::fstat(&fd).map_err(&fail)?.st_size;
        let length = u64::try_from(length).map_err(|_| Error::State("it has no length"))?;
        let mut magic = [0; 8];
        read(fd.as_fd(), &mut magic, 0)?;
        if &magic != MAGIC {
            return Err(Error::State("it was written by another version"));
        }
        let mut tables = Tables::default();
        let mut end = [0; 4];
        read(fd.as_fd(), &mut end, END_AT)?;
        tables.end = u32::from_ne_bytes(end);
        if tables.end > SLOTS {
            return Err(Error::State("it says that it has more mounts than fit"));
        }
        for slot in 0..tables.end {
            let mut record = [0; MOUNT];
            read(fd.as_fd(), &mut record, mount_at(slot))?;
            match parse(&record)? {
                Some((name, mount)) => drop(tables.mounts.insert(name, (slot, mount))),
                None => tables.free.push(slot),
            }
        }
        tables.opens = Opens::read(fd.as_fd(), length)?;
        Ok(Self {
            fd,
            tables: Mutex::new(tables),
        })
    }

    /// The handshake of that mount, if one was recorded.
    pub fn mount(&self, name: &FdName) -> Option<Mount> {
        self.tables
            .lock()
            .mounts
            .get(name)
            .map(|(_, mount)| mount.clone())
    }

    /// Names of all recorded mounts.
    pub fn names(&self) -> Vec<FdName> {
        self.tables.lock().mounts.keys().cloned().collect()
    }

    /// Records a mount's handshake. Safe from this process's death when it returns.
    pub fn record(&self, name: &FdName, mount: Mount) -> Result<(), Error> {
        let mut tables = self.tables.lock();
        if let Some((slot, own)) = tables.mounts.get_mut(name)
            && (&own.request, &own.reply) == (&mount.request, &mount.reply)
        {
            own.phase = mount.phase;
            return write_phase(self.fd.as_fd(), mount_at(*slot), mount.phase as u32);
        }
        if let Some((slot, _)) = tables.mounts.remove(name) {
            tables.release(self.fd.as_fd(), slot)?;
        }
        let record = encode(name, &mount)?;
        let slot = match tables.free.pop() {
            Some(slot) => slot,
            None => tables.append(self.fd.as_fd())?,
        };
        write(self.fd.as_fd(), &record, mount_at(slot))?;
        write_phase(self.fd.as_fd(), mount_at(slot), mount.phase as u32)?;
        tables.mounts.insert(name.clone(), (slot, mount));
        Ok(())
    }

    /// Forgets a mount and its open files.
    pub fn forget(&self, name: &FdName) -> Result<(), Error> {
        let mut tables = self.tables.lock();
        match tables.mounts.remove(name) {
            Some((slot, _)) => tables.release(self.fd.as_fd(), slot),
            None => Ok(()),
        }
    }

    /// Records that a file was opened, before the kernel is told. A request that was sent again, with
    /// the top bit of `unique` set, finds the record of the first time.
    pub fn opened(&self, name: &FdName, open: Open) -> Result<Opened, Error> {
        let mut tables = self.tables.lock();
        let slot = tables.mounts.get(name).map(|(slot, _)| *slot);
        let slot = slot.ok_or(Error::State(
            "a file was opened on a mount that is not recorded",
        ))?;
        tables.opens.insert(self.fd.as_fd(), slot, open)
    }

    /// Forgets an open file, by the handle the kernel gave back. `None`: it is forgotten already, since
    /// the request was sent again.
    pub fn released(&self, handle: u64) -> Result<Option<OpenFile>, Error> {
        self.tables.lock().opens.remove(self.fd.as_fd(), handle)
    }

    /// The open files of a mount.
    pub fn open_files(&self, name: &FdName) -> Vec<OpenFile> {
        let tables = self.tables.lock();
        let slot = tables.mounts.get(name).map(|(slot, _)| *slot);
        slot.map(|slot| tables.opens.of_mount(slot))
            .unwrap_or_default()
    }
}

impl Tables {
    /// A slot at the end. The new end is written first: a slot that was never filled reads as free.
    fn append(&mut self, fd: BorrowedFd<'_>) -> Result<u32, Error> {
        if self.end >= SLOTS {
            return Err(Error::State("it is full"));
        }
        write(fd, &(self.end + 1).to_ne_bytes(), END_AT)?;
        self.end += 1;
        Ok(self.end - 1)
    }

    /// Frees a mount's slot, after its open files, which name it.
    fn release(&mut self, fd: BorrowedFd<'_>, slot: u32) -> Result<(), Error> {
        for file in self.opens.of_mount(slot) {
            self.opens.remove(fd, file.handle)?;
        }
        write_phase(fd, mount_at(slot), 0)?;
        self.free.push(slot);
        Ok(())
    }
}

fn mount_at(slot: u32) -> u64 {
    MOUNTS_AT + u64::from(slot) * MOUNT as u64
}

fn encode(name: &FdName, mount: &Mount) -> Result<[u8; MOUNT], Error> {
    let mut record = [0; MOUNT];
    let fields = [
        (4, NAME, name.as_str().as_bytes()),
        (6, REQUEST, &mount.request),
        (8, REPLY, &mount.reply),
    ];
    for (length_at, (at, room), bytes) in fields {
        let place = record.get_mut(at..at + bytes.len());
        let length = u16::try_from(bytes.len())
            .ok()
            .filter(|_| bytes.len() <= room);
        let (Some(place), Some(length)) = (place, length) else {
            return Err(Error::State("a handshake is too long"));
        };
        place.copy_from_slice(bytes);
        if let Some(place) = record.get_mut(length_at..length_at + 2) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }
    Ok(record)
}

fn parse(record: &[u8; MOUNT]) -> Result<Option<(FdName, Mount)>, Error> {
    let phase = match word(record, 0) {
        0 => return Ok(None),
        1 => Phase::Answering,
        2 => Phase::Answered,
        _ => return Err(Error::State("a mount has an unknown phase")),
    };
    let field = |length_at: usize, (at, room): (usize, usize)| {
        let length = record
            .get(length_at..)
            .and_then(|rest| rest.first_chunk().copied());
        let length = usize::from(u16::from_ne_bytes(length.unwrap_or_default()));
        let bytes = record.get(at..at + length).filter(|_| length <= room);
        bytes.ok_or(Error::State("a mount's record has a wrong length"))
    };
    let name = std::str::from_utf8(field(4, NAME)?);
    let name = name.map_err(|_| Error::State("a mount's name is no text"))?;
    let mount = Mount {
        phase,
        request: field(6, REQUEST)?.to_vec(),
        reply: field(8, REPLY)?.to_vec(),
    };
    Ok(Some((FdName::new(name)?, mount)))
}

/// The four bytes at `at`, 0 beyond the end.
fn word(record: &[u8], at: usize) -> u32 {
    let bytes = record
        .get(at..)
        .and_then(|rest| rest.first_chunk().copied());
    u32::from_ne_bytes(bytes.unwrap_or_default())
}

/// The eight bytes at `at`, 0 beyond the end.
fn long(record: &[u8], at: usize) -> u64 {
    let bytes = record
        .get(at..)
        .and_then(|rest| rest.first_chunk().copied());
    u64::from_ne_bytes(bytes.unwrap_or_default())
}

fn write(fd: BorrowedFd<'_>, bytes: &[u8], at: u64) -> Result<(), Error> {
    match rustix::io::pwrite(fd, bytes, at) {
        Ok(length) if length == bytes.len() => Ok(()),
        Ok(_) => Err(Error::State("a record was written in part")),
        Err(errno) => Err(Error::io("write the kept table of mounts")(errno)),
    }
}

fn write_phase(fd: BorrowedFd<'_>, at: u64, phase: u32) -> Result<(), Error> {
    write(fd, &phase.to_ne_bytes(), at)
}

/// Reads; what is beyond the end is zero.
fn read(fd: BorrowedFd<'_>, buffer: &mut [u8], at: u64) -> Result<(), Error> {
    rustix::io::pread(fd, buffer, at)
        .map(drop)
        .map_err(Error::io("read the kept table of mounts"))
}

#[cfg(test)]
mod tests;
