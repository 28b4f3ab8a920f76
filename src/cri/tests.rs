//! The proxy between a client and a server that are both made of bare HTTP/2.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::body::{Bytes, HttpBody as _, Sender};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::server::conn::Http;
use hyper::service::service_fn;
use hyper::{Body, HeaderMap, Request, Response};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::*;
use crate::cri::upstream::Exec;
use crate::registry::Credentials as _;

const PULL: &str = "/runtime.v1.ImageService/PullImage";

/// A stand-in for containerd.
#[derive(Clone, Default)]
struct Server {
    seen: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    /// How pulls end.
    pull_status: Arc<Mutex<&'static str>>,
    /// Called while a pull is under way.
    during: Arc<Mutex<Option<Pulled>>>,
    /// What was known then.
    known: Arc<Mutex<usize>>,
    open: Arc<()>,
}

impl Server {
    fn listen(&self, path: &Path) -> JoinHandle<()> {
        let listener = UnixListener::bind(path).unwrap();
        let this = self.clone();
        tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let this = this.clone();
                let service = service_fn(move |request| {
                    let this = this.clone();
                    async move { Ok::<_, hyper::Error>(this.answer(request).await) }
                });
                let mut http = Http::new().with_executor(Exec);
                http.http2_only(true);
                connections.spawn(http.serve_connection(stream, service));
            }
        })
    }

    async fn answer(self, request: Request<Body>) -> Response<Body> {
        let (head, mut body) = request.into_parts();
        let trailers = |status: &'static str| {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", status.parse().unwrap());
            trailers.insert("bed-bin", "AAEC".parse().unwrap());
            trailers
        };
        let (mut to, answer) = Body::channel();
        let mut response = Response::new(answer);
        response
            .headers_mut()
            .insert("content-type", "application/grpc".parse().unwrap());
        match head.uri.path() {
            "/x/Fail" => {
                response.headers_mut().extend(trailers("5"));
                response
                    .headers_mut()
                    .insert("grpc-message", "no%20such".parse().unwrap());
                drop(to);
                // Whether the body is empty or not matters: an error has none.
                *response.body_mut() = Body::empty();
            }
            PULL => {
                let bytes = hyper::body::to_bytes(body).await.unwrap();
                self.seen.lock().push((head.headers, bytes));
                let known = self.during.lock().clone();
                if let Some(pulled) = known {
                    *self.known.lock() = pulled.find("r.io", "a/b").await.unwrap().len();
                }
                let status = *self.pull_status.lock();
                tokio::spawn(async move {
                    to.send_data(Bytes::from_static(&[0, 0, 0, 0, 0]))
                        .await
                        .unwrap();
                    to.send_trailers(trailers(status)).await.unwrap();
                });
            }
            _ => {
                // Whatever comes goes back at once.
                tokio::spawn(async move {
                    let _open = self.open;
                    while let Some(Ok(piece)) = body.data().await {
                        to.send_data(piece).await.unwrap();
                    }
                    self.seen.lock().push((head.headers, Bytes::new()));
                    let _ = to.send_trailers(trailers("0")).await;
                });
            }
        }
        response
    }
}

struct Bench {
    _folder: TempDir,
    containerd: PathBuf,
    server: Server,
    running: JoinHandle<()>,
    pulled: Pulled,
    client: SendRequest<Body>,
    end: CancellationToken,
    proxy: JoinHandle<()>,
}

async fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let containerd = folder.path().join("containerd");
    let listen = folder.path().join("cri");
    let server = Server::default();
    *server.pull_status.lock() = "0";
    let running = server.listen(&containerd);
    let (pulled, end) = (Pulled::default(), CancellationToken::new());
    let listener = UnixListener::bind(&listen).unwrap();
    let pulls = Pulls {
        credentials: pulled.clone(),
        done: Arc::new(|_| {}),
    };
    let proxy = serve(listener, containerd.clone(), pulls, end.clone());
    let proxy = tokio::spawn(proxy);
    let stream = UnixStream::connect(&listen).await.unwrap();
    let (client, connection) = Builder::new(Exec).handshake(stream).await.unwrap();
    tokio::spawn(connection);
    Bench {
        _folder: folder,
        containerd,
        server,
        running,
        pulled,
        client,
        end,
        proxy,
    }
}

impl Bench {
    async fn start(&mut self, path: &str) -> (Sender, Response<Body>) {
        let (to, body) = Body::channel();
        let request = Request::post(format!("http://localhost{path}"))
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .header("bed-bin", "AAEC")
            .body(body);
        self.client.ready().await.unwrap();
        let response = self.client.send_request(request.unwrap()).await.unwrap();
        (to, response)
    }

    async fn unary(&mut self, path: &str, message: &[u8]) -> (HeaderMap, Bytes) {
        let request = Request::post(format!("http://localhost{path}"))
            .header("te", "trailers")
            .body(Body::from(message.to_vec()));
        self.client.ready().await.unwrap();
        let response = self.client.send_request(request.unwrap()).await.unwrap();
        let (head, mut body) = response.into_parts();
        let mut bytes = Vec::new();
        while let Some(piece) = body.data().await {
            bytes.extend_from_slice(&piece.unwrap());
        }
        let mut ended = head.headers;
        ended.extend(body.trailers().await.unwrap().unwrap_or_default());
        (ended, bytes.into())
    }

    async fn known(&self) -> usize {
        self.pulled.find("r.io", "a/b").await.unwrap().len()
    }
}

/// A `PullImageRequest`, by hand: image r.io/a/b:1, user u, this password, and a field 99.
fn pull(password: &str) -> Vec<u8> {
    let field = |number: u8, bytes: &[u8]| {
        [
            &[number << 3 | 2, u8::try_from(bytes.len()).unwrap()],
            bytes,
        ]
        .concat()
    };
    let image = field(1, &field(1, b"r.io/a/b:1"));
    let auth = field(2, &[field(1, b"u"), field(2, password.as_bytes())].concat());
    let message = [image, auth, vec![0x9a, 0x06, 2, 0xff, 0xfe]].concat();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &length[..], &message].concat()
}

#[tokio::test]
async fn unknown_streaming_calls_pass_as_they_are() {
    let mut bench = bench().await;
    let (mut to, response) = bench.start("/runtime.v9.Unheard/Of").await;
    assert_eq!(response.headers()["content-type"], "application/grpc");
    let mut body = response.into_body();
    for n in 0..5u8 {
        // No gRPC at all, larger each time: nothing but bytes is passed on.
        let piece: Vec<_> = (0..(usize::from(n) * 200_000 + 1))
            .map(|at| at as u8 ^ n)
            .collect();
        let want = piece.clone();
        let send = async { to.send_data(piece.into()).await.unwrap() };
        let read = async {
            let mut got = Vec::new();
            while got.len() < want.len() {
                got.extend_from_slice(&body.data().await.unwrap().unwrap());
            }
            got
        };
        let ((), got) = tokio::join!(send, read);
        assert!(got == want, "piece {n} came back before the next was sent");
    }
    drop(to);
    while let Some(piece) = body.data().await {
        assert!(piece.unwrap().is_empty());
    }
    let trailers = body.trailers().await.unwrap().unwrap();
    assert_eq!(
        (&trailers["grpc-status"], &trailers["bed-bin"]),
        (&"0".parse().unwrap(), &"AAEC".parse().unwrap())
    );
    let seen = bench.server.seen.lock();
    assert_eq!(seen[0].0["bed-bin"], "AAEC");
    assert_eq!(seen[0].0["te"], "trailers");
}

#[tokio::test]
async fn errors_pass_as_they_are() {
    let mut bench = bench().await;
    let (ended, body) = bench.unary("/x/Fail", b"").await;
    assert_eq!(ended["grpc-status"], "5");
    assert_eq!(ended["grpc-message"], "no%20such");
    assert_eq!(ended["bed-bin"], "AAEC");
    assert!(body.is_empty());
}

#[tokio::test]
async fn a_pull_teaches_what_it_is_made_with() {
    let mut bench = bench().await;
    *bench.server.during.lock() = Some(bench.pulled.clone());
    *bench.server.pull_status.lock() = "13";
    let (ended, _) = bench.unary(PULL, &pull("wrong")).await;
    assert_eq!(ended["grpc-status"], "13");
    assert_eq!(
        *bench.server.known.lock(),
        1,
        "known while the image is pulled"
    );
    wait(async || bench.known().await == 0).await;

    *bench.server.pull_status.lock() = "0";
    let (ended, body) = bench.unary(PULL, &pull("right")).await;
    assert_eq!(
        (ended["grpc-status"].as_bytes(), body.len()),
        (&b"0"[..], 5)
    );
    wait(async || bench.known().await == 1).await;
    let seen = bench.server.seen.lock();
    assert_eq!(
        seen[1].1,
        pull("right"),
        "the request is passed on as it came"
    );
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused() {
    let mut bench = bench().await;
    let (ended, _) = bench.unary(PULL, &vec![0; (16 << 20) + 6]).await;
    assert_eq!(ended["grpc-status"], "8");
    assert!(bench.server.seen.lock().is_empty());
}

#[tokio::test]
async fn containerd_may_be_restarted_under_a_connection() {
    let mut bench = bench().await;
    assert_eq!(bench.unary("/x/Echo", b"1").await.1, "1");
    bench.running.abort();
    let _ = (&mut bench.running).await;
    std::fs::remove_file(&bench.containerd).unwrap();
    let ended = bench.unary("/x/Echo", b"2").await.0;
    assert_eq!(ended["grpc-status"], "14");
    let message = ended["grpc-message"].to_str().unwrap();
    assert!(message.contains("containerd"), "{message}");
    bench.running = bench.server.listen(&bench.containerd);
    assert_eq!(bench.unary("/x/Echo", b"3").await.1, "3");
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_call() {
    let mut bench = bench().await;
    assert_eq!(bench.unary("/x/Echo", b"1").await.1, "1");
    let open = Arc::clone(&bench.server.open);
    wait(async || Arc::strong_count(&open) <= 4).await;
    let idle = Arc::strong_count(&open);
    let (to, response) = bench.start("/x/Watch").await;
    assert_eq!(Arc::strong_count(&open), idle + 1, "the call is under way");
    drop((to, response));
    wait(async || Arc::strong_count(&open) == idle).await;
}

#[tokio::test]
async fn the_end_does_not_wait_for_streams_that_have_none() {
    let mut bench = bench().await;
    let _open = bench.start("/x/Watch").await;
    bench.end.cancel();
    let ended = tokio::time::timeout(GOODBYE * 3, &mut bench.proxy).await;
    ended.unwrap().unwrap();
}

async fn wait(is_so: impl AsyncFn() -> bool) {
    for _ in 0..300 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited in vain");
}
