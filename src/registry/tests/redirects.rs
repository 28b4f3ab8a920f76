//! Redirects: where they may lead, what goes along, and what is remembered.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::*;
use crate::registry::testing::{Gatekeeper, Reply};

/// A registry that keeps its blob at a second host, under `/signed`.
fn with_storage(size: usize) -> (FakeRegistry, FakeRegistry, Vec<u8>, String) {
    let (server, content, path) = with_blob(size);
    let storage = FakeRegistry::start_on("127.0.0.2:0");
    storage.add("/signed", "x", &content);
    let target = storage.url("/signed?key=1");
    server.script(move |seen, _| {
        let may = seen.header("authorization").is_some();
        (may && seen.path().contains("/blobs/")).then(|| Reply::redirect(target.clone()))
    });
    server.guard(Gatekeeper::Basic("dTpw".to_owned()));
    (server, storage, content, path)
}

struct Login;

impl Credentials for Login {
    fn find<'a>(
        &'a self,
        _host: &'a str,
        _repository: &'a str,
    ) -> futures::future::BoxFuture<'a, Result<Vec<Found>, Error>> {
        Box::pin(async {
            Ok(vec![Found {
                credential: Credential::Password {
                    username: "u".to_owned(),
                    password: Secret::new("p".to_owned()),
                },
                place: "test".to_owned(),
                until: None,
            }])
        })
    }

    fn place(&self) -> String {
        "test".to_owned()
    }
}

fn private_client() -> Client {
    let config = Config {
        allow_private: vec!["127.0.0.2".to_owned()],
        ..impatient()
    };
    Client::new(config, Arc::new(Login))
}

#[tokio::test]
async fn the_storage_host_is_remembered_and_gets_no_credentials() {
    let (server, storage, content, path) = with_storage(10_000);
    let client = private_client();
    let source = source(&client, &server, &content);
    for start in (0..10_000).step_by(1_000) {
        let got = read(&source, start, start + 1_000).await.unwrap();
        assert!(got == content[start as usize..][..1_000]);
    }
    assert_eq!(server.count(&path), 2, "the challenge, then one redirect");
    assert_eq!(storage.count("/signed"), 10);
    for seen in storage.seen() {
        for secret in ["authorization", "cookie", "referer"] {
            assert_eq!(seen.header(secret), None, "{secret}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_url_is_renewed_once_for_all_who_read() {
    let (server, storage, content, path) = with_storage(64_000);
    let client = private_client();
    let source = source(&client, &server, &content);
    read(&source, 0, 1).await.unwrap();
    let target = storage.url("/signed?key=2");
    server.script(move |seen, _| {
        seen.path().contains("/blobs/").then(|| Reply {
            delay: Some(Duration::from_millis(100)),
            ..Reply::redirect(target.clone())
        })
    });
    storage.script(|seen, _| seen.target.ends_with("key=1").then(|| Reply::new(403)));
    let before = server.count(&path);
    read_at_once(&source, &content, 16).await;
    assert_eq!(server.count(&path) - before, 1);
}

/// So many read a blob at once.
async fn read_at_once(source: &Arc<dyn RangeSource>, content: &[u8], readers: u64) {
    let readers = (0..readers).map(|n| {
        let source = Arc::clone(source);
        tokio::spawn(async move { read(&source, n * 4_000, (n + 1) * 4_000).await })
    });
    for (n, reader) in readers.collect::<Vec<_>>().into_iter().enumerate() {
        assert!(reader.await.unwrap().unwrap() == content[n * 4_000..][..4_000]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_readers_ask_a_registry_that_redirects_once() {
    let (server, storage, content, path) = with_storage(64_000);
    let client = private_client();
    // Another repository of the same registry has told.
    let other = format!("{}/a/c:t", server.host()).parse().unwrap();
    let other = client.blob(&other, Digest::of(&content), 64_000).unwrap();
    read(&other, 0, 1).await.unwrap();
    storage.reset();
    read_at_once(&source(&client, &server, &content), &content, 16).await;
    assert_eq!(server.count(&path), 2, "the challenge, then one redirect");
    assert_eq!(storage.count("/signed"), 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_few_of_the_first_readers_ask_a_registry_that_nobody_knows() {
    let (server, storage, content, path) = with_storage(64_000);
    read_at_once(&source(&private_client(), &server, &content), &content, 16).await;
    let asked = server.count(&path);
    assert!(
        (2..=12).contains(&asked),
        "{asked}: a challenge and a redirect for six at most"
    );
    assert_eq!(storage.count("/signed"), 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_another_where_the_registry_serves_itself() {
    let (server, content, path) = with_blob(64_000);
    let blob = content.clone();
    server.script(move |seen, _| {
        let (start, end) = seen.range()?;
        Some(Reply {
            delay: Some(Duration::from_secs(1)),
            ..Reply::part(&blob, start, end)
        })
    });
    let patient = Config {
        progress_timeout: Duration::from_secs(5),
        ..impatient()
    };
    let client = Client::new(patient, Arc::new(Anonymous));
    let source = source(&client, &server, &content);
    let began = Instant::now();
    read_at_once(&source, &content, 6).await;
    assert!(
        began.elapsed() < Duration::from_millis(1900),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(server.count(&path), 6);
}

#[tokio::test]
async fn redirects_that_lead_astray_are_refused() {
    let (server, content, path) = with_blob(1_000);
    let long = format!("/{}", "x".repeat(20_000));
    for location in [
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/x",
        "http://[fd00::1]/x",
        "http://[fe80::1]/x",
        "file:///etc/passwd",
        "unix:/run/x",
        "ftp://127.0.0.1/x",
        "http://",
        "",
        &long,
        "http://127.0.0.1:1/\u{e9}",
    ] {
        let target = location.to_owned();
        server.script(move |_, _| Some(Reply::redirect(target.clone())));
        let client = client();
        let error = read(&source(&client, &server, &content), 0, 10)
            .await
            .unwrap_err();
        let refused = matches!(error, Error::Redirect { .. } | Error::Egress { .. });
        assert!(refused, "{location}: {error}");
        assert_eq!(client.traffic().requests(), 1, "{location}");
    }
    server.script(|_, _| Some(Reply::new(307)));
    let error = read(&source(&client(), &server, &content), 0, 10)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("no location"), "{error}");

    let turn = AtomicUsize::new(0);
    server.script(move |_, _| {
        Some(Reply::redirect(format!(
            "/loop{}",
            turn.fetch_add(1, Ordering::Relaxed)
        )))
    });
    let client = client();
    let error = read(&source(&client, &server, &content), 0, 10)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Redirect { .. }), "{error}");
    assert_eq!(client.traffic().requests(), 6);
    assert!(server.count(&path) > 0);
}

#[tokio::test]
async fn nested_and_relative_redirects_are_followed() {
    let (server, storage, content, _) = with_storage(1_000);
    let away = storage.url("/hop?to=1");
    server.script(move |seen, _| match seen.path() {
        "/v2/a/b/elsewhere" => Some(Reply::redirect(away.clone())),
        path if path.contains("/blobs/") => Some(Reply::redirect("../elsewhere")),
        _ => None,
    });
    storage.script(|seen, _| (seen.path() == "/hop").then(|| Reply::redirect("signed")));
    let client = private_client();
    assert!(
        read(&source(&client, &server, &content), 0, 1_000)
            .await
            .unwrap()
            == content
    );
}

#[tokio::test]
async fn a_foreign_host_cannot_ask_for_credentials() {
    let (server, storage, content, _) = with_storage(1_000);
    let realm = format!("Bearer realm=\"{}\"", storage.url("/token"));
    storage.script(move |seen, _| match seen.path() {
        "/signed" => Some(Reply::new(401).with("www-authenticate", realm.clone())),
        _ => None,
    });
    let client = private_client();
    let error = read(&source(&client, &server, &content), 0, 10)
        .await
        .unwrap_err();
    assert!(error.is_unauthorized(), "{error}");
    assert_eq!(storage.count("/token"), 0);
    assert!(
        storage
            .seen()
            .iter()
            .all(|seen| seen.header("authorization").is_none())
    );
}

#[tokio::test]
async fn coming_back_home_does_not_bring_credentials_back() {
    let (server, storage, content, _) = with_storage(1_000);
    let back = server.url("/back");
    storage.script(move |_, _| Some(Reply::redirect(back.clone())));
    let client = private_client();
    let error = read(&source(&client, &server, &content), 0, 10)
        .await
        .unwrap_err();
    assert!(error.is_unauthorized(), "{error}");
    let seen = server.seen().pop().unwrap();
    assert_eq!((seen.path(), seen.header("authorization")), ("/back", None));
}

#[tokio::test]
async fn https_is_never_given_up() {
    use crate::registry::transport::resolve;
    let base = "https://r.io/v2/a/blobs/x".parse().unwrap();
    assert!(resolve(&base, "http://r.io/x").is_err());
    assert!(resolve(&base, "http://storage.io/x").is_err());
    let url = resolve(&base, "https://user:pass@storage.io/x#f").unwrap();
    assert_eq!(url.as_str(), "https://storage.io/x");
}

#[tokio::test]
async fn a_host_that_is_not_listed_is_asked_by_tls_only() {
    // 0.0.0.0 reaches this machine, but nobody says that it is loopback.
    let server = FakeRegistry::start_on("0.0.0.0:0");
    server.add("/v2/a/b/manifests/t", "x", br#"{"layers":[]}"#);
    let image = image(&server);
    let error = client().manifest(&image).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error}");
    assert!(error.to_string().contains("registry.plain_http"), "{error}");
    let config = Config {
        plain_http: vec![server.host()],
        ..impatient()
    };
    let listed = Client::new(config, Arc::new(Anonymous));
    listed.manifest(&image).await.unwrap();
}
