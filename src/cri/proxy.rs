//! One client's connection: each of its calls goes to containerd and back, headers, messages and
//! trailers as they are.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use hyper::body::HttpBody as _;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::server::conn::Http;
use hyper::service::service_fn;
use hyper::{Body, Request, Response, Uri};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use crate::cri::pull::{self, Pull};
use crate::cri::upstream::{CONNECTION_WINDOW, Exec, STREAM_WINDOW, Upstream};
use crate::cri::{OnPulled, Pulls};

/// How gRPC says how a call ended.
const GRPC_STATUS: &str = "grpc-status";
const GRPC_MESSAGE: &str = "grpc-message";
/// gRPC's RESOURCE_EXHAUSTED and UNAVAILABLE.
const EXHAUSTED: &str = "8";
const UNAVAILABLE: &str = "14";

/// A client's connection and the one to containerd behind it.
pub(super) struct Connection {
    upstream: Upstream,
    pulls: Pulls,
    end: CancellationToken,
}

impl Connection {
    pub(super) fn new(containerd: PathBuf, pulls: Pulls, end: CancellationToken) -> Self {
        Self {
            upstream: Upstream::new(containerd),
            pulls,
            end,
        }
    }

    /// Serves the client until it goes away; when crfs ends, until what it has asked is answered.
    pub(super) async fn serve(self, stream: UnixStream) {
        let this = Arc::new(self);
        let calls = Arc::clone(&this);
        let service = service_fn(move |request| {
            let this = Arc::clone(&calls);
            async move { Ok::<_, Infallible>(this.call(request).await) }
        });
        let connection = Http::new()
            .with_executor(Exec)
            .http2_only(true)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .serve_connection(stream, service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = this.end.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection to the CRI proxy ended");
        }
    }

    async fn call(&self, request: Request<Body>) -> Response<Body> {
        let (request, pull) = match pull::is_pull(request.uri().path()) {
            false => (request, None),
            true => match pull::look(request, &self.pulls.credentials).await {
                Ok(looked) => looked,
                Err(why) => return refusal(EXHAUSTED, &why),
            },
        };
        match self.upstream.send(addressed(request)).await {
            Ok(response) => watched(response, pull, Arc::clone(&self.pulls.done)),
            Err(why) => {
                tracing::warn!(why, "a CRI call did not reach containerd");
                refusal(
                    UNAVAILABLE,
                    &format!("containerd cannot be reached through crfs: {why}"),
                )
            }
        }
    }
}

/// HTTP/2 cannot send a request that names no authority; a client may leave it out.
fn addressed(mut request: Request<Body>) -> Request<Body> {
    if request.uri().authority().is_none() {
        let path = request
            .uri()
            .path_and_query()
            .map_or("/", |path| path.as_str());
        if let Ok(uri) = format!("http://localhost{path}").parse::<Uri>() {
            *request.uri_mut() = uri;
        }
    }
    request
}

/// Passes the answer of a pull on, and keeps what was learned of it if it says that all went well.
fn watched(response: Response<Body>, pull: Option<Pull>, done: Arc<OnPulled>) -> Response<Body> {
    let Some(pull) = pull else {
        return response;
    };
    let (head, mut from) = response.into_parts();
    if head.headers.contains_key(GRPC_STATUS) {
        // An answer without a message: the pull failed.
        return Response::from_parts(head, from);
    }
    let (mut to, body) = Body::channel();
    tokio::spawn(async move {
        while let Some(piece) = from.data().await {
            let sent = match piece {
                Ok(piece) => to.send_data(piece).await.is_ok(),
                Err(_) => false,
            };
            if !sent {
                return to.abort();
            }
        }
        match from.trailers().await {
            Ok(Some(trailers)) => {
                if succeeded(&trailers) {
                    done(pull.succeeded());
                }
                // An error means that the client is gone.
                let _ = to.send_trailers(trailers).await;
            }
            Ok(None) => {}
            Err(_) => to.abort(),
        }
    });
    Response::from_parts(head, body)
}

fn succeeded(trailers: &HeaderMap) -> bool {
    trailers
        .get(GRPC_STATUS)
        .is_some_and(|status| status == "0")
}

/// An answer that is only an error, in gRPC's way of sending it.
fn refusal(status: &'static str, why: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_STATUS, HeaderValue::from_static(status));
    // The message is percent-encoded (gRPC over HTTP/2, "Status-Message").
    let plain = |c: &char| (' '..='~').contains(c) && *c != '%';
    let text: String = why
        .chars()
        .map(|c| if plain(&c) { c } else { '?' })
        .collect();
    if let Ok(message) = HeaderValue::from_str(&text) {
        headers.insert(GRPC_MESSAGE, message);
    }
    response
}
