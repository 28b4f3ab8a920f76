//! A tiny image in eStargz form, and a registry of this process that has nothing else: what a set-up is
//! tried with.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::header::{ACCEPT_RANGES, CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue, RANGE};
use hyper::server::conn::Http;
use hyper::service::service_fn;
use hyper::{Body, Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::convert::{self, Converter, LayoutSink, LayoutSource, Silent};
use crate::oci::{Digest, Platform};
use crate::stargz::write::Options;

/// The file in the image.
pub(super) const NAME: &str = "crfs-setup";
/// Its size: a few chunks.
const SIZE: usize = 200_000;
const TAG: &str = "latest";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What is in the file: bytes that hardly compress, the same every time.
pub(super) fn content() -> Vec<u8> {
    let mut state: u32 = 0x2545_f491;
    let next = || {
        // xorshift32 (Marsaglia): every value but zero once.
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(SIZE).collect()
}

/// Makes the image in `folder`, an OCI layout.
///
/// # Errors
/// The folder cannot be written.
pub(super) async fn make(folder: &Path, platform: &Platform) -> Result<PathBuf, convert::Error> {
    let (plain, lazy) = (folder.join("plain"), folder.join("lazy"));
    plain_layout(&plain, platform).map_err(|source| convert::Error::File {
        path: plain.clone(),
        source,
    })?;
    let converter = Converter::new(
        Box::new(LayoutSource::open(&plain, Some(TAG))?),
        Box::new(LayoutSink::create(&lazy, TAG)?),
        Options::default(),
        Arc::new(Silent),
    );
    converter.run().await?;
    Ok(lazy)
}

/// The image as one plain tar.
fn plain_layout(out: &Path, platform: &Platform) -> io::Result<()> {
    let blobs = out.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    let add = |bytes: &[u8], kind: &str| -> io::Result<Value> {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes)?;
        Ok(json!({ "mediaType": kind, "digest": digest.to_string(), "size": bytes.len() }))
    };
    let tar = tar();
    let layer = add(&tar, "application/vnd.oci.image.layer.v1.tar")?;
    let config = json!({
        "architecture": platform.architecture, "os": platform.os, "config": {},
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&tar).to_string()] },
    });
    let config = add(
        config.to_string().as_bytes(),
        "application/vnd.oci.image.config.v1+json",
    )?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer],
    });
    let mut entry = add(manifest.to_string().as_bytes(), MANIFEST)?;
    if let Some(entry) = entry.as_object_mut() {
        let name = json!({ "org.opencontainers.image.ref.name": TAG });
        entry.insert("annotations".to_owned(), name);
    }
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    std::fs::write(out.join("index.json"), index.to_string())?;
    std::fs::write(out.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
}

/// A ustar file with the one file (POSIX.1-1988: fields of octal text, padded to 512 bytes).
fn tar() -> Vec<u8> {
    let content = content();
    let mut header = [0_u8; 512];
    let mut put = |at: usize, text: &str| {
        let field = header.get_mut(at..at + text.len());
        field.map(|field| field.copy_from_slice(text.as_bytes()))
    };
    let size = format!("{:011o}", content.len());
    for (at, text) in [
        (0, NAME),
        (100, "0000644"),
        (108, "0000000"),
        (116, "0000000"),
        (124, size.as_str()),
        (136, "00000000000"),
        // The checksum counts as blanks while it is made.
        (148, "        "),
        (156, "0"),
        (257, "ustar\x0000"),
    ] {
        put(at, text);
    }
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    if let Some(field) = header.get_mut(148..156) {
        field.copy_from_slice(sum.as_bytes());
    }
    let mut tar = [&header[..], &content].concat();
    // The last block is filled up, and two empty ones end it.
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

/// Serves an OCI layout on a loopback port of its own until it is dropped.
pub(super) struct Registry {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Registry {
    pub(super) async fn start(layout: PathBuf) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let layout = layout.clone();
                let answers = service_fn(move |request| {
                    let response = answer(&layout, &request);
                    async move { Ok::<_, Infallible>(response) }
                });
                let served = Http::new()
                    .http1_only(true)
                    .serve_connection(connection, answers);
                // How it ends is the other side's affair.
                tokio::spawn(async move { drop(served.await) });
            }
        });
        Ok(Self { address, task })
    }

    /// The image in it.
    pub(super) fn image(&self) -> String {
        format!("{}/crfs-setup:{TAG}", self.address)
    }
}

/// What the distribution specification says of `GET` and `HEAD`, as far as a pull needs it.
fn answer(layout: &Path, request: &Request<Body>) -> Response<Body> {
    let path = request.uri().path();
    let empty = |status| {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        response
    };
    if path == "/v2/" {
        return empty(StatusCode::OK);
    }
    let Some((digest, kind)) = asked(layout, path) else {
        return empty(StatusCode::NOT_FOUND);
    };
    let Ok(bytes) = std::fs::read(layout.join("blobs/sha256").join(digest.hex())) else {
        return empty(StatusCode::NOT_FOUND);
    };
    let all = bytes.len();
    let range = request
        .headers()
        .get(RANGE)
        .and_then(|range| range_of(range.to_str().ok()?, all));
    let (status, part) = match &range {
        Some(range) => (
            StatusCode::PARTIAL_CONTENT,
            bytes.get(range.clone()).unwrap_or_default().to_vec(),
        ),
        None => (StatusCode::OK, bytes),
    };
    let length = part.len();
    let body = if request.method() == Method::HEAD {
        Body::empty()
    } else {
        part.into()
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let mut put = |name: HeaderName, text: String| {
        if let Ok(text) = HeaderValue::try_from(text) {
            headers.insert(name, text);
        }
    };
    put(CONTENT_TYPE, kind.to_owned());
    put(DIGEST, digest.to_string());
    put(ACCEPT_RANGES, "bytes".to_owned());
    put(hyper::header::CONTENT_LENGTH, length.to_string());
    if let Some(range) = range {
        put(
            CONTENT_RANGE,
            format!(
                "bytes {}-{}/{all}",
                range.start,
                range.end.saturating_sub(1)
            ),
        );
    }
    response
}

/// The blob that a path asks for, and its media type.
fn asked(layout: &Path, path: &str) -> Option<(Digest, &'static str)> {
    let (kind, what) = path.strip_prefix("/v2/crfs-setup/")?.split_once('/')?;
    match kind {
        "blobs" => Some((what.parse().ok()?, "application/octet-stream")),
        "manifests" if what == TAG => {
            let index = std::fs::read(layout.join("index.json")).ok()?;
            let index: Value = serde_json::from_slice(&index).ok()?;
            let digest = index.get("manifests")?.get(0)?.get("digest")?.as_str()?;
            Some((digest.parse().ok()?, MANIFEST))
        }
        "manifests" => Some((what.parse().ok()?, MANIFEST)),
        _ => None,
    }
}

/// `bytes=FIRST-LAST`, `bytes=FIRST-` within `all` bytes.
fn range_of(text: &str, all: usize) -> Option<std::ops::Range<usize>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let start: usize = first.parse().ok()?;
    let end = match last {
        "" => all,
        last => last.parse::<usize>().ok()?.checked_add(1)?.min(all),
    };
    (start < end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_within_the_blob() {
        for (text, range) in [
            ("bytes=0-9", Some(0..10)),
            ("bytes=5-", Some(5..100)),
            ("bytes=90-1000", Some(90..100)),
            ("bytes=100-", None),
            ("bytes=-5", None),
            ("lines=0-9", None),
        ] {
            assert_eq!(range_of(text, 100), range, "{text}");
        }
    }

    #[tokio::test]
    async fn the_image_can_be_lazy_and_its_file_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let layout = make(folder.path(), &"linux/amd64".parse().unwrap())
            .await
            .unwrap();
        let registry = Registry::start(layout).await.unwrap();
        let image = registry.image().parse().unwrap();
        let config = crate::registry::Config::default();
        let credentials = Arc::new(crate::registry::DockerConfig::new(&config));
        let client = crate::registry::Client::new(config, credentials);
        let fetched = client.manifest(&image).await.unwrap();
        let manifest = crate::oci::Manifest::parse(&fetched.bytes).unwrap();
        assert_eq!(manifest.layers.len(), 1);
        let annotations = &manifest.layers[0].annotations;
        assert!(
            annotations.contains_key(crate::oci::annotation::TOC_DIGEST),
            "{annotations:?}"
        );
        assert!(manifest.layers[0].size > SIZE as u64 / 2);
    }
}
