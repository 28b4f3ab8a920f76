//! The Container Runtime Interface, passed on: crfs as kubelet's image service endpoint.
//!
//! Every call, known or not, unary or streaming, goes to containerd and back as the bytes it is;
//! of one, `PullImage`, crfs reads what credentials the image is pulled with ([`pull`]). That is
//! the only way by which those of a pod reach a snapshotter.
//!
//! Each connection has one of its own to containerd, made again when containerd was restarted: the
//! calls in between fail as unavailable, which kubelet tries again. crfs's own socket outlives a server:
//! who calls while there is none waits for the next one.

mod proxy;
mod pull;
mod upstream;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::oci::Reference;
use crate::registry::Pulled;

/// How long calls under way may still take when crfs ends; streams of events never end.
pub(crate) const GOODBYE: Duration = Duration::from_secs(2);
/// Pause after an accept that failed, as when all file descriptors are in use.
const PAUSE: Duration = Duration::from_millis(200);

/// Section `[cri]` of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Unix socket that kubelet's `imageServiceEndpoint` names. Default: none, there is no proxy.
    pub listen: Option<PathBuf>,
}

/// Told of every image that was pulled.
pub type OnPulled = dyn Fn(Reference) + Send + Sync;

/// What becomes of pulls.
#[derive(Clone)]
pub struct Pulls {
    /// Learns what they are made with.
    pub credentials: Pulled,
    /// Called for each that succeeded.
    pub done: Arc<OnPulled>,
}

/// Serves connections of `listener` until `end`.
pub async fn serve(
    listener: UnixListener,
    containerd: PathBuf,
    pulls: Pulls,
    end: CancellationToken,
) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = end.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection =
                    proxy::Connection::new(containerd.clone(), pulls.clone(), end.clone());
                connections.spawn(connection.serve(stream));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the CRI proxy was lost");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    connections.close();
    // What is left ends with the process.
    let _ = tokio::time::timeout(GOODBYE, connections.wait()).await;
}
