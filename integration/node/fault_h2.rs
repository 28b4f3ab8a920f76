//! A registry that speaks HTTP/2, and breaks its rules when told to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::server::{Builder, SendResponse};
use http::{Request, Response};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::fake_registry::FakeRegistry;

/// What goes wrong, once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// The stream is reset in the middle of the body.
    ResetStream,
    /// Every stream is reset before its head, as fast as they come.
    RapidReset,
    /// The connection says GOAWAY in the middle of the body, and ends.
    GoAway,
    /// Settings, without end.
    SettingsFlood,
    /// A head, without end.
    ContinuationFlood,
    /// A head, and then nothing; the connection lives, and answers pings.
    Silent,
    /// Bytes that are no frames.
    Garbage,
}

/// The server; it ends with the value.
pub struct Http2 {
    address: SocketAddr,
    shared: Arc<Shared>,
    _runtime: Runtime,
}

struct Shared {
    content: FakeRegistry,
    fault: Mutex<Option<Fault>>,
    asked: AtomicUsize,
    /// Connections of an earlier round end.
    round: watch::Sender<u32>,
    streams: AtomicUsize,
}

impl Http2 {
    /// Serves what was added to `content`, by TLS.
    pub fn start(content: &FakeRegistry, tls: Arc<rustls::ServerConfig>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            content: content.clone(),
            fault: Mutex::new(None),
            asked: AtomicUsize::new(0),
            round: watch::channel(0).0,
            streams: AtomicUsize::new(100),
        });
        let (acceptor, server) = (TlsAcceptor::from(tls), Arc::clone(&shared));
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, server) = (acceptor.clone(), Arc::clone(&server));
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(socket).await {
                        server.converse(stream).await;
                    }
                });
            }
        });
        Self {
            address,
            shared,
            _runtime: runtime,
        }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Ends all connections and forgets the count; the next connection does this.
    pub fn next(&self, fault: Option<Fault>, streams: usize) {
        *self.shared.fault.lock() = fault;
        self.shared.streams.store(streams, Ordering::SeqCst);
        self.shared.round.send_modify(|round| *round += 1);
        self.shared.asked.store(0, Ordering::SeqCst);
    }

    /// Requests for blobs.
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }
}

impl Shared {
    async fn converse(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut fault = self.fault.lock().take();
        if let Some(fault @ (Fault::SettingsFlood | Fault::ContinuationFlood | Fault::Garbage)) =
            fault
        {
            // It ends when the client hangs up.
            let _ = flood(stream, fault).await;
            return;
        }
        let streams = u32::try_from(self.streams.load(Ordering::SeqCst)).unwrap();
        let mut builder = Builder::new();
        builder.max_concurrent_streams(streams);
        let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else {
            return;
        };
        let mut round = self.round.subscribe();
        let (leave, mut leaving) = watch::channel(false);
        loop {
            tokio::select! {
                _ = round.changed() => return,
                _ = leaving.changed() => {
                    connection.abrupt_shutdown(Reason::INTERNAL_ERROR);
                    while let Some(Ok(_)) = connection.accept().await {}
                    return;
                }
                next = connection.accept() => {
                    let Some(Ok((request, respond))) = next else { return };
                    let (server, leave) = (Arc::clone(&self), leave.clone());
                    // The others break the first stream only.
                    let fault = match fault {
                        Some(Fault::RapidReset) => fault,
                        _ => fault.take(),
                    };
                    tokio::spawn(async move {
                        // A client that went away is none of the server's business.
                        let _ = server.answer(&request, respond, fault).await;
                        if fault == Some(Fault::GoAway) {
                            leave.send_replace(true);
                        }
                    });
                }
            }
        }
    }

    async fn answer<T>(
        &self,
        request: &Request<T>,
        mut respond: SendResponse<Bytes>,
        fault: Option<Fault>,
    ) -> Result<(), h2::Error> {
        let path = request.uri().path();
        let range = request
            .headers()
            .get("range")
            .and_then(|range| range.to_str().ok());
        self.asked
            .fetch_add(usize::from(range.is_some()), Ordering::SeqCst);
        if fault == Some(Fault::RapidReset) {
            respond.send_reset(Reason::REFUSED_STREAM);
            return Ok(());
        }
        let Some(content) = self.content.content(path) else {
            respond.send_response(Response::builder().status(404).body(()).unwrap(), true)?;
            return Ok(());
        };
        let bounds = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let (start, end) = match bounds {
            Some((first, last)) => (first.parse().unwrap(), last.parse::<usize>().unwrap() + 1),
            None => (0, content.len()),
        };
        let head = Response::builder()
            .status(if range.is_some() { 206 } else { 200 })
            .header(
                "content-range",
                format!("bytes {start}-{}/{}", end - 1, content.len()),
            )
            .body(())
            .unwrap();
        let mut stream = respond.send_response(head, false)?;
        let body = Bytes::from(content).slice(start..end);
        if fault == Some(Fault::Silent) {
            tokio::time::sleep(Duration::from_secs(20)).await;
            return Ok(());
        }
        if matches!(fault, Some(Fault::ResetStream | Fault::GoAway)) {
            stream.send_data(body.slice(..60_000.min(body.len())), false)?;
            tokio::time::sleep(Duration::from_millis(200)).await;
            if fault == Some(Fault::ResetStream) {
                stream.send_reset(Reason::INTERNAL_ERROR);
            }
            return Ok(());
        }
        stream.send_data(body, true)
    }
}

/// A frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

async fn flood(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    fault: Fault,
) -> std::io::Result<()> {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await?;
    if fault == Fault::Garbage {
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")
            .await?;
        return stream.flush().await;
    }
    stream.write_all(&frame(4, 0, 0, &[])).await?;
    stream.flush().await?;
    // Until the request has come, which begins stream 1.
    tokio::time::sleep(Duration::from_millis(200)).await;
    if fault == Fault::ContinuationFlood {
        stream.write_all(&frame(1, 0, 1, &[0x88])).await?;
    }
    // A header that is never indexed: x: yyy…
    let header = [&[0x10, 1, b'x', 100][..], &[b'y'; 100]]
        .concat()
        .repeat(100);
    let one = match fault {
        Fault::ContinuationFlood => frame(9, 0, 1, &header),
        _ => frame(4, 0, 0, &[]).repeat(1000),
    };
    loop {
        stream.write_all(&one).await?;
        stream.flush().await?;
    }
}
