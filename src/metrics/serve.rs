//! Who asks for metrics: HTTP/1 on a socket, `GET /metrics`, nothing else.
//!
//! Promise: whoever speaks to the socket costs at most a few connections, each of which ends when it
//! says nothing for a while; serving containers never waits for any of it.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::Http;
use hyper::service::service_fn;
use hyper::{Body, Method, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use crate::metrics::{Process, all, encode};
use crate::report::Node;

/// Connections at a time; who comes later waits.
const CONNECTIONS: usize = 8;
/// How long a connection may take for all of its requests: Prometheus gives up after ten seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause after a connection that could not be accepted, as where descriptors are used up.
const PAUSE: Duration = Duration::from_millis(200);

/// What is listened on.
pub enum Listener {
    /// An address.
    Tcp(TcpListener),
    /// A path.
    Unix(UnixListener),
}

trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

impl Listener {
    async fn accept(&self) -> io::Result<Box<dyn Connection>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

/// Serves for ever.
pub async fn serve(listener: Listener, node: Node) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else {
            return;
        };
        let connection = match listener.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::debug!(%error, "a connection for metrics was not accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let node = node.clone();
        tokio::spawn(async move {
            let answers = service_fn(move |request| answer(node.clone(), request));
            let served = Http::new()
                .http1_only(true)
                .serve_connection(connection, answers);
            // How it ends is the other side's affair.
            let _ = tokio::time::timeout(PATIENCE, served).await;
            drop(permit);
        });
    }
}

async fn answer(node: Node, request: Request<Body>) -> Result<Response<Body>, Infallible> {
    let plain = |status, text: &str| {
        let mut response = Response::new(Body::from(text.to_owned() + "\n"));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return Ok(plain(StatusCode::NOT_FOUND, "metrics are at /metrics"));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "ask by GET");
        let allowed = hyper::header::HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, allowed);
        return Ok(response);
    }
    // It goes over all snapshots.
    let text = tokio::task::spawn_blocking(move || {
        let tallies = node.tallies();
        let process = Process::of_this(tallies.uptime);
        encode(all(&tallies, &process)).map_err(|error| error.to_string())
    });
    let text = text.await.unwrap_or_else(|error| Err(error.to_string()));
    Ok(match text {
        Ok((kind, text)) => {
            let mut response = Response::new(Body::from(text));
            let kind = hyper::header::HeaderValue::from_static(kind);
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        Err(error) => {
            tracing::error!(%error, "metrics could not be told");
            plain(StatusCode::INTERNAL_SERVER_ERROR, &error)
        }
    })
}
