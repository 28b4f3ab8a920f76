//! Push to and pull from a real docker-registry, open and behind a password.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crfs::oci::{Descriptor, Digest, Manifest, MediaType, Reference};
use crfs::registry::{Client, Config, DockerConfig, Error, Payload, Pushed};
use futures::TryStreamExt as _;

/// `user:secret`, as `htpasswd -B` writes it and as HTTP sends it.
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
const BASIC: &str = "dXNlcjpzZWNyZXQ=";

/// A docker-registry with its own folder, ended when dropped.
struct Registry {
    process: Child,
    folder: tempfile::TempDir,
    host: String,
}

impl Registry {
    fn start(private: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // A port that was free a moment ago; the registry cannot choose one itself.
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let host = format!("127.0.0.1:{port}");
        let root = folder.path().display();
        let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {root}/htpasswd\n");
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: \
             {root}/data\nhttp:\n  addr: {host}\n{}",
            if private { &auth } else { "" }
        );
        fs::write(folder.path().join("htpasswd"), HTPASSWD).unwrap();
        fs::write(folder.path().join("registry.yml"), config).unwrap();
        // `run.sh` says where it has unpacked it.
        let program = std::env::var_os("CRFS_BED_REGISTRY");
        let mut command = Command::new(program.unwrap_or_else(|| "docker-registry".into()));
        command.arg("serve").arg(folder.path().join("registry.yml"));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().expect("docker-registry is installed");
        let registry = Self {
            process,
            folder,
            host,
        };
        let start = Instant::now();
        while TcpStream::connect(&registry.host).is_err() {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "it does not listen"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    fn image(&self, name: &str) -> Reference {
        format!("{}/{name}", self.host).parse().unwrap()
    }

    /// A client that reads its credentials from a file of this text.
    fn client(&self, docker_config: &str) -> Client {
        let path = self.folder.path().join("config.json");
        fs::write(&path, docker_config).unwrap();
        let config = Config {
            docker_config: Some(path),
            retries: 1,
            ..Config::default()
        };
        let credentials = Arc::new(DockerConfig::new(&config));
        Client::new(config, credentials)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn descriptor(kind: &str, content: &[u8]) -> Descriptor {
    let (digest, size) = (Digest::of(content), content.len());
    let json = format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":{size}}}"#);
    serde_json::from_str(&json).unwrap()
}

fn file(path: &Path, content: &[u8]) -> Payload {
    fs::write(path, content).unwrap();
    Payload::File {
        path: path.to_owned(),
        size: content.len() as u64,
    }
}

/// Pushes an image of one layer and reads it back in every way.
async fn round_trip(registry: &Registry, client: &Client) {
    let image = registry.image("some/where:tag");
    let layer: Vec<u8> = (0..1_500_000_u32).flat_map(u32::to_be_bytes).collect();
    let config = Bytes::from_static(b"{}");
    let payload = file(&registry.folder.path().join("layer"), &layer);
    let digest = Digest::of(&layer);
    assert!(!client.has_blob(&image, digest).await.unwrap());
    let pushed = client
        .push_blob(&image, digest, &payload, None)
        .await
        .unwrap();
    assert_eq!(pushed, Pushed::Uploaded);
    let small = Payload::Bytes(config.clone());
    client
        .push_blob(&image, Digest::of(&config), &small, None)
        .await
        .unwrap();

    let kind = MediaType::OciManifest;
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(kind.clone()),
        config: descriptor("application/vnd.oci.image.config.v1+json", &config),
        layers: vec![descriptor(
            "application/vnd.oci.image.layer.v1.tar+gzip",
            &layer,
        )],
        annotations: Default::default(),
        extra: Default::default(),
    };
    let json = Bytes::from(serde_json::to_vec(&manifest).unwrap());
    let put = client
        .put_manifest(&image, &kind, json.clone())
        .await
        .unwrap();
    for image in [image.clone(), image.with_digest(put)] {
        let fetched = client.manifest(&image).await.unwrap();
        assert_eq!((fetched.media_type, fetched.digest), (kind.clone(), put));
        assert_eq!(fetched.bytes, json);
    }

    let whole = client
        .blob_bytes(&image, &manifest.layers[0], 10_000_000)
        .await
        .unwrap();
    assert!(whole == layer);
    let source = client.blob(&image, digest, layer.len() as u64).unwrap();
    let pieces: Vec<Bytes> = source
        .range(4_000_000..4_100_000)
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    assert!(pieces.concat() == layer[4_000_000..4_100_000]);

    let other = registry.image("other:tag");
    let mounted = client
        .push_blob(&other, digest, &payload, Some("some/where"))
        .await
        .unwrap();
    assert_eq!(mounted, Pushed::Mounted);
    let again = client
        .push_blob(&other, digest, &payload, None)
        .await
        .unwrap();
    assert_eq!(again, Pushed::Existed);
}

#[tokio::test]
async fn an_image_survives_the_way_there_and_back() {
    let registry = Registry::start(false);
    round_trip(&registry, &registry.client("{}")).await;
}

#[tokio::test]
async fn a_private_registry_opens_to_the_right_password_only() {
    let registry = Registry::start(true);
    let auths = |auth: &str| format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, registry.host);
    for (json, hint) in [
        ("{}".to_owned(), "no credentials for it in"),
        (auths("dXNlcjp3cm9uZw=="), "were refused"),
    ] {
        let error = registry
            .client(&json)
            .manifest(&registry.image("a:b"))
            .await
            .unwrap_err();
        assert!(error.is_unauthorized(), "{error}");
        assert!(error.to_string().contains(hint), "{error}");
    }
    round_trip(&registry, &registry.client(&auths(BASIC))).await;
}

#[tokio::test]
async fn what_a_real_registry_refuses_is_told_apart() {
    let registry = Registry::start(false);
    let client = registry.client("{}");
    let image = registry.image("a:b");
    let error = client.manifest(&image).await.unwrap_err();
    assert!(
        error.is_not_found() && error.to_string().contains("MANIFEST_UNKNOWN"),
        "{error}"
    );
    let wrong = Payload::Bytes(Bytes::from_static(b"not this"));
    let error = client
        .push_blob(&image, Digest::of(b"this"), &wrong, None)
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::Status { status: 400, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("DIGEST_INVALID"), "{error}");
    let content = vec![7; 1_000];
    let payload = Payload::Bytes(Bytes::from(content.clone()));
    client
        .push_blob(&image, Digest::of(&content), &payload, None)
        .await
        .unwrap();
    // A descriptor that promises more than there is.
    let source = client.blob(&image, Digest::of(&content), 2_000).unwrap();
    assert!(matches!(
        source.range(1_500..1_600).await.err(),
        Some(Error::Unsatisfiable { .. })
    ));
    assert!(matches!(
        source.range(0..100).await.err(),
        Some(Error::Protocol(_))
    ));
}
