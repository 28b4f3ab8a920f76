//! The client: manifests, blobs, and the registry hosts they are asked of.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use futures::stream;
use futures::{FutureExt as _, StreamExt as _};
use parking_lot::Mutex;
use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde_json::Value;

use crate::oci::{Descriptor, Digest, Hasher, MAX_MANIFEST, MediaType, Reference};
use crate::registry::auth::Scope;
use crate::registry::blob::RemoteBlob;
use crate::registry::credentials::Credentials;
use crate::registry::endpoint::{Call, Document, Endpoint};
use crate::registry::hosts::{Capability, Hosts};
use crate::registry::{ByteStream, Config, Error, RangeSource, Traffic};

/// What a manifest may be, for the `Accept` header.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";
/// Answers that are read ahead of a size that is not believed, in bytes.
const MAX_RESERVE: u64 = 16 << 20;

/// A client of all registries. Cheap to clone; clones share connections and tokens.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    config: Arc<Config>,
    credentials: Arc<dyn Credentials>,
    spool: Option<PathBuf>,
    traffic: Arc<Traffic>,
    registries: Mutex<HashMap<String, Arc<Hosts>>>,
}

/// A manifest or index, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// What it is, by its own word, else by the registry's.
    pub media_type: MediaType,
    /// Digest of `bytes`; the one asked for, if one was.
    pub digest: Digest,
    /// The document.
    pub bytes: Vec<u8>,
}

impl Client {
    /// A client that makes no request yet.
    #[must_use]
    pub fn new(config: Config, credentials: Arc<dyn Credentials>) -> Self {
        Self::with_spool(config, credentials, None)
    }

    /// The same. Where a registry sends all of a blob for each range of it, this is kept for a while in the folder
    /// `spool`, in a file without a name, and sent once; without a folder it is sent anew for each range.
    #[must_use]
    pub fn with_spool(
        config: Config,
        credentials: Arc<dyn Credentials>,
        spool: Option<PathBuf>,
    ) -> Self {
        Self(Arc::new(Inner {
            config: Arc::new(config),
            credentials,
            spool,
            traffic: Arc::default(),
            registries: Mutex::default(),
        }))
    }

    /// What this client has moved so far.
    #[must_use]
    pub fn traffic(&self) -> &Traffic {
        &self.0.traffic
    }

    /// Credentials are needed only for repositories (host, repository) that are `used`: others that
    /// were kept may be forgotten.
    pub fn retain_credentials(&self, used: &dyn Fn(&str, &str) -> bool) {
        self.0.credentials.retain(used);
    }

    /// The manifest or index of an image, of at most [`MAX_MANIFEST`] bytes. If the reference
    /// has a digest, the bytes have it too.
    ///
    /// # Errors
    /// The registry cannot be reached or refuses, or the document is not what it should be.
    pub async fn manifest(&self, image: &Reference) -> Result<Fetched, Error> {
        let hosts = self.hosts(image.host())?;
        let what: Arc<str> = format!("manifest {image}").into();
        let capability = match image.digest() {
            Some(_) => Capability::Pull,
            None => Capability::Resolve,
        };
        let attempt = |host| read_manifest(host, image, &what).boxed();
        hosts.ask(capability, &what, attempt).await
    }

    /// A blob of an image, to be read by ranges. Makes no request.
    ///
    /// # Errors
    /// The host of the reference cannot be spoken to at all.
    pub fn blob(
        &self,
        image: &Reference,
        digest: Digest,
        size: u64,
    ) -> Result<Arc<dyn RangeSource>, Error> {
        let hosts = self.hosts(image.host())?;
        Ok(Arc::new(RemoteBlob::new(
            hosts,
            image.repository(),
            digest,
            size,
            self.0.spool.clone(),
        )))
    }

    /// A whole blob of at most `max` bytes, verified.
    ///
    /// # Errors
    /// The blob is larger, cannot be had, or is not what the descriptor says.
    pub async fn blob_bytes(
        &self,
        image: &Reference,
        blob: &Descriptor,
        max: u64,
    ) -> Result<Vec<u8>, Error> {
        if blob.size > max {
            let what = format!(
                "blob {} of {}/{}",
                blob.digest,
                image.host(),
                image.repository()
            );
            return Err(Error::TooLarge {
                what: what.into(),
                max,
            });
        }
        let source = self.blob(image, blob.digest, blob.size)?;
        let mut others = self.hosts(image.host())?.all()?.len();
        loop {
            let mut pieces = whole(&*source, image).await?;
            let mut bytes = Vec::with_capacity(blob.size.min(MAX_RESERVE) as usize);
            let failure = loop {
                match pieces.next().await {
                    Some(Ok(piece)) => bytes.extend_from_slice(&piece),
                    Some(Err(error)) => break error,
                    None => return Ok(bytes),
                }
            };
            others -= 1;
            if !matches!(failure, Error::WrongContent { .. }) || others == 0 {
                return Err(failure);
            }
            source.was_wrong(0..blob.size);
        }
    }

    /// A whole blob as it arrives. The stream ends with an error if the bytes that came are not
    /// what the descriptor says: what was made of them must not be used then.
    ///
    /// # Errors
    /// The blob cannot be had.
    pub async fn blob_stream(
        &self,
        image: &Reference,
        blob: &Descriptor,
    ) -> Result<ByteStream, Error> {
        let source = self.blob(image, blob.digest, blob.size)?;
        whole(&*source, image).await
    }

    /// The hosts to ask for what references call `name`.
    pub(super) fn hosts(&self, name: &str) -> Result<Arc<Hosts>, Error> {
        let mut registries = self.0.registries.lock();
        if let Some(hosts) = registries.get(name) {
            return Ok(Arc::clone(hosts));
        }
        let (credentials, traffic) = (Arc::clone(&self.0.credentials), Arc::clone(&self.0.traffic));
        let hosts = Arc::new(Hosts::new(name, &self.0.config, credentials, traffic)?);
        registries.insert(name.to_owned(), Arc::clone(&hosts));
        Ok(hosts)
    }
}

/// What one host says a manifest is.
async fn read_manifest(
    endpoint: Arc<Endpoint>,
    image: &Reference,
    what: &Arc<str>,
) -> Result<Fetched, Error> {
    let selector = image.manifest_selector();
    let call = Call {
        method: Method::GET,
        url: endpoint.url(image.repository(), &format!("manifests/{selector}")),
        what: Arc::clone(what),
        scope: Scope::pull(image.repository()),
        headers: HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(ACCEPTED))]),
        payload: None,
    };
    let document = endpoint.read(&call, MAX_MANIFEST).await?;
    let digest = Digest::of(&document.bytes);
    if let Some(expected) = image.digest()
        && expected != digest
    {
        return Err(Error::WrongContent {
            what: call.what,
            host: document.host,
            got: digest,
        });
    }
    Ok(Fetched {
        media_type: media_type(&document)
            .map_err(|why| Error::Protocol(format!("{what}: {} sent {why}", document.host)))?,
        digest,
        bytes: document.bytes,
    })
}

async fn whole(source: &dyn RangeSource, image: &Reference) -> Result<ByteStream, Error> {
    let pieces = match source.size() {
        0 => stream::empty().boxed(),
        size => source.range(0..size).await?,
    };
    Ok(verified(pieces, image, source.digest()))
}

/// Passes `pieces` on and ends with an error if all of them together do not have `digest`.
fn verified(pieces: ByteStream, image: &Reference, digest: Digest) -> ByteStream {
    let what: Arc<str> = format!("blob {digest} of {}/{}", image.host(), image.repository()).into();
    let host = image.host().to_owned();
    let start = Some((pieces, Hasher::new()));
    let checked = stream::unfold(start, move |state| {
        let (what, host) = (Arc::clone(&what), host.clone());
        async move {
            let (mut pieces, mut hasher) = state?;
            match pieces.next().await {
                Some(Ok(piece)) => {
                    hasher.update(&piece);
                    Some((Ok(piece), Some((pieces, hasher))))
                }
                Some(Err(error)) => Some((Err(error), None)),
                None => match hasher.finish() {
                    got if got == digest => None,
                    got => Some((Err(Error::WrongContent { what, host, got }), None)),
                },
            }
        }
    });
    checked.boxed()
}

/// What a manifest is: its own `mediaType`, which its digest covers, goes before the header. A
/// document that reads as a manifest and as an index at once is neither (CVE-2021-41190).
fn media_type(document: &Document) -> Result<MediaType, &'static str> {
    let json: Value = serde_json::from_slice(&document.bytes).map_err(|_| "no json")?;
    let has = |key: &str| json.get(key).is_some();
    if has("manifests") && (has("config") || has("layers")) {
        return Err("a document that is both an index and a manifest");
    }
    let own = json.get("mediaType").and_then(Value::as_str);
    let header = document
        .headers
        .get(CONTENT_TYPE)
        .and_then(|v| v.to_str().ok());
    let header = header
        .and_then(|text| text.split(';').next())
        .map(str::trim);
    let said = own.or(header).map(|text| MediaType::from(text.to_owned()));
    Ok(match said {
        Some(known) if known.is_index() || known.is_manifest() => known,
        // OCI makes mediaType optional, and static hosts do not know content types.
        _ if has("manifests") => MediaType::OciIndex,
        _ if has("layers") && own.is_none() => MediaType::OciManifest,
        other => other.unwrap_or_else(|| MediaType::Other(String::new())),
    })
}
