//! Who asks a daemon through its control API.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Code, Status};

use super::generated::control_client::ControlClient;
use crate::containerd::UnixSocket;
use crate::report::api;
use crate::service::MAX_MESSAGE;

/// How long an answer is waited for; a registry may have to be asked for it.
const PATIENCE: Duration = Duration::from_secs(90);

/// Why a daemon does not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody serves at the socket.
    #[error("no daemon answers at {}: {why} (is crfs serve running? --address names its socket)", socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        why: String,
    },
    /// The daemon does not know the question.
    #[error("the daemon at {} is older than this program and cannot answer that; crfs upgrade replaces it", .0.display())]
    Older(PathBuf),
    /// The daemon says no.
    #[error("{0}")]
    Refused(String),
}

/// A connection to a daemon.
pub struct Client {
    socket: PathBuf,
    client: ControlClient<Channel>,
}

impl Client {
    /// Connects to the daemon at `socket`. Needs a tokio runtime.
    ///
    /// # Errors
    /// Nobody serves there.
    pub async fn connect(socket: &Path) -> Result<Self, Error> {
        let unreachable = |why: String| Error::Unreachable {
            socket: socket.to_owned(),
            why,
        };
        let connecting = UnixSocket::new(socket).within(PATIENCE).connect();
        let channel = connecting.await.map_err(unreachable)?;
        Ok(Self {
            socket: socket.to_owned(),
            client: ControlClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
        })
    }

    /// How the daemon fares.
    ///
    /// # Errors
    /// It is gone or too old.
    pub async fn status(&mut self) -> Result<api::StatusReply, Error> {
        let answer = self.client.status(api::StatusRequest {}).await;
        Ok(answer.map_err(|status| self.refused(&status))?.into_inner())
    }

    /// Why the layers of an image are lazy or not; of all images if it is empty.
    ///
    /// # Errors
    /// There is no such image, or the daemon is gone or too old.
    pub async fn why(&mut self, image: String) -> Result<api::WhyReply, Error> {
        let answer = self.client.why(api::WhyRequest { image }).await;
        Ok(answer.map_err(|status| self.refused(&status))?.into_inner())
    }

    /// What the lazy layers hold.
    ///
    /// # Errors
    /// The daemon is gone or too old.
    pub async fn layers(&mut self) -> Result<api::LayersReply, Error> {
        let answer = self.client.layers(api::LayersRequest {}).await;
        Ok(answer.map_err(|status| self.refused(&status))?.into_inner())
    }

    fn refused(&self, status: &Status) -> Error {
        // What did not come from the other side has a cause on this one.
        if let Some(cause) = std::error::Error::source(status) {
            return Error::Unreachable {
                socket: self.socket.clone(),
                why: cause.to_string(),
            };
        }
        match status.code() {
            Code::Unimplemented => Error::Older(self.socket.clone()),
            _ => Error::Refused(status.message().to_owned()),
        }
    }
}
