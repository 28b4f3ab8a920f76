//! The content store: blobs by digest, verified by containerd when they are committed.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::services::content::v1 as api;
use super::services::content::v1::WriteAction;
use super::services::content::v1::content_client::ContentClient;
use super::{Containerd, Error, MAX_MESSAGE, error, size, types};
use crate::oci::{Descriptor, Digest};

/// Most bytes of one message of a write.
const PIECE: usize = 1 << 20;

/// A blob that the content store has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its size in bytes.
    pub size: u64,
    /// Its labels.
    pub labels: HashMap<String, String>,
}

/// A blob that is being written. Dropped, it stays as far as it is, and is gone on with by the next
/// who writes it, until it is collected.
pub struct Ingest {
    containerd: Containerd,
    blob: Descriptor,
    name: String,
    requests: mpsc::Sender<api::WriteContentRequest>,
    answers: Streaming<api::WriteContentResponse>,
    offset: u64,
}

impl Containerd {
    fn content(&self) -> ContentClient<super::Calls> {
        let (channel, headers) = self.calls();
        ContentClient::with_interceptor(channel, headers).max_decoding_message_size(MAX_MESSAGE)
    }

    /// What is known of a blob, if it is there.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn stored(&self, digest: Digest) -> Result<Option<Stored>, Error> {
        let request = api::InfoRequest {
            digest: digest.to_string(),
        };
        let failed = self.failed(&format!("looking for content {digest}"));
        let answer = self.content().info(request).await.map_err(failed);
        let info = error::if_found(answer)?.and_then(|answer| answer.into_inner().info);
        Ok(info.map(|info| Stored {
            size: u64::try_from(info.size).unwrap_or(0),
            labels: info.labels,
        }))
    }

    /// A blob of at most `max` bytes, verified, if it is there.
    ///
    /// # Errors
    /// containerd does not answer, or what it has is larger or not what its name says.
    pub async fn read(&self, digest: Digest, max: u64) -> Result<Option<Vec<u8>>, Error> {
        let wrong = |why: String| Error::Content { digest, why };
        match self.stored(digest).await? {
            None => return Ok(None),
            Some(stored) if stored.size > max => {
                return Err(wrong(format!(
                    "has {} bytes, more than the {max} it may have",
                    stored.size
                )));
            }
            Some(_) => {}
        }
        let request = api::ReadContentRequest {
            digest: digest.to_string(),
            offset: 0,
            size: 0,
        };
        let doing = format!("reading content {digest}");
        let answer = self.content().read(request).await;
        let mut pieces = answer.map_err(self.failed(&doing))?.into_inner();
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.message().await.map_err(self.failed(&doing))? {
            bytes.extend_from_slice(&piece.data);
            if bytes.len() as u64 > max {
                return Err(wrong(format!(
                    "sends more than the {max} bytes it may have"
                )));
            }
        }
        match Digest::of(&bytes) {
            got if got == digest => Ok(Some(bytes)),
            got => Err(wrong(format!("is damaged: what is there has digest {got}"))),
        }
    }

    /// Sets labels of a blob; its others stay.
    ///
    /// # Errors
    /// It is not there, or containerd does not answer.
    pub async fn label(
        &self,
        digest: Digest,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), Error> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let request = api::UpdateRequest {
            info: Some(api::Info {
                digest: digest.to_string(),
                labels: labels.clone().into_iter().collect(),
                ..api::Info::default()
            }),
            update_mask: Some(types::Fields { paths }),
        };
        let failed = self.failed(&format!("labelling content {digest}"));
        let done = self.content().update(request).await;
        done.map(drop).map_err(failed)
    }

    /// Begins to write a blob, or goes on where an earlier write under this name has stopped;
    /// `None` if the blob is there.
    ///
    /// # Errors
    /// Somebody else is writing it ([`super::Kind::Unavailable`]), or containerd does not answer.
    pub async fn ingest(&self, name: &str, blob: &Descriptor) -> Result<Option<Ingest>, Error> {
        let doing = format!("writing content {}", blob.digest);
        let (requests, waiting) = mpsc::channel(1);
        let first = api::WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: name.to_owned(),
            total: size(blob.size),
            expected: blob.digest.to_string(),
            ..api::WriteContentRequest::default()
        };
        // It is a new channel: there is room.
        let _ = requests.send(first).await;
        let answers = self.content().write(ReceiverStream::new(waiting)).await;
        let mut answers = match answers.map_err(self.failed(&doing)) {
            Ok(answers) => answers.into_inner(),
            Err(error) if error.is_exists() => return Ok(None),
            Err(error) => return Err(error),
        };
        let answer = match answers.message().await.map_err(self.failed(&doing)) {
            Ok(answer) => answer.unwrap_or_default(),
            Err(error) if error.is_exists() => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(Ingest {
            containerd: self.clone(),
            blob: blob.clone(),
            name: name.to_owned(),
            requests,
            answers,
            offset: u64::try_from(answer.offset).unwrap_or(0),
        }))
    }

    /// Forgets what was written of a blob so far; that there is nothing is no error.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn abort(&self, name: &str) -> Result<(), Error> {
        let request = api::AbortRequest {
            r#ref: name.to_owned(),
        };
        let failed = self.failed(&format!("giving up the write {name}"));
        let done = self.content().abort(request).await.map_err(failed);
        error::if_found(done).map(drop)
    }
}

impl Ingest {
    /// How many bytes are there: the next that is wanted.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Adds the bytes that come next.
    ///
    /// # Errors
    /// Somebody else has brought the blob meanwhile ([`super::Kind::Exists`]), or containerd cannot write
    /// them.
    pub async fn write(&mut self, bytes: &Bytes) -> Result<(), Error> {
        let mut rest = bytes.clone();
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(PIECE));
            let request = self.request(WriteAction::Write);
            let written = self.ask(api::WriteContentRequest {
                data: piece.into(),
                ..request
            });
            self.offset = u64::try_from(written.await?.offset).unwrap_or(0);
        }
        Ok(())
    }

    /// Has containerd compare the digest, and keeps the blob with these labels.
    ///
    /// # Errors
    /// It has another digest or size ([`super::Kind::Precondition`]), somebody else has brought it meanwhile
    /// ([`super::Kind::Exists`]), or it cannot be kept.
    pub async fn commit(mut self, labels: &BTreeMap<String, String>) -> Result<(), Error> {
        let request = self.request(WriteAction::Commit);
        let committed = self.ask(api::WriteContentRequest {
            labels: labels.clone().into_iter().collect(),
            ..request
        });
        committed.await.map(drop)
    }

    fn request(&self, action: WriteAction) -> api::WriteContentRequest {
        api::WriteContentRequest {
            action: action.into(),
            r#ref: self.name.clone(),
            total: size(self.blob.size),
            expected: self.blob.digest.to_string(),
            offset: size(self.offset),
            ..api::WriteContentRequest::default()
        }
    }

    async fn ask(
        &mut self,
        request: api::WriteContentRequest,
    ) -> Result<api::WriteContentResponse, Error> {
        let doing = format!("writing content {}", self.blob.digest);
        // If nobody takes it any more, the answer says why.
        let _ = self.requests.send(request).await;
        let answer = self.answers.message().await;
        let answer = answer.map_err(self.containerd.failed(&doing))?;
        answer.ok_or_else(|| {
            let ended = tonic::Status::unavailable("containerd broke off");
            self.containerd.failed(&doing)(ended)
        })
    }
}
