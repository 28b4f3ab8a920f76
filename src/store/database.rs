//! sled, synchronously: open, read everything, apply a batch, flush.
//!
//! sled may panic where its files are damaged; every call into it is guarded, so that damage is an
//! error like any other. Its cache is kept small, as it is read once, at start-up, and it gets no
//! flusher thread, as everything is flushed before it is acknowledged.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use crate::store::Error;

/// Bytes of sled's page cache. Nothing is read twice.
const CACHE: u64 = 1 << 20;
/// The key that holds the highest id ever given out; record keys have eight bytes.
const LAST_ID: &[u8] = b"n";
/// A database that was just closed may hold its own file lock for a moment longer.
const REOPEN_TRIES: u32 = 40;
const REOPEN_PAUSE: Duration = Duration::from_millis(50);

/// An open database.
pub(super) struct Database(sled::Db);

/// All it holds.
#[derive(Default)]
pub(super) struct Content {
    /// Id and sealed record, by id.
    pub(super) entries: Vec<(u64, Vec<u8>)>,
    /// Highest id ever given out.
    pub(super) last_id: u64,
}

/// Why it could not be opened.
pub(super) enum Unopened {
    /// The disk is full, say: it may be possible later, and nothing is lost.
    Unavailable(Error),
    /// It is damaged beyond what it can read.
    Damaged(Error),
}

impl Database {
    /// Opens or creates it.
    pub(super) fn open(dir: &Path) -> Result<Self, Unopened> {
        let mut tries = 0;
        loop {
            let opened = catch_unwind(|| {
                sled::Config::new()
                    .path(dir)
                    .cache_capacity(CACHE)
                    .flush_every_ms(None)
                    .open()
            });
            tries += 1;
            match opened {
                Ok(Ok(db)) => return Ok(Self(db)),
                Ok(Err(error)) if is_locked(&error) && tries < REOPEN_TRIES => {
                    std::thread::sleep(REOPEN_PAUSE);
                }
                Ok(Err(sled::Error::Io(error))) if is_outside(&error) => {
                    return Err(Unopened::Unavailable(failed("open", &error.into())));
                }
                Ok(Err(error)) => return Err(Unopened::Damaged(failed("open", &error))),
                Err(_) => {
                    return Err(Unopened::Damaged(Error::Database(
                        "sled panicked while opening it".to_owned(),
                    )));
                }
            }
        }
    }

    /// Moves a damaged database out of the way, for a person to look at; the one moved before it
    /// is deleted.
    pub(super) fn move_aside(dir: &Path) -> Result<(), Error> {
        let aside = dir.with_extension("damaged");
        match fs::remove_dir_all(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &aside)(error));
            }
            _ => {}
        }
        fs::rename(dir, &aside).map_err(Error::io("rename", dir))
    }

    /// Everything it holds.
    pub(super) fn content(&self) -> Result<Content, Error> {
        guarded("read", || {
            let mut content = Content::default();
            for entry in self.0.iter() {
                let (key, value) = entry?;
                if let Ok(id) = <[u8; 8]>::try_from(&*key) {
                    content
                        .entries
                        .push((u64::from_be_bytes(id), value.to_vec()));
                } else if &*key == LAST_ID
                    && let Ok(id) = <[u8; 8]>::try_from(&*value)
                {
                    content.last_id = u64::from_be_bytes(id);
                }
            }
            Ok(content)
        })
    }

    /// Puts and deletes (`None`) at once: all or nothing, durable after [`Self::flush`].
    pub(super) fn apply(
        &self,
        changes: Vec<(u64, Option<Vec<u8>>)>,
        last_id: u64,
    ) -> Result<(), Error> {
        let mut batch = sled::Batch::default();
        for (id, value) in changes {
            match value {
                Some(bytes) => batch.insert(&id.to_be_bytes(), bytes),
                None => batch.remove(&id.to_be_bytes()),
            }
        }
        batch.insert(LAST_ID, &last_id.to_be_bytes());
        guarded("write", || self.0.apply_batch(batch))
    }

    /// Makes all that was applied durable.
    pub(super) fn flush(&self) -> Result<(), Error> {
        guarded("flush", || self.0.flush().map(drop))
    }
}

fn guarded<T>(what: &'static str, call: impl FnOnce() -> sled::Result<T>) -> Result<T, Error> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| failed(what, &error)),
        Err(_) => Err(Error::Database(format!("cannot {what}: sled panicked"))),
    }
}

fn failed(what: &str, error: &sled::Error) -> Error {
    Error::Database(format!("cannot {what}: {error}"))
}

/// True if the error is about the disk or its mount and not about what is in the files: the kernel
/// said it, where sled's own complaints about content carry no error number.
fn is_outside(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    error.raw_os_error().is_some()
        || matches!(
            error.kind(),
            Kind::StorageFull
                | Kind::QuotaExceeded
                | Kind::PermissionDenied
                | Kind::ReadOnlyFilesystem
                | Kind::WouldBlock
        )
        || is_lock(error)
}

/// sled reports its file lock, held by another handle, as an I/O error without a kind of its own.
fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if is_lock(error))
}

fn is_lock(error: &io::Error) -> bool {
    error.to_string().contains("lock")
}
