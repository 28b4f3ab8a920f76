//! One HTTP/2 connection to containerd, made when it is needed and made again when it has ended.
//!
//! Locking: held while a connection is being made, so that calls that come together share it.

use std::path::PathBuf;
use std::time::Duration;

use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::{Body, Request, Response};
use tokio::net::UnixStream;

/// Longest wait for a connection to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes that may be under way in one call, and in all.
pub(super) const STREAM_WINDOW: u32 = 1 << 20;
pub(super) const CONNECTION_WINDOW: u32 = 4 << 20;

/// Runs hyper's tasks on the runtime.
#[derive(Clone, Copy)]
pub(super) struct Exec;

impl<F> hyper::rt::Executor<F> for Exec
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        tokio::spawn(task);
    }
}

/// The way to containerd.
pub(super) struct Upstream {
    path: PathBuf,
    sender: tokio::sync::Mutex<Option<SendRequest<Body>>>,
}

impl Upstream {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            sender: tokio::sync::Mutex::default(),
        }
    }

    /// Sends a call; the answer comes back as soon as it begins.
    ///
    /// # Errors
    /// containerd cannot be reached or broke off; worded for a message.
    pub(super) async fn send(&self, request: Request<Body>) -> Result<Response<Body>, String> {
        let mut sender = self.sender().await?;
        let broken = |error: hyper::Error| format!("{}: {error}", self.path.display());
        sender.send_request(request).await.map_err(broken)
    }

    async fn sender(&self) -> Result<SendRequest<Body>, String> {
        let mut held = self.sender.lock().await;
        if let Some(sender) = &mut *held
            && sender.ready().await.is_ok()
        {
            return Ok(sender.clone());
        }
        let connect = tokio::time::timeout(CONNECT, self.connect());
        let sender = connect
            .await
            .unwrap_or_else(|_| Err(format!("no connection within {CONNECT:?}")))
            .map_err(|why| format!("{}: {why}", self.path.display()))?;
        Ok(held.insert(sender).clone())
    }

    async fn connect(&self) -> Result<SendRequest<Body>, String> {
        let stream = UnixStream::connect(&self.path).await;
        let stream = stream.map_err(|error| error.to_string())?;
        let handshake = Builder::new(Exec)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(stream);
        let (sender, connection) = handshake.await.map_err(|error| error.to_string())?;
        tokio::spawn(async move {
            // Whoever uses it is told.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to containerd ended");
            }
        });
        Ok(sender)
    }
}
