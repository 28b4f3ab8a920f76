//! Which image is found below an index that does not say all, or that names further indexes.

use super::{client, image};
use crate::oci::Digest;
use crate::registry::testing::FakeRegistry;
use crate::registry::{FindError, Unfound};

const TYPE: &str = "application/vnd.oci.image";
const ATTESTS: &str = r#","annotations":{"vnd.docker.reference.type":"attestation-manifest"}"#;

fn entry(kind: &str, json: &str, more: &str) -> String {
    let (digest, size) = (Digest::of(json.as_bytes()), json.len());
    format!(r#"{{"mediaType":"{TYPE}.{kind}.v1+json","digest":"{digest}","size":{size}{more}}}"#)
}

fn on(architecture: &str) -> String {
    format!(r#","platform":{{"os":"linux","architecture":"{architecture}"}}"#)
}

fn put(server: &FakeRegistry, at: &str, kind: &str, json: &str) {
    let media_type = format!("{TYPE}.{kind}.v1+json");
    let by_digest = Digest::of(json.as_bytes()).to_string();
    for name in [at, &by_digest] {
        let path = format!("/v2/a/b/manifests/{name}");
        server.add(&path, &media_type, json.as_bytes());
    }
}

/// An image whose config says a processor, or a manifest that is no image.
fn manifest(server: &FakeRegistry, architecture: Option<&str>) -> String {
    let said = architecture.map_or_else(String::new, |architecture| {
        format!(r#""os":"linux","architecture":"{architecture}","#)
    });
    let config = format!(r#"{{{said}"rootfs":{{"type":"layers","diff_ids":[]}}}}"#);
    let path = format!("/v2/a/b/blobs/{}", Digest::of(config.as_bytes()));
    server.add(&path, "x", config.as_bytes());
    let kind = architecture.map_or("other", |_| "config");
    let config = entry(kind, &config, "");
    let json = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]}}"#);
    put(server, "unnamed", "manifest", &json);
    json
}

fn index(server: &FakeRegistry, entries: &[String]) -> String {
    let entries = entries.join(",");
    let json = format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#);
    put(server, "t", "index", &json);
    json
}

async fn found(server: &FakeRegistry) -> Result<Digest, FindError> {
    let platform = "linux/amd64".parse().unwrap();
    let found = client().find(&image(server), &platform).await;
    found.map(|found| found.document.digest)
}

#[tokio::test]
async fn an_image_is_found_where_the_index_does_not_say_its_platform() {
    let server = FakeRegistry::start();
    let (amd, arm) = (
        manifest(&server, Some("amd64")),
        manifest(&server, Some("arm64")),
    );
    let other = manifest(&server, None);
    let plain = |json: &String| entry("manifest", json, "");
    let ours = Digest::of(amd.as_bytes());
    let within = index(&server, &[plain(&arm), plain(&amd)]);
    let attested = entry("manifest", &amd, &format!("{}{ATTESTS}", on("amd64")));
    for entries in [
        vec![plain(&amd)],
        vec![plain(&arm), plain(&amd)],
        vec![plain(&other), plain(&amd)],
        vec![plain(&arm), entry("manifest", &amd, &on("amd64"))],
        vec![
            entry("manifest", &arm, &on("arm64")),
            entry("index", &within, ""),
        ],
        vec![entry("index", &within, &on("amd64"))],
    ] {
        index(&server, &entries);
        assert_eq!(found(&server).await.unwrap(), ours, "{entries:?}");
    }
    index(&server, &[plain(&arm), attested]);
    let error = found(&server).await.unwrap_err().to_string();
    let none = "the image has nothing for linux/amd64: it is for linux/arm64";
    assert_eq!(error, none);
}

#[tokio::test]
async fn indexes_within_indexes_are_followed_so_far() {
    let server = FakeRegistry::start();
    let amd = manifest(&server, Some("amd64"));
    let mut json = index(&server, &[entry("manifest", &amd, "")]);
    for _ in 0..2 {
        json = index(&server, &[entry("index", &json, "")]);
        assert_eq!(found(&server).await.unwrap(), Digest::of(amd.as_bytes()));
    }
    index(&server, &[entry("index", &json, "")]);
    let error = found(&server).await.unwrap_err();
    assert!(
        matches!(error, FindError::Unfound(Unfound::TooDeep(_))),
        "{error}"
    );

    let arm = manifest(&server, Some("arm64"));
    index(&server, &vec![entry("manifest", &arm, ""); 100]);
    let error = found(&server).await.unwrap_err();
    assert!(
        matches!(error, FindError::Unfound(Unfound::TooMany(_))),
        "{error}"
    );
}
