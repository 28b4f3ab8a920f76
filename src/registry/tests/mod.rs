//! The client against a scripted registry: what is asked, how often, and what comes of it.

mod auth;
mod faults;
mod mirrors;
mod push;
mod redirects;
mod search;
mod tls;
mod whole;

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt as _;

use crate::oci::{Digest, Reference};
use crate::registry::testing::FakeRegistry;
use crate::registry::*;

/// Limits small enough to run into.
fn impatient() -> Config {
    Config {
        config_path: String::new(),
        progress_timeout: Duration::from_millis(400),
        deadline: Duration::from_secs(8),
        retries: 4,
        max_pause: Duration::from_secs(1),
        ..Config::default()
    }
}

fn client() -> Client {
    Client::new(impatient(), Arc::new(Anonymous))
}

fn image(server: &FakeRegistry) -> Reference {
    format!("{}/a/b:t", server.host()).parse().unwrap()
}

/// Content in which every position can be told from every other one near it.
fn content(size: usize) -> Vec<u8> {
    (0..size as u32 / 4 + 1)
        .flat_map(u32::to_be_bytes)
        .take(size)
        .collect()
}

/// A registry with one blob of `size` bytes, its content and its path.
fn with_blob(size: usize) -> (FakeRegistry, Vec<u8>, String) {
    let server = FakeRegistry::start();
    let content = content(size);
    let path = format!("/v2/a/b/blobs/{}", Digest::of(&content));
    server.add(&path, "application/octet-stream", &content);
    (server, content, path)
}

fn source(client: &Client, server: &FakeRegistry, content: &[u8]) -> Arc<dyn RangeSource> {
    let size = content.len() as u64;
    client
        .blob(&image(server), Digest::of(content), size)
        .unwrap()
}

async fn read(source: &Arc<dyn RangeSource>, start: u64, end: u64) -> Result<Vec<u8>, Error> {
    let pieces = source.range(start..end).await?;
    pieces
        .try_fold(Vec::new(), |mut all, piece| async move {
            all.extend_from_slice(&piece);
            Ok(all)
        })
        .await
}

fn is_send(_: &impl Send) {}

#[tokio::test]
async fn a_range_is_asked_for_exactly() {
    let (server, content, path) = with_blob(100_000);
    let client = client();
    let source = source(&client, &server, &content);
    assert_eq!(server.seen().len(), 0);
    for (start, end) in [(0, 1), (99_999, 100_000), (5_000, 70_000), (0, 100_000)] {
        let got = read(&source, start, end).await.unwrap();
        assert!(
            got == content[start as usize..end as usize],
            "{start}..{end}"
        );
        let last = server.seen().pop().unwrap();
        assert_eq!(
            last.header("range"),
            Some(format!("bytes={start}-{}", end - 1).as_str())
        );
        assert_eq!(last.header("accept-encoding"), Some("identity"));
    }
    assert_eq!((server.count(&path), client.traffic().requests()), (4, 4));
    assert_eq!(client.traffic().received(), 165_002);
    for (start, end) in [(5, 5), (0, 100_001)] {
        assert!(read(&source, start, end).await.is_err());
    }
    assert_eq!(server.count(&path), 4);
}

#[tokio::test]
async fn manifests_are_typed_by_their_own_word_and_verified() {
    let server = FakeRegistry::start();
    let oci = "application/vnd.oci.image.manifest.v1+json";
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    let own = format!(r#"{{"schemaVersion":2,"mediaType":"{oci}","layers":[]}}"#);
    for (kind, body, expected) in [
        (oci, r#"{"layers":[]}"#, Some(oci)),
        (list, own.as_str(), Some(oci)),
        (
            "text/plain",
            r#"{"manifests":[]}"#,
            Some("application/vnd.oci.image.index.v1+json"),
        ),
        (list, r#"{"manifests":[]}"#, Some(list)),
        (
            "application/json; charset=utf-8",
            r#"{"layers":[]}"#,
            Some(oci),
        ),
        (oci, r#"{"manifests":[],"layers":[]}"#, None),
        (oci, "<html>", None),
    ] {
        server.add("/v2/a/b/manifests/t", kind, body.as_bytes());
        let got = client().manifest(&image(&server)).await;
        assert_eq!(
            got.ok()
                .map(|m| m.media_type.as_str().to_owned())
                .as_deref(),
            expected,
            "{body}"
        );
    }
    let accept = server
        .seen()
        .pop()
        .unwrap()
        .header("accept")
        .unwrap()
        .to_owned();
    assert_eq!(accept.split(", ").count(), 4);

    let pinned = image(&server).with_digest(Digest::of(b"{}"));
    let path = format!("/v2/a/b/manifests/{}", Digest::of(b"{}"));
    server.add(&path, oci, b"{}");
    assert_eq!(
        client().manifest(&pinned).await.unwrap().digest,
        Digest::of(b"{}")
    );
    server.add(&path, oci, b"{ }");
    let error = client().manifest(&pinned).await.unwrap_err();
    assert!(matches!(error, Error::WrongContent { .. }), "{error}");
    server.add(&path, oci, &vec![b' '; 9 << 20]);
    let error = client().manifest(&pinned).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn whole_blobs_are_verified() {
    let (server, content, path) = with_blob(70_000);
    let client = client();
    let json = format!(
        r#"{{"mediaType":"x","digest":"{}","size":{}}}"#,
        Digest::of(&content),
        content.len()
    );
    let blob = serde_json::from_str(&json).unwrap();
    let image = image(&server);
    let whole = client.blob_bytes(&image, &blob, 70_000);
    is_send(&whole);
    assert!(whole.await.unwrap() == content);
    let error = client.blob_bytes(&image, &blob, 69_999).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    let mut flipped = content.clone();
    flipped[40_000] ^= 1;
    server.add(&path, "x", &flipped);
    let error = client.blob_bytes(&image, &blob, 70_000).await.unwrap_err();
    assert!(matches!(error, Error::WrongContent { .. }), "{error}");
}
