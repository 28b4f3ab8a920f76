//! The body of an answer, read with a watch on its progress.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;
use tokio::time::{Instant, timeout};

use crate::registry::transport::explain;
use crate::registry::{Error, Traffic};

/// Bytes that count as progress. A host that drips less than this in the time allowed is stalled.
pub(super) const PROGRESS: u64 = 16 << 10;

/// How long a body may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Longest wait for [`PROGRESS`] bytes.
    pub(super) progress: Duration,
}

/// A body that is still arriving.
pub(super) struct Body {
    response: Response,
    what: Arc<str>,
    host: String,
    limits: Limits,
    traffic: Arc<Traffic>,
    /// Time spent waiting and bytes that came since the last progress. Time in which nobody asked
    /// for more is not the host's fault and is not counted.
    waited: Duration,
    came: u64,
}

impl Body {
    pub(super) fn new(
        response: Response,
        what: Arc<str>,
        host: String,
        limits: Limits,
        traffic: Arc<Traffic>,
    ) -> Self {
        Self {
            response,
            what,
            host,
            limits,
            traffic,
            waited: Duration::ZERO,
            came: 0,
        }
    }

    /// Who sends it.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// The next bytes; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let left = self.limits.progress.saturating_sub(self.waited);
        let start = Instant::now();
        let Ok(result) = timeout(left, self.response.chunk()).await else {
            return Err(Error::Stalled {
                what: Arc::clone(&self.what),
                host: self.host.clone(),
                after: self.limits.progress,
            });
        };
        let piece = result.map_err(|e| explain(&e, &self.what, self.response.url()))?;
        let size = piece.as_ref().map_or(0, Bytes::len);
        self.traffic.count_received(size);
        self.waited += start.elapsed();
        self.came += size as u64;
        if self.came >= PROGRESS {
            (self.waited, self.came) = (Duration::ZERO, 0);
        }
        Ok(piece)
    }
}
