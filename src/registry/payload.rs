//! What is uploaded: bytes or a file, readable again for every attempt.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures::stream;
use reqwest::RequestBuilder;
use reqwest::header::CONTENT_LENGTH;
use tokio::fs::File;
use tokio::io::AsyncReadExt as _;

use crate::registry::{Error, Traffic};

/// How much of a file is read at once, in bytes.
const PIECE: usize = 128 << 10;

/// Content to push.
#[derive(Debug, Clone)]
pub enum Payload {
    /// In memory.
    Bytes(Bytes),
    /// The whole of a file that does not change meanwhile.
    File {
        /// Where it is.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
}

/// How much of a payload is on its way.
#[derive(Clone)]
pub(super) struct Meter {
    bytes: Arc<AtomicU64>,
    traffic: Arc<Traffic>,
}

impl Payload {
    /// Size in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { size, .. } => *size,
        }
    }

    pub(super) async fn attach(
        &self,
        builder: RequestBuilder,
        meter: Meter,
    ) -> Result<RequestBuilder, Error> {
        let builder = builder.header(CONTENT_LENGTH, self.size());
        let body = match self {
            Self::Bytes(bytes) => {
                meter.count(bytes.len());
                reqwest::Body::from(bytes.clone())
            }
            Self::File { path, .. } => {
                let file = File::open(path).await.map_err(|e| local(path, e))?;
                reqwest::Body::wrap_stream(stream::try_unfold(file, move |mut file| {
                    let meter = meter.clone();
                    async move {
                        let mut piece = BytesMut::with_capacity(PIECE);
                        let got = file.read_buf(&mut piece).await?;
                        meter.count(got);
                        Ok::<_, std::io::Error>((got > 0).then(|| (piece.freeze(), file)))
                    }
                }))
            }
        };
        Ok(builder.body(body))
    }
}

impl Meter {
    pub(super) fn new(traffic: Arc<Traffic>) -> Self {
        Self {
            bytes: Arc::default(),
            traffic,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether nothing is left to be sent.
    pub(super) fn is_complete(&self, payload: Option<&Payload>) -> bool {
        payload.is_none_or(|payload| self.bytes() >= payload.size())
    }

    fn count(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.traffic.count_sent(bytes);
    }
}

fn local(path: &Path, source: std::io::Error) -> Error {
    Error::Local {
        path: path.display().to_string(),
        source: Arc::new(source),
    }
}
