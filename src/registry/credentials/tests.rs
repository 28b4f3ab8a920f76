//! Sources of credentials, each against what it really talks to: a program, an API server, a
//! registry that refuses.

mod exec_login;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt as _;

use super::*;
use crate::oci::Digest;
use crate::registry::testing::{FakeRegistry, Gatekeeper, Reply};
use crate::registry::{Client, Config as RegistryConfig};

/// A plugin that says what stands in a file, and counts its runs.
struct Plugin {
    folder: tempfile::TempDir,
}

impl Plugin {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let script = format!(
            "#!/bin/sh\ncat >> {asked}\necho >> {asked}\n[ \"$1 $TOLD\" = 'get told' ] || exit 3\n\
             [ -e {answer} ] || {{ echo no metadata service >&2; exit 1; }}\ncat {answer}\n",
            asked = at("asked").display(),
            answer = at("answer").display(),
        );
        std::fs::write(at("plugin"), script).unwrap();
        std::fs::set_permissions(at("plugin"), PermissionsExt::from_mode(0o755)).unwrap();
        let config = "
kind: CredentialProviderConfig
apiVersion: kubelet.config.k8s.io/v1
providers:
- name: plugin
  matchImages: ['127.0.0.*', '127.0.0.1:*', '*.r.io']
  defaultCacheDuration: 1h
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  args: [get]
  env: [{name: TOLD, value: told}]
";
        std::fs::write(at("config.yaml"), config).unwrap();
        Self { folder }
    }

    fn says(&self, kind: &str, life: &str, key: &str, password: &str) {
        let answer = format!(
            r#"{{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1",
            "cacheKeyType":"{kind}","cacheDuration":{life},
            "auth":{{"{key}":{{"username":"u","password":"{password}"}}}}}}"#
        );
        // Replaced whole: it may be read at any moment.
        let fresh = self.folder.path().join("fresh");
        std::fs::write(&fresh, answer).unwrap();
        std::fs::rename(fresh, self.folder.path().join("answer")).unwrap();
    }

    fn says_nothing(&self) {
        std::fs::remove_file(self.folder.path().join("answer")).unwrap();
    }

    fn asked(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.folder.path().join("asked")).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn providers(&self) -> Providers {
        let config = Config {
            provider_config: Some(self.folder.path().join("config.yaml")),
            provider_bin_dir: Some(self.folder.path().to_owned()),
            provider_timeout: Duration::from_secs(20),
            ..Config::default()
        };
        Providers::new(&config).unwrap()
    }
}

fn password(text: &str) -> Credential {
    Credential::Password {
        username: "u".to_owned(),
        password: Secret::new(text.to_owned()),
    }
}

async fn passwords(source: &dyn Credentials, image: &str) -> Vec<Credential> {
    let (host, repository) = image.split_once('/').unwrap();
    let found = source.find(host, repository).await.unwrap();
    found.into_iter().map(|found| found.credential).collect()
}

#[tokio::test]
async fn a_plugin_is_asked_once_for_what_its_answer_holds_for() {
    for (kind, runs) in [("Image", 3), ("Registry", 2), ("Global", 1)] {
        let plugin = Plugin::new();
        plugin.says(kind, "\"1h\"", "*.r.io", "p");
        let providers = plugin.providers();
        for _ in 0..2 {
            for image in ["a.r.io/one", "a.r.io/two", "b.r.io/one"] {
                assert_eq!(
                    passwords(&providers, image).await,
                    [password("p")],
                    "{kind} {image}"
                );
            }
        }
        assert_eq!(passwords(&providers, "other.io/one").await, []);
        assert_eq!(plugin.asked().len(), runs, "{kind}");
        assert_eq!(plugin.asked()[0]["image"], "a.r.io/one");
        assert_eq!(plugin.asked()[0]["kind"], "CredentialProviderRequest");
    }
    // An answer for one registry says nothing about another, whatever it may be kept for.
    let plugin = Plugin::new();
    plugin.says("Global", "\"1h\"", "a.r.io/team", "p");
    let providers = plugin.providers();
    assert_eq!(passwords(&providers, "b.r.io/team/x").await, []);
    assert_eq!(
        passwords(&providers, "a.r.io/team/x").await,
        [password("p")]
    );
    assert_eq!(passwords(&providers, "a.r.io/x").await, []);
}

#[tokio::test]
async fn an_answer_is_renewed_when_it_ends_and_when_it_is_refused() {
    let plugin = Plugin::new();
    plugin.says("Image", "\"3s\"", "a.r.io", "one");
    let providers = Arc::new(plugin.providers());
    let found = providers.find("a.r.io", "x").await.unwrap();
    assert!(
        found[0].until.is_some(),
        "whoever uses it knows when it ends"
    );
    plugin.says("Image", "\"1h\"", "a.r.io", "two");
    tokio::time::sleep(Duration::from_millis(3100)).await;
    let together = (0..8).map(|_| {
        let providers = Arc::clone(&providers);
        tokio::spawn(async move { passwords(&*providers, "a.r.io/x").await })
    });
    for one in together.collect::<Vec<_>>() {
        assert_eq!(one.await.unwrap(), [password("two")]);
    }
    assert_eq!(plugin.asked().len(), 2, "one run for all who wait");

    plugin.says("Image", "\"1h\"", "a.r.io", "three");
    providers.refused("a.r.io", "x", &password("other"));
    assert_eq!(passwords(&*providers, "a.r.io/x").await, [password("two")]);
    providers.refused("a.r.io", "x", &password("two"));
    assert_eq!(
        passwords(&*providers, "a.r.io/x").await,
        [password("three")]
    );
    assert_eq!(plugin.asked().len(), 3);
    // A plugin that has nothing new is not run for every refusal.
    for _ in 0..5 {
        providers.refused("a.r.io", "x", &password("three"));
        assert_eq!(
            passwords(&*providers, "a.r.io/x").await,
            [password("three")]
        );
    }
    assert_eq!(plugin.asked().len(), 4);
}

#[tokio::test]
async fn a_plugin_that_fails_takes_nothing_away_and_says_why() {
    let plugin = Plugin::new();
    let providers = plugin.providers();
    let error = providers.find("a.r.io", "x").await.unwrap_err();
    assert!(error.to_string().contains("no metadata service"), "{error}");
    assert!(error.is_transient(), "it may be over soon");
    plugin.says("Image", "\"2s\"", "a.r.io", "hunter2");
    assert_eq!(
        passwords(&providers, "a.r.io/x").await,
        [password("hunter2")]
    );
    plugin.says_nothing();
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(
        passwords(&providers, "a.r.io/x").await,
        [password("hunter2")]
    );

    for (answer, why) in [
        ("hunter2", "json"),
        (
            r#"{"kind":"hunter2","apiVersion":"x","cacheKeyType":"Image"}"#,
            "kind",
        ),
        (
            r#"{"kind":"CredentialProviderResponse","apiVersion":"v0","cacheKeyType":"Image"}"#,
            "apiVersion",
        ),
    ] {
        std::fs::write(plugin.folder.path().join("answer"), answer).unwrap();
        let text = plugin
            .providers()
            .find("a.r.io", "x")
            .await
            .unwrap_err()
            .to_string();
        assert!(text.contains(why) && !text.contains("hunter2"), "{text}");
    }
    std::fs::write(plugin.folder.path().join("config.yaml"), "kind: Pod").unwrap();
    let error = plugin.providers().find("a.r.io", "x").await.unwrap_err();
    assert!(error.to_string().contains("Pod"), "{error}");
}

/// A registry with one blob, and a client of these credentials.
fn guarded(credentials: impl Credentials + 'static) -> (FakeRegistry, Client, Digest) {
    let server = FakeRegistry::start();
    let digest = Digest::of(&[7; 1000]);
    let path = format!("/v2/a/b/blobs/{digest}");
    server.add(&path, "application/octet-stream", &[7; 1000]);
    let config = RegistryConfig {
        retries: 1,
        deadline: Duration::from_secs(5),
        ..RegistryConfig::default()
    };
    (server, Client::new(config, Arc::new(credentials)), digest)
}

async fn read(client: &Client, server: &FakeRegistry, digest: Digest) -> Result<(), Error> {
    let image = format!("{}/a/b:t", server.host()).parse().unwrap();
    let blob = client.blob(&image, digest, 1000)?;
    let mut pieces = blob.range(0..1000).await?;
    while let Some(piece) = pieces.next().await {
        piece?;
    }
    Ok(())
}

fn basic(password: &str) -> Gatekeeper {
    Gatekeeper::Basic(STANDARD.encode(format!("u:{password}")))
}

#[tokio::test]
async fn a_password_that_is_changed_is_asked_for_again_whatever_the_refusal() {
    // As Amazon's registry does it: the password itself ends, and the refusal is a 403.
    for status in [401, 403] {
        let plugin = Plugin::new();
        let (server, client, digest) = guarded(plugin.providers());
        let host = server.host();
        // The registry's port is not known to the plugin's configuration in advance.
        let config = plugin.folder.path().join("config.yaml");
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, text.replace("127.0.0.1:*", &host)).unwrap();
        plugin.says("Registry", "\"12h\"", &host, "old");
        server.guard(basic("old"));
        for _ in 0..3 {
            read(&client, &server, digest).await.unwrap();
        }
        assert_eq!(plugin.asked().len(), 1);
        plugin.says("Registry", "\"12h\"", &host, "new");
        server.guard(basic("new"));
        let old = format!("Basic {}", STANDARD.encode("u:old"));
        server.script(move |seen, _| {
            let is_old = seen.header("authorization") == Some(&old);
            (is_old && status == 403).then(|| Reply::new(403).body("token has expired"))
        });
        for _ in 0..3 {
            read(&client, &server, digest).await.unwrap();
        }
        assert_eq!(plugin.asked().len(), 2, "one run for one change");

        // Refused for good, each password is shown once more, and the registry's word is passed on.
        server.script(|seen, _| {
            let is_shown = seen.header("authorization").is_some();
            is_shown.then(|| Reply::new(403).body("account closed"))
        });
        let before = server.seen().len();
        let error = read(&client, &server, digest).await.unwrap_err();
        assert!(error.is_unauthorized(), "{error}");
        assert!(server.seen().len() - before <= 4, "no storm");
    }
}

#[tokio::test]
async fn a_source_that_fails_hides_neither_another_nor_a_public_image() {
    struct Broken;
    impl Credentials for Broken {
        fn find<'a>(&'a self, _: &'a str, _: &'a str) -> Finding<'a> {
            Box::pin(async {
                Err(Error::Credentials {
                    place: "broken".to_owned(),
                    why: "on purpose".to_owned(),
                    passing: false,
                })
            })
        }
        fn place(&self) -> String {
            "broken".to_owned()
        }
    }
    let pulled = Pulled::default();
    let chain = Chain(vec![Arc::new(Broken), Arc::new(pulled.clone())]);
    let (server, client, digest) = guarded(chain);
    server.guard(Gatekeeper::Bearer {
        realm: None,
        life: Duration::from_secs(60),
        login: None,
    });
    read(&client, &server, digest).await.unwrap();
    server.guard(basic("p"));
    let text = read(&client, &server, digest)
        .await
        .unwrap_err()
        .to_string();
    assert!(text.contains("on purpose"), "{text}");
    let image = format!("{}/a/b:t", server.host()).parse().unwrap();
    pulled.learn(&image, password("wrong")).keep();
    pulled.learn(&image, password("p")).keep();
    pulled.learn(&image, password("revoked")).keep();
    read(&client, &server, digest).await.unwrap();
}

/// An API server with these pull secrets, by name; two a page.
fn api_server(token: &'static str) -> FakeRegistry {
    let server = FakeRegistry::start();
    server.script(move |seen, _| {
        if seen.header("authorization") != Some(&format!("Bearer {token}")) {
            return Some(Reply::new(401));
        }
        None
    });
    server
}

fn secret(name: &str, config: &str) -> String {
    let data = STANDARD.encode(config);
    format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"n"}},"data":{{".dockerconfigjson":"{data}"}}}}"#
    )
}

fn login(key: &str, password: &str) -> String {
    let auth = STANDARD.encode(format!("u:{password}"));
    format!(r#"{{"auths":{{"{key}":{{"auth":"{auth}"}}}}}}"#)
}

fn kubeconfig(folder: &Path, server: &str) -> PathBuf {
    let path = folder.join("kubeconfig");
    std::fs::write(folder.join("token"), "secret-token\n").unwrap();
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
         clusters: [{{name: c, cluster: {{server: \"{server}\"}}}}]\n\
         users: [{{name: u, user: {{tokenFile: token}}}}]\n\
         contexts: [{{name: here, context: {{cluster: c, user: u}}}}]\n"
    );
    std::fs::write(&path, text).unwrap();
    path
}

fn pull_secrets(kubeconfig: PathBuf, namespaces: &[&str]) -> PullSecrets {
    let config = Config {
        kubeconfig: Some(kubeconfig),
        pull_secret_namespaces: namespaces.iter().map(|&name| name.to_owned()).collect(),
        pull_secrets_refresh: Duration::from_millis(300),
        ..Config::default()
    };
    PullSecrets::new(&config).unwrap()
}

#[tokio::test]
async fn pull_secrets_are_listed_by_pages_and_only_read() {
    let server = FakeRegistry::start();
    server.script(|seen, _| {
        assert_eq!(seen.method, "GET");
        if seen.header("authorization") != Some("Bearer secret-token") {
            return Some(Reply::new(401));
        }
        if !seen
            .target
            .contains("fieldSelector=type%3Dkubernetes.io%2Fdockerconfigjson")
        {
            return Some(Reply::new(400));
        }
        let page = match seen.target.contains("continue=next%2F1") {
            false => format!(
                r#"{{"metadata":{{"continue":"next/1"}},"items":[{},{}]}}"#,
                secret("broken", "hunter2"),
                secret("one", &login("r.io", "one")),
            ),
            true => format!(
                r#"{{"metadata":{{}},"items":[{},{{"metadata":{{"name":"empty"}}}}]}}"#,
                secret("two", &login("https://r.io/team", "two")),
            ),
        };
        Some(Reply::new(200).body(page))
    });
    let folder = tempfile::tempdir().unwrap();
    let secrets = pull_secrets(kubeconfig(folder.path(), &server.url("/prefix")), &[]);
    assert_eq!(
        passwords(&secrets, "r.io/team/x").await,
        [password("two"), password("one")]
    );
    assert_eq!(passwords(&secrets, "r.io/x").await, [password("one")]);
    assert_eq!(passwords(&secrets, "q.io/x").await, []);
    assert_eq!(
        server.count("/prefix/api/v1/secrets"),
        2,
        "one list of two pages"
    );

    let secrets = pull_secrets(kubeconfig(folder.path(), &server.url("")), &["x", "y"]);
    passwords(&secrets, "r.io/x").await;
    assert_eq!(server.count("/api/v1/namespaces/x/secrets"), 2);
    assert_eq!(server.count("/api/v1/namespaces/y/secrets"), 2);
}

#[tokio::test]
async fn pull_secrets_are_listed_again_when_needed_and_outlive_the_api_server() {
    let server = api_server("secret-token");
    let say = |password: &str| {
        let page = format!(r#"{{"items":[{}]}}"#, secret("s", &login("r.io", password)));
        server.add("/api/v1/secrets", "application/json", page.as_bytes());
    };
    let folder = tempfile::tempdir().unwrap();
    let secrets = pull_secrets(kubeconfig(folder.path(), &server.url("")), &[]);
    say("one");
    assert_eq!(passwords(&secrets, "r.io/x").await, [password("one")]);
    say("two");
    secrets.refused("r.io", "x", &password("one"));
    assert_eq!(passwords(&secrets, "r.io/x").await, [password("two")]);
    for _ in 0..5 {
        secrets.refused("r.io", "x", &password("two"));
        passwords(&secrets, "r.io/x").await;
    }
    assert_eq!(
        server.count("/api/v1/secrets"),
        3,
        "a secret that stays wrong is no reason"
    );

    let secrets = pull_secrets(kubeconfig(folder.path(), &server.url("")), &[]);
    passwords(&secrets, "r.io/x").await;
    say("three");
    tokio::time::sleep(Duration::from_millis(350)).await;
    assert_eq!(passwords(&secrets, "r.io/x").await, [password("three")]);
    server.script(|_, _| Some(Reply::new(503)));
    tokio::time::sleep(Duration::from_millis(350)).await;
    assert_eq!(passwords(&secrets, "r.io/x").await, [password("three")]);

    let fresh = pull_secrets(kubeconfig(folder.path(), &server.url("")), &[]);
    let error = fresh.find("r.io", "x").await.unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains("503"),
        "{error}"
    );
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_used_is_named_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    for (from, to, why) in [
        ("current-context: here", "current-context: there", "there"),
        (
            "server: \"http://127.0.0.1:1\"",
            "server: \"http://api.example\"",
            "in the clear",
        ),
        ("tokenFile: token", "exec: {command: aws}", "exec"),
        ("tokenFile: token", "tokenFile: missing", "tokenFile"),
        (
            "tokenFile: token",
            "client-certificate-data: '!', client-key-data: '!'",
            "base64",
        ),
        ("clusters:", "clusters: hunter2 #", "not a kubeconfig"),
    ] {
        let path = kubeconfig(folder.path(), "http://127.0.0.1:1");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let text = pull_secrets(path, &[])
            .find("r.io", "x")
            .await
            .unwrap_err()
            .to_string();
        assert!(text.contains(why) && text.contains("kubeconfig"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}
