//! gRPC messages to snapshotter calls and back; no decision is taken here.
//!
//! containerd's Snapshots service and our own control API ([`control`]) on a unix socket. Calls that change state run in tasks of their
//! own ([`crate::snapshotter`]), as tonic drops a handler whose client went away.

pub mod control;
mod convert;
pub mod socket;
mod status;

use containerd_snapshots::api::snapshots::v1 as api;
use containerd_snapshots::api::snapshots::v1::snapshots_server::{Snapshots, SnapshotsServer};
use futures::stream::{BoxStream, StreamExt as _};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

pub use status::status;

use crate::report::Node;
use crate::snapshotter::filter::Filters;
use crate::snapshotter::{Error, Key, Mask, Prepared, Snapshotter, labels};

/// Largest message in either direction, in bytes: containerd's own limit
/// (`defaults.DefaultMaxRecvMsgSize`).
pub const MAX_MESSAGE: usize = 16 << 20;

/// The Snapshots service.
pub struct Service(Snapshotter);

/// The service, to be added to a tonic server.
#[must_use]
pub fn server(snapshotter: Snapshotter) -> SnapshotsServer<Service> {
    SnapshotsServer::new(Service(snapshotter))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

/// Why serving ended by itself.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ServeError(#[from] tonic::transport::Error);

/// Serves, with `node` also the control API, on connections of `incoming` until `end`, then lets answers under way finish.
///
/// # Errors
/// The listener failed for good.
pub async fn serve(
    snapshotter: Snapshotter,
    node: Option<Node>,
    incoming: UnixListenerStream,
    end: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let server = tonic::transport::Server::builder()
        .add_service(server(snapshotter))
        .add_optional_service(node.map(control::server));
    Ok(server.serve_with_incoming_shutdown(incoming, end).await?)
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<api::PrepareSnapshotRequest>,
    ) -> Answer<api::PrepareSnapshotResponse> {
        let request = request.into_inner();
        let key = key(request.key)?;
        let parent = Key::optional(request.parent);
        let labels = labels(request.labels).map_err(status)?;
        let span = span("prepare", &key);
        let prepared = self.0.prepare(key, parent, labels).instrument(span).await;
        match prepared.map_err(status)? {
            Prepared::Mounts(mounts) => Ok(Response::new(api::PrepareSnapshotResponse {
                mounts: convert::mounts(mounts),
            })),
            Prepared::Lazy => Err(Status::already_exists(
                "the target snapshot is served lazily",
            )),
        }
    }

    async fn view(
        &self,
        request: Request<api::ViewSnapshotRequest>,
    ) -> Answer<api::ViewSnapshotResponse> {
        let request = request.into_inner();
        let key = key(request.key)?;
        let parent = Key::optional(request.parent);
        let labels = labels(request.labels).map_err(status)?;
        let span = span("view", &key);
        let mounts = self.0.view(key, parent, labels).instrument(span).await;
        let mounts = mounts.map_err(status)?;
        Ok(Response::new(api::ViewSnapshotResponse {
            mounts: convert::mounts(mounts),
        }))
    }

    async fn mounts(&self, request: Request<api::MountsRequest>) -> Answer<api::MountsResponse> {
        let key = key(request.into_inner().key)?;
        let mounts = self.0.mounts(&key).instrument(span("mounts", &key)).await;
        let mounts = mounts.map_err(status)?;
        Ok(Response::new(api::MountsResponse {
            mounts: convert::mounts(mounts),
        }))
    }

    async fn commit(&self, request: Request<api::CommitSnapshotRequest>) -> Answer<()> {
        let request = request.into_inner();
        let (name, key) = (key(request.name)?, key(request.key)?);
        let labels = labels(request.labels).map_err(status)?;
        let span = span("commit", &key);
        let committed = self.0.commit(name, key, labels).instrument(span).await;
        committed.map_err(status)?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<api::RemoveSnapshotRequest>) -> Answer<()> {
        let key = key(request.into_inner().key)?;
        let span = span("remove", &key);
        self.0.remove(key).instrument(span).await.map_err(status)?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<api::StatSnapshotRequest>,
    ) -> Answer<api::StatSnapshotResponse> {
        let key = key(request.into_inner().key)?;
        let record = self.0.stat(&key).map_err(status)?;
        Ok(Response::new(api::StatSnapshotResponse {
            info: Some(convert::info(&record)),
        }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateSnapshotRequest>,
    ) -> Answer<api::UpdateSnapshotResponse> {
        let request = request.into_inner();
        // Of the info only name and labels count: the rest cannot be changed.
        let info = request.info.unwrap_or_default();
        let key = key(info.name)?;
        let paths = request.update_mask.map(|mask| mask.paths);
        let mask = Mask::parse(paths.unwrap_or_default()).map_err(status)?;
        let labels = labels(info.labels).map_err(status)?;
        let record = self.0.update(key, labels, mask).await.map_err(status)?;
        Ok(Response::new(api::UpdateSnapshotResponse {
            info: Some(convert::info(&record)),
        }))
    }

    type ListStream = BoxStream<'static, Result<api::ListSnapshotsResponse, Status>>;

    async fn list(&self, request: Request<api::ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let filters = Filters::parse(&request.into_inner().filters)
            .map_err(|error| status(Error::Filter(error)))?;
        let batches = convert::batches(self.0.list(&filters));
        let answers = batches.map(|info| Ok(api::ListSnapshotsResponse { info }));
        Ok(Response::new(futures::stream::iter(answers).boxed()))
    }

    async fn usage(&self, request: Request<api::UsageRequest>) -> Answer<api::UsageResponse> {
        let key = key(request.into_inner().key)?;
        let usage = self.0.usage(&key).await.map_err(status)?;
        Ok(Response::new(convert::usage(usage)))
    }

    async fn cleanup(&self, _: Request<api::CleanupRequest>) -> Answer<()> {
        self.0.cleanup().await.map_err(status)?;
        Ok(Response::new(()))
    }
}

/// What a call leads to, down to HTTP requests, is logged within its span.
fn span(call: &'static str, key: &Key) -> tracing::Span {
    tracing::debug_span!("grpc", call, %key)
}

fn key(text: String) -> Result<Key, Status> {
    Key::new(text).map_err(status)
}
