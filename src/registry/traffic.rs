//! What a client has moved: requests sent, bytes received; and what holds it up.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::registry::Error;

/// Counters of one client; they only grow.
#[derive(Debug, Default)]
pub struct Traffic {
    requests: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    listener: OnceLock<Listener>,
}

/// Is told what holds requests up.
struct Listener(Box<dyn Fn(&Error) + Send + Sync>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}

impl Traffic {
    /// HTTP requests sent, redirects and token requests included.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes of answers' bodies received, before anything was verified.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes of blobs and manifests sent, repeated ones counted again.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// From now on `told` hears each failure of what has failed for longer than a moment and is tried again, so that people
    /// know what they wait for. Only the first one to ask is told.
    pub fn on_trouble(&self, told: impl Fn(&Error) + Send + Sync + 'static) {
        let _ = self.listener.set(Listener(Box::new(told)));
    }

    pub(super) fn held_up(&self, error: &Error) {
        if let Some(Listener(told)) = self.listener.get() {
            told(error);
        }
    }

    pub(super) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn count_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
