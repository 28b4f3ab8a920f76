//! The whole of a blob, from a host that was asked for a part of it: a server may ignore `Range` (RFC 9110, 14.2), and
//! caches in front of a registry do while they do not have the blob themselves.
//!
//! It is read once, into a file without a name, and everybody who reads the blob gets his part of it as soon as
//! it has come: what lies at the end, as a table of contents does, takes as long as an ordinary pull, and then all of it is
//! here. Nothing is read that nobody waits for, and after a while without readers the connection and the file go.
//!
//! Crash behaviour: the file has no name, so that it is gone when the process is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::registry::blob::spot::Spot;
use crate::registry::{ByteStream, Error};

/// How long it is kept without readers.
const KEEP: Duration = Duration::from_secs(60);
/// Most bytes of the file that are read at a time.
const PIECE: u64 = 256 << 10;
/// Part of the disk's free space that one blob may take.
const SHARE: u64 = 4;

/// A blob that arrives.
pub(super) struct Whole {
    file: File,
    /// Who sends it.
    pub(super) spot: Arc<Spot>,
    host: String,
    arrived: watch::Sender<Arrived>,
    readers: watch::Sender<usize>,
}

#[derive(Clone, Copy)]
struct Arrived {
    /// From the blob's beginning on.
    bytes: u64,
    /// Whether no more come.
    is_over: bool,
}

impl Whole {
    /// A file for a blob of `size` bytes.
    ///
    /// # Errors
    /// The disk's; there is too little room on it.
    pub(super) fn room(folder: &Path, size: u64) -> io::Result<File> {
        let disk = rustix::fs::statvfs(folder)?;
        let most = disk.f_bavail.saturating_mul(disk.f_frsize) / SHARE;
        if size > most {
            let why = format!("it has {size} bytes, a fourth of what is free is {most}");
            return Err(io::Error::new(io::ErrorKind::StorageFull, why));
        }
        tempfile::tempfile_in(folder)
    }

    /// The blob, `all` of which `host` sends on behalf of `spot`, to be kept in `file`. Must be called within a tokio runtime.
    pub(super) fn begin(file: File, spot: Arc<Spot>, host: String, all: ByteStream) -> Arc<Self> {
        let nothing = Arrived {
            bytes: 0,
            is_over: false,
        };
        let whole = Arc::new(Self {
            file,
            spot,
            host,
            arrived: watch::Sender::new(nothing),
            readers: watch::Sender::new(0),
        });
        tokio::spawn(Arc::clone(&whole).arrive(all));
        whole
    }

    /// Whether a reader can have what lies before `end`, now or later.
    pub(super) fn reaches(&self, end: u64) -> bool {
        let arrived = self.arrived.borrow();
        !arrived.is_over || end <= arrived.bytes
    }

    /// Reads on from `at`.
    pub(super) fn tail(self: &Arc<Self>, at: u64) -> Tail {
        self.readers.send_modify(|readers| *readers += 1);
        Tail {
            at,
            arrived: self.arrived.subscribe(),
            whole: Arc::clone(self),
        }
    }

    /// Takes in what comes while somebody waits for it.
    async fn arrive(self: Arc<Self>, mut all: ByteStream) {
        let mut readers = self.readers.subscribe();
        let mut bytes = 0;
        while is_read(&mut readers).await {
            let piece = match all.try_next().await {
                Ok(Some(piece)) => piece,
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%error, bytes, "the whole of a blob ends early");
                    break;
                }
            };
            if let Err(error) = self.file.write_all_at(&piece, bytes) {
                tracing::warn!(%error, "the whole of a blob that a registry sent cannot be kept");
                break;
            }
            bytes += piece.len() as u64;
            self.arrived.send_modify(|arrived| arrived.bytes = bytes);
        }
        self.arrived.send_modify(|arrived| arrived.is_over = true);
        drop(all);
        while is_read(&mut readers).await {
            let _ = readers.wait_for(|readers| *readers == 0).await;
        }
    }

    fn read(&self, at: u64, len: u64) -> io::Result<Bytes> {
        let mut piece = vec![0; usize::try_from(len).unwrap_or_default()];
        self.file.read_exact_at(&mut piece, at)?;
        Ok(piece.into())
    }
}

/// Waits for readers; whether there are any before it is given up.
async fn is_read(readers: &mut watch::Receiver<usize>) -> bool {
    let any = timeout(KEEP, readers.wait_for(|readers| *readers > 0)).await;
    matches!(any, Ok(Ok(_)))
}

/// One who reads it.
pub(super) struct Tail {
    whole: Arc<Whole>,
    at: u64,
    arrived: watch::Receiver<Arrived>,
}

impl Tail {
    /// Who sends it.
    pub(super) fn host(&self) -> &str {
        &self.whole.host
    }

    /// The next bytes; `None` when no more come.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let at = self.at;
        let more = |arrived: &Arrived| arrived.bytes > at || arrived.is_over;
        // The sender lives as long as this.
        let arrived = self
            .arrived
            .wait_for(more)
            .await
            .map(|arrived| arrived.bytes);
        let len = arrived.unwrap_or_default().saturating_sub(at).min(PIECE);
        if len == 0 {
            return Ok(None);
        }
        let whole = Arc::clone(&self.whole);
        let read = tokio::task::spawn_blocking(move || whole.read(at, len)).await;
        let piece = read.unwrap_or_else(|error| Err(io::Error::other(error)));
        self.at += len;
        piece.map(Some).map_err(|error| {
            let host = self.host();
            Error::Protocol(format!("what {host} sent cannot be read again: {error}"))
        })
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.whole.readers.send_modify(|readers| *readers -= 1);
    }
}
