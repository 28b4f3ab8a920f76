//! A gRPC channel over a unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::UnixStream;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint, Uri};

/// A unix socket that somebody serves gRPC at.
#[derive(Debug, Clone)]
pub struct UnixSocket {
    path: PathBuf,
    patience: Option<Duration>,
}

impl UnixSocket {
    /// The socket at `path`; calls may take any time.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            patience: None,
        }
    }

    /// The same, with how long an answer is waited for.
    #[must_use]
    pub fn within(self, patience: Duration) -> Self {
        Self {
            patience: Some(patience),
            ..self
        }
    }

    /// Connects. Needs a tokio runtime.
    ///
    /// # Errors
    /// Nobody serves there; worded for a message.
    pub async fn connect(self) -> Result<Channel, String> {
        // Asked first by itself: what tonic says of a refused connection is of no use.
        let probe = UnixStream::connect(&self.path).await;
        drop(probe.map_err(|error| error.to_string())?);
        // The address is not looked at.
        let mut endpoint = Endpoint::from_static("http://localhost");
        if let Some(patience) = self.patience {
            endpoint = endpoint.timeout(patience);
        }
        let channel = endpoint.connect_with_connector(self).await;
        channel.map_err(|error| error.to_string())
    }
}

impl Service<Uri> for UnixSocket {
    type Response = UnixStream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<UnixStream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.path.clone();
        Box::pin(async move { UnixStream::connect(path).await })
    }
}

/// A socket as people name it: other tools write `unix://` before it.
pub(super) fn path(named: &Path) -> PathBuf {
    let bare = named.to_str().and_then(|text| text.strip_prefix("unix://"));
    bare.map_or_else(|| named.to_owned(), PathBuf::from)
}
