//! The control API: what `crfs status`, `why`, `layers` and `top` ask, on containerd's socket.
//!
//! Both sides of it: the service, and [`Client`] for who asks. The messages are those of
//! [`crate::report::api`]; no decision is taken here.

mod client;
#[cfg(test)]
pub(crate) mod testing;

use tonic::{Code, Request, Response, Status};

pub use client::{Client, Error};

use crate::report::{self, Node, api};
use crate::service::MAX_MESSAGE;
use generated::control_server::{Control, ControlServer};

#[allow(
    missing_docs,
    clippy::allow_attributes_without_reason,
    clippy::excessive_nesting,
    clippy::too_many_lines,
    clippy::unwrap_used,
    reason = "generated; what it means is in proto/control.proto"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/services/crfs.control.v1.rs"));
}

/// The service.
pub struct Service(Node);

/// The service, to be added to a tonic server.
#[must_use]
pub fn server(node: Node) -> ControlServer<Service> {
    ControlServer::new(Service(node)).max_encoding_message_size(MAX_MESSAGE)
}

#[tonic::async_trait]
impl Control for Service {
    async fn status(
        &self,
        _: Request<api::StatusRequest>,
    ) -> Result<Response<api::StatusReply>, Status> {
        let node = self.0.clone();
        let status = on_blocking_thread(move || node.status()).await?;
        Ok(Response::new(status))
    }

    async fn why(
        &self,
        request: Request<api::WhyRequest>,
    ) -> Result<Response<api::WhyReply>, Status> {
        let image = request.into_inner().image;
        let images = self.0.why(&image).await.map_err(refused)?;
        Ok(Response::new(api::WhyReply { images }))
    }

    async fn layers(
        &self,
        _: Request<api::LayersRequest>,
    ) -> Result<Response<api::LayersReply>, Status> {
        let node = self.0.clone();
        let layers = on_blocking_thread(move || node.layers()).await?;
        Ok(Response::new(api::LayersReply { layers }))
    }
}

async fn on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Status::internal(error.to_string()))
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "used as a function in map_err"
)]
fn refused(error: report::Error) -> Status {
    let code = match &error {
        report::Error::Reference(_) => Code::InvalidArgument,
        report::Error::NotHere(_) => Code::NotFound,
        report::Error::Remote { .. } => Code::Unavailable,
    };
    Status::new(code, error.to_string())
}
