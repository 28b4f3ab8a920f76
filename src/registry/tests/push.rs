//! Uploads against the scripted registry; the real one is in `integration/`.

use bytes::Bytes;

use super::*;
use crate::oci::MediaType;
use crate::registry::testing::Reply;

fn file(content: &[u8]) -> (tempfile::NamedTempFile, Payload) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    let payload = Payload::File {
        path: file.path().to_owned(),
        size: content.len() as u64,
    };
    (file, payload)
}

#[tokio::test]
async fn a_blob_is_sent_once_and_only_if_it_is_missing() {
    let server = FakeRegistry::start();
    let content = content(300_000);
    let digest = Digest::of(&content);
    let (_file, payload) = file(&content);
    let (client, image) = (client(), image(&server));
    assert!(!client.has_blob(&image, digest).await.unwrap());
    let pushed = client.push_blob(&image, digest, &payload, None);
    is_send(&pushed);
    assert_eq!(pushed.await.unwrap(), Pushed::Uploaded);
    let path = format!("/v2/a/b/blobs/{digest}");
    assert!(server.content(&path).unwrap() == content);
    let put = server
        .seen()
        .into_iter()
        .find(|seen| seen.method == "PUT")
        .unwrap();
    assert_eq!(put.header("content-length"), Some("300000"));
    assert!(
        put.target.contains("?state=a%2Fb&digest=sha256"),
        "{}",
        put.target
    );
    assert!(client.has_blob(&image, digest).await.unwrap());
    let again = client
        .push_blob(&image, digest, &payload, None)
        .await
        .unwrap();
    assert_eq!(again, Pushed::Existed);
    assert_eq!(client.traffic().sent(), 300_000);
}

#[tokio::test]
async fn a_broken_upload_is_started_anew() {
    let server = FakeRegistry::start();
    let content = content(100_000);
    let (_file, payload) = file(&content);
    server.script(|seen, _| {
        let first = seen.method == "PUT" && seen.path().ends_with("/uploads/1");
        first.then(|| Reply::new(500))
    });
    let digest = Digest::of(&content);
    let pushed = client()
        .push_blob(&image(&server), digest, &payload, None)
        .await;
    assert_eq!(pushed.unwrap(), Pushed::Uploaded);
    assert_eq!(
        server.count("/v2/a/b/blobs/uploads/"),
        4,
        "two uploads of two requests"
    );
    assert!(server.content(&format!("/v2/a/b/blobs/{digest}")).unwrap() == content);
}

#[tokio::test]
async fn a_blob_of_another_repository_is_mounted() {
    let server = FakeRegistry::start();
    let digest = Digest::of(b"x");
    server.script(|seen, _| seen.target.contains("mount=").then(|| Reply::new(201)));
    let payload = Payload::Bytes(Bytes::from_static(b"x"));
    let image = image(&server);
    let pushed = client()
        .push_blob(&image, digest, &payload, Some("c/d"))
        .await;
    assert_eq!(pushed.unwrap(), Pushed::Mounted);
    let post = server.seen().pop().unwrap();
    let query = post.target.split_once('?').unwrap().1;
    assert_eq!(
        query,
        format!(
            "mount={}&from=c%2Fd",
            digest.to_string().replace(':', "%3A")
        )
    );
}

#[tokio::test]
async fn what_cannot_be_sent_is_said() {
    let server = FakeRegistry::start();
    let (client, image) = (client(), image(&server));
    let missing = Payload::File {
        path: "/nonexistent/blob".into(),
        size: 1,
    };
    let error = client
        .push_blob(&image, Digest::of(b"x"), &missing, None)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("/nonexistent/blob"), "{error}");
    server.script(|seen, _| (seen.method == "POST").then(|| Reply::new(202)));
    let payload = Payload::Bytes(Bytes::from_static(b"x"));
    let error = client
        .push_blob(&image, Digest::of(b"x"), &payload, None)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Redirect { .. }), "{error}");
}

#[tokio::test]
async fn a_manifest_goes_under_its_tag_or_digest() {
    let server = FakeRegistry::start();
    let (client, image) = (client(), image(&server));
    let kind = MediaType::OciManifest;
    let body = Bytes::from_static(b"{\"layers\":[]}");
    let digest = client
        .put_manifest(&image, &kind, body.clone())
        .await
        .unwrap();
    assert_eq!(digest, Digest::of(&body));
    let fetched = client.manifest(&image).await.unwrap();
    assert_eq!((fetched.media_type, fetched.digest), (kind.clone(), digest));
    let pinned = image.with_digest(digest);
    client
        .put_manifest(&pinned, &kind, body.clone())
        .await
        .unwrap();
    assert!(
        server
            .content(&format!("/v2/a/b/manifests/{digest}"))
            .is_some()
    );
    let other = image.with_digest(Digest::of(b"other"));
    assert!(client.put_manifest(&other, &kind, body).await.is_err());
}
