//! Several hosts for one registry: who is asked, in which order, with what, and what happens when one
//! does not help.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::registry::testing::{Gatekeeper, Reply};

/// A `certs.d` and two hosts for `reg.test`: a mirror and the registry itself.
pub(super) struct Node {
    pub(super) folder: TempDir,
    pub(super) mirror: FakeRegistry,
    pub(super) upstream: FakeRegistry,
    pub(super) content: Vec<u8>,
    /// Of the blob.
    pub(super) path: String,
}

const NAME: &str = "reg.test";

impl Node {
    fn new() -> Self {
        let (upstream, content, path) = with_blob(100_000);
        let mirror = FakeRegistry::start_on("127.0.0.2:0");
        mirror.add(&path, "x", &content);
        let node = Self {
            folder: tempfile::tempdir().unwrap(),
            mirror,
            upstream,
            content,
            path,
        };
        node.configure("");
        node
    }

    /// Writes `hosts.toml` with these keys for the mirror.
    fn configure(&self, keys: &str) {
        let (mirror, upstream) = (self.mirror.url(""), self.upstream.url(""));
        let text = format!("server = \"{upstream}\"\n[host.\"{mirror}\"]\n{keys}\n");
        hosts_toml(self.folder.path(), NAME, &text);
    }

    fn client_with(&self, credentials: Arc<dyn Credentials>) -> Client {
        let config_path = self.folder.path().display().to_string();
        let config = Config {
            config_path,
            ..impatient()
        };
        Client::new(config, credentials)
    }

    fn client(&self) -> Client {
        self.client_with(Arc::new(Anonymous))
    }

    fn source(&self, client: &Client) -> Arc<dyn RangeSource> {
        let image = "reg.test/a/b:t".parse().unwrap();
        let size = self.content.len() as u64;
        client
            .blob(&image, Digest::of(&self.content), size)
            .unwrap()
    }

    /// Reads a part of the blob and looks at it.
    async fn reads(&self, source: &Arc<dyn RangeSource>, start: u64, end: u64) {
        let got = read(source, start, end).await.unwrap();
        assert!(got == self.content[start as usize..end as usize]);
    }

    /// Requests for the blob: at the mirror, upstream.
    fn asked(&self) -> (usize, usize) {
        (
            self.mirror.count(&self.path),
            self.upstream.count(&self.path),
        )
    }
}

pub(super) fn hosts_toml(root: &Path, name: &str, text: &str) {
    let folder = root.join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("new"), text).unwrap();
    fs::rename(folder.join("new"), folder.join("hosts.toml")).unwrap();
}

/// A password for each host, which names it, and who asked.
struct ByHost(parking_lot::Mutex<Vec<String>>);

impl Credentials for ByHost {
    fn find<'a>(&'a self, host: &'a str, _: &'a str) -> Finding<'a> {
        self.0.lock().push(host.to_owned());
        let credential = Credential::Password {
            username: host.to_owned(),
            password: Secret::new("p".to_owned()),
        };
        let place = "test".to_owned();
        Box::pin(async {
            Ok(vec![Found {
                credential,
                place,
                until: None,
            }])
        })
    }

    fn place(&self) -> String {
        "test".to_owned()
    }
}

#[tokio::test]
async fn the_mirror_is_asked_first_and_told_for_whom() {
    let node = Node::new();
    let source = node.source(&node.client());
    for start in 0..10 {
        node.reads(&source, start * 1000, start * 1000 + 1000).await;
    }
    assert_eq!(node.asked(), (10, 0));
    assert_eq!(node.mirror.seen()[0].query("ns"), Some(NAME));

    // A file is read again when it changes, for a blob that is in use.
    hosts_toml(
        node.folder.path(),
        NAME,
        &format!("server = \"{}\"", node.upstream.url("")),
    );
    tokio::time::sleep(Duration::from_millis(1100)).await;
    node.reads(&source, 0, 10).await;
    assert_eq!(node.asked(), (10, 1));
    // ... and one that cannot be used changes nothing.
    hosts_toml(node.folder.path(), NAME, "server = 1");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    node.reads(&source, 0, 10).await;
    assert_eq!(node.asked(), (10, 2));
    let fresh = node.client();
    let image = "reg.test/a/b:t".parse().unwrap();
    let refused = fresh.blob(&image, Digest::of(b""), 1).err().unwrap();
    assert!(
        refused.to_string().contains("hosts.toml: server is not"),
        "{refused}"
    );
}

#[tokio::test]
async fn the_name_of_the_registry_is_no_mirror_of_itself() {
    let (server, content, path) = with_blob(1000);
    let folder = tempfile::tempdir().unwrap();
    let config = Config {
        config_path: format!("/nowhere:{}", folder.path().display()),
        ..impatient()
    };
    // A folder for the port, one for the name with a port, and one for everything else.
    let port = format!("{}_", server.host().replace(':', "_"));
    for (name, header) in [
        (port, "a"),
        (server.host(), "b"),
        ("_default".to_owned(), "c"),
    ] {
        hosts_toml(
            folder.path(),
            &name,
            &format!("[header]\nx-folder = \"{header}\""),
        );
    }
    let mut folders = Vec::new();
    for name in [port_folder(&server), server.host(), "_default".to_owned()] {
        let client = Client::new(config.clone(), Arc::new(Anonymous));
        read(&source(&client, &server, &content), 0, 10)
            .await
            .unwrap();
        let seen = server.seen().pop().unwrap();
        assert_eq!((seen.path(), seen.query("ns")), (path.as_str(), None));
        folders.push(seen.header("x-folder").unwrap().to_owned());
        fs::remove_dir_all(folder.path().join(name)).unwrap();
    }
    assert_eq!(folders, ["a", "b", "c"]);
}

fn port_folder(server: &FakeRegistry) -> String {
    format!("{}_", server.host().replace(':', "_"))
}

#[tokio::test]
async fn a_path_of_its_own_and_headers_are_for_that_host_only() {
    let node = Node::new();
    let storage = FakeRegistry::start_on("127.0.0.3:0");
    storage.add("/signed", "x", &node.content);
    let target = storage.url("/signed");
    node.mirror.script(move |seen, _| {
        let own = seen.path().starts_with("/own/path/a/b/blobs/sha256:");
        own.then(|| Reply::redirect(target.clone()))
    });
    let mirror = node.mirror.url("/own/path");
    let text = format!(
        "server = \"{}\"\n[host.\"{mirror}\"]\noverride_path = true\n[host.\"{mirror}\".header]\n\
         x-key = \"k\"\nauthorization = \"Basic own\"\naccept-encoding = \"br\"\n",
        node.upstream.url("")
    );
    hosts_toml(node.folder.path(), NAME, &text);
    let config = Config {
        config_path: node.folder.path().display().to_string(),
        allow_private: vec!["127.0.0.3".to_owned()],
        ..impatient()
    };
    let client = Client::new(config, Arc::new(Anonymous));
    let source = node.source(&client);
    node.reads(&source, 5, 500).await;
    let asked = node.mirror.seen().pop().unwrap();
    assert_eq!(asked.header("x-key"), Some("k"));
    assert_eq!(asked.header("authorization"), Some("Basic own"));
    assert_eq!(asked.header("accept-encoding"), Some("identity"));
    let led = storage.seen().pop().unwrap();
    for header in ["x-key", "authorization"] {
        assert_eq!(led.header(header), None, "{header} went on to another host");
    }
    assert_eq!(led.query("ns"), None);
    node.mirror.script(|_, _| Some(Reply::new(404)));
    storage.script(|_, _| Some(Reply::new(404)));
    node.reads(&source, 5, 500).await;
    let upstream = node.upstream.seen().pop().unwrap();
    assert_eq!(
        (upstream.header("x-key"), upstream.header("authorization")),
        (None, None)
    );
}

#[tokio::test]
async fn credentials_are_looked_up_by_the_host_that_asks_for_them() {
    let node = Node::new();
    let login = |server: &FakeRegistry| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(format!("{}:p", server.host()))
    };
    node.mirror.guard(Gatekeeper::Basic(login(&node.mirror)));
    node.upstream
        .guard(Gatekeeper::Basic(login(&node.upstream)));
    let credentials = Arc::new(ByHost(parking_lot::Mutex::default()));
    let client = node.client_with(credentials.clone());
    let source = node.source(&client);
    node.reads(&source, 0, 10).await;
    assert_eq!(node.upstream.count("/"), 0);
    node.mirror.script(|_, _| Some(Reply::new(404)));
    node.reads(&source, 0, 10).await;
    assert_eq!(
        *credentials.0.lock(),
        [node.mirror.host(), node.upstream.host()]
    );
}

#[tokio::test]
async fn what_the_mirror_lacks_or_refuses_comes_from_the_next_host() {
    for status in [400, 401, 403, 404, 410, 416, 200, 206] {
        let node = Node::new();
        node.mirror.script(move |_, _| Some(Reply::new(status)));
        let source = node.source(&node.client());
        for _ in 0..3 {
            node.reads(&source, 0, 1000).await;
        }
        assert_eq!(node.asked(), (1, 3), "{status}: the mirror is asked once");
    }
}

#[tokio::test]
async fn a_mirror_that_fails_rests_and_is_asked_again() {
    for status in [429, 500, 503] {
        let node = Node::new();
        node.mirror
            .script(move |_, n| (n < 1).then(|| Reply::new(status)));
        let source = node.source(&node.client());
        for _ in 0..3 {
            node.reads(&source, 0, 1000).await;
        }
        assert_eq!(node.asked(), (1, 3), "{status}");
        tokio::time::sleep(Duration::from_millis(1100)).await;
        node.reads(&source, 0, 1000).await;
        assert_eq!(node.asked(), (2, 3), "{status}");
    }
}

#[tokio::test]
async fn where_one_host_breaks_off_the_next_goes_on() {
    let node = Node::new();
    let whole = node.content.clone();
    node.mirror.script(move |seen, _| {
        let (start, end) = seen.range().unwrap();
        Some(Reply {
            cut: Some(30_000),
            ..Reply::part(&whole, start, end)
        })
    });
    let client = node.client();
    let source = node.source(&client);
    node.reads(&source, 0, 100_000).await;
    assert_eq!(node.upstream.seen()[0].range(), Some((30_000, 100_000)));
    assert_eq!(client.traffic().received(), 100_000, "no byte twice");
}

#[tokio::test]
async fn a_mirror_that_nobody_answers_at_is_tried_once() {
    let node = Node::new();
    let text = format!(
        "server = \"{}\"\n[host.\"http://127.0.0.1:1\"]\n[host.\"http://127.0.0.1:2\"]\n",
        node.upstream.url("")
    );
    hosts_toml(node.folder.path(), NAME, &text);
    let client = node.client();
    let source = node.source(&client);
    for _ in 0..5 {
        node.reads(&source, 0, 1000).await;
    }
    assert_eq!(client.traffic().requests(), 7);
}

#[tokio::test]
async fn a_mirror_that_serves_other_bytes_is_left_once_that_is_known() {
    let node = Node::new();
    node.mirror.add(&node.path, "x", &[9; 100_000]);
    let source = node.source(&node.client());
    assert_eq!(read(&source, 10, 20).await.unwrap(), [9; 10]);
    source.was_wrong(500..600);
    assert_eq!(
        read(&source, 10, 20).await.unwrap(),
        [9; 10],
        "it answered for others"
    );
    source.was_wrong(15..16);
    node.reads(&source, 10, 20).await;
    assert_eq!(node.asked(), (2, 1));

    // A whole blob is verified here: the next host is asked for all of it.
    let client = node.client();
    let json = format!(
        r#"{{"mediaType":"x","digest":"{}","size":100000}}"#,
        Digest::of(&node.content)
    );
    let blob = serde_json::from_str(&json).unwrap();
    let image = "reg.test/a/b:t".parse().unwrap();
    let whole = client.blob_bytes(&image, &blob, 1 << 20).await.unwrap();
    assert!(whole == node.content);
    assert_eq!(node.asked(), (3, 2));
    node.upstream.add(&node.path, "x", &[8; 100_000]);
    let error = client.blob_bytes(&image, &blob, 1 << 20).await.unwrap_err();
    assert!(matches!(error, Error::WrongContent { .. }), "{error}");
}

#[tokio::test]
async fn capabilities_decide_who_is_asked_for_what() {
    let node = Node::new();
    let manifest = br#"{"layers":[]}"#;
    let digest = Digest::of(manifest);
    for server in [&node.mirror, &node.upstream] {
        server.add("/v2/a/b/manifests/t", "x", manifest);
        server.add(&format!("/v2/a/b/manifests/{digest}"), "x", manifest);
    }
    node.configure("capabilities = [\"pull\"]");
    let client = node.client();
    let image: Reference = "reg.test/a/b:t".parse().unwrap();
    client.manifest(&image).await.unwrap();
    assert_eq!((node.mirror.count("/"), node.upstream.count("/")), (0, 1));
    client.manifest(&image.with_digest(digest)).await.unwrap();
    assert_eq!((node.mirror.count("/"), node.upstream.count("/")), (1, 1));
    // Wrong bytes for a digest: the next one's word counts.
    node.mirror
        .add(&format!("/v2/a/b/manifests/{digest}"), "x", b"{}");
    client.manifest(&image.with_digest(digest)).await.unwrap();
    assert_eq!((node.mirror.count("/"), node.upstream.count("/")), (2, 2));
    let pushed = client.put_manifest(
        &image,
        &crate::oci::MediaType::OciManifest,
        manifest[..].into(),
    );
    pushed.await.unwrap();
    assert_eq!((node.mirror.count("/"), node.upstream.count("/")), (2, 3));

    let text = format!(
        "server = \"{}\"\ncapabilities = [\"push\"]",
        node.upstream.url("")
    );
    hosts_toml(node.folder.path(), NAME, &text);
    let error = node.client().manifest(&image).await.unwrap_err();
    assert!(
        error.to_string().contains("capability \"resolve\""),
        "{error}"
    );
}

#[tokio::test]
async fn an_image_that_is_nowhere_is_said_at_once() {
    let node = Node::new();
    let start = std::time::Instant::now();
    node.mirror.script(|_, _| Some(Reply::new(503)));
    let image = "reg.test/a/b:nope".parse().unwrap();
    let error = node.client().manifest(&image).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn redirects_of_a_mirror_are_judged_like_any_others() {
    let node = Node::new();
    for location in [
        "http://169.254.169.254/x",
        "http://10.0.0.1/x",
        "http://[::ffff:100.64.0.1]/x",
    ] {
        let target = location.to_owned();
        node.mirror
            .script(move |_, _| Some(Reply::redirect(target.clone())));
        let client = node.client();
        let source = node.source(&client);
        node.reads(&source, 0, 10).await;
        assert_eq!(
            client.traffic().requests(),
            2,
            "{location}: the mirror, then upstream"
        );
    }
}
