//! Challenges, tokens and where credentials come from.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::registry::testing::{Gatekeeper, Reply};

const LIFE: Duration = Duration::from_secs(300);

fn bearer(login: Option<&str>) -> Gatekeeper {
    Gatekeeper::Bearer {
        realm: None,
        life: LIFE,
        login: login.map(|login| STANDARD.encode(login)),
    }
}

/// A client whose only credentials are those in a docker config of this text.
fn with_config(folder: &Path, json: &str) -> Client {
    let path = folder.join("config.json");
    std::fs::write(&path, json).unwrap();
    let config = Config {
        docker_config: Some(path),
        helper_timeout: Duration::from_millis(500),
        ..impatient()
    };
    let credentials = Arc::new(DockerConfig::new(&config));
    Client::new(config, credentials)
}

fn auths(server: &FakeRegistry, login: &str) -> String {
    let (host, auth) = (server.host(), STANDARD.encode(login));
    format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_renewed_once_for_all_who_read() {
    let (server, content, path) = with_blob(40_000);
    server.guard(bearer(None));
    let client = client();
    let source = source(&client, &server, &content);
    read(&source, 0, 1).await.unwrap();
    assert_eq!((server.count("/token"), server.count(&path)), (1, 2));
    read(&source, 0, 1).await.unwrap();
    assert_eq!(
        (server.count("/token"), server.count(&path)),
        (1, 3),
        "the token is kept"
    );
    server.revoke();
    server.script(|seen, _| {
        let slow = || std::thread::sleep(Duration::from_millis(100));
        (seen.path() == "/token").then(slow);
        None
    });
    let readers = (0..10u64).map(|n| {
        let source = Arc::clone(&source);
        tokio::spawn(async move { read(&source, n * 4_000, (n + 1) * 4_000).await })
    });
    for (n, reader) in readers.collect::<Vec<_>>().into_iter().enumerate() {
        assert!(reader.await.unwrap().unwrap() == content[n * 4_000..][..4_000]);
    }
    assert_eq!(server.count("/token"), 2);
}

#[tokio::test]
async fn short_tokens_are_renewed_before_they_end() {
    let (server, content, path) = with_blob(1_000);
    server.guard(Gatekeeper::Bearer {
        realm: None,
        life: Duration::from_secs(1),
        login: None,
    });
    let client = client();
    let source = source(&client, &server, &content);
    read(&source, 0, 1).await.unwrap();
    tokio::time::sleep(Duration::from_millis(950)).await;
    read(&source, 0, 1).await.unwrap();
    assert_eq!(
        (server.count("/token"), server.count(&path)),
        (2, 3),
        "no second refusal"
    );
}

#[tokio::test]
async fn a_token_is_asked_for_what_is_to_be_done() {
    let (server, content, _) = with_blob(1_000);
    server.guard(bearer(Some("u:p")));
    let folder = tempfile::tempdir().unwrap();
    let client = with_config(folder.path(), &auths(&server, "u:p"));
    read(&source(&client, &server, &content), 0, 1)
        .await
        .unwrap();
    let token = server
        .seen()
        .into_iter()
        .find(|seen| seen.path() == "/token")
        .unwrap();
    assert_eq!(
        token.target,
        "/token?service=test&scope=repository%3Aa%2Fb%3Apull"
    );
}

#[tokio::test]
async fn passwords_and_identity_tokens_open_the_door() {
    let folder = tempfile::tempdir().unwrap();
    let (server, content, _) = with_blob(1_000);
    let host = server.host();
    let auth = STANDARD.encode("u:p");
    for (json, basic, bearing) in [
        (
            format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#),
            true,
            true,
        ),
        (
            format!(r#"{{"auths":{{"http://{host}/v2/":{{"username":"u","password":"p"}}}}}}"#),
            true,
            true,
        ),
        (
            format!(r#"{{"auths":{{"{host}/a":{{"auth":"{auth}"}},"{host}":{{"auth":"eDp5"}}}}}}"#),
            true,
            true,
        ),
        (
            format!(r#"{{"auths":{{"{host}":{{"identitytoken":"dTpw"}}}}}}"#),
            false,
            true,
        ),
        (
            format!(r#"{{"auths":{{"{host}/c":{{"auth":"{auth}"}}}}}}"#),
            false,
            false,
        ),
        (
            format!(r#"{{"auths":{{"{host}":{{"auth":"eDp5"}}}}}}"#),
            false,
            false,
        ),
        (r#"{"credsStore":""}"#.to_owned(), false, false),
    ] {
        for (gate, opens) in [
            (Gatekeeper::Basic(auth.clone()), basic),
            (bearer(Some("u:p")), bearing),
        ] {
            server.guard(gate);
            let client = with_config(folder.path(), &json);
            let result = read(&source(&client, &server, &content), 0, 1).await;
            assert_eq!(result.is_ok(), opens, "{json}: {result:?}");
        }
    }
}

#[tokio::test]
async fn a_refusal_says_where_credentials_are_looked_for() {
    let (server, content, path) = with_blob(1_000);
    server.guard(Gatekeeper::Basic("dTpw".to_owned()));
    let folder = tempfile::tempdir().unwrap();
    let client = with_config(folder.path(), "{}");
    let error = read(&source(&client, &server, &content), 0, 1)
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(error.is_unauthorized() && text.contains("401"), "{text}");
    assert!(
        text.contains(&server.host()) && text.contains("no credentials"),
        "{text}"
    );
    assert!(text.contains("config.json"), "{text}");
    assert_eq!(server.count(&path), 1, "a refusal is not tried again");

    // A login that appears is used without a restart.
    with_config(folder.path(), &auths(&server, "u:p"));
    read(&source(&client, &server, &content), 0, 1)
        .await
        .unwrap();

    with_config(folder.path(), &auths(&server, "u:wrong"));
    let client = with_config(folder.path(), &auths(&server, "u:wrong"));
    let text = read(&source(&client, &server, &content), 0, 1)
        .await
        .unwrap_err()
        .to_string();
    assert!(text.contains("were refused"), "{text}");
    assert!(!text.contains("wrong"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_service_that_is_down_is_asked_once_by_all_together() {
    let (server, content, _) = with_blob(1_000);
    server.guard(bearer(None));
    // The service answers when all ten have been sent to it, however long this machine takes.
    let refused = Arc::new(AtomicU32::new(0));
    server.script(move |seen, _| {
        if seen.path() != "/token" {
            refused.fetch_add(1, Ordering::SeqCst);
            return None;
        }
        let until = Instant::now() + Duration::from_secs(20);
        while refused.load(Ordering::SeqCst) < 10 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(200));
        Some(Reply::new(503))
    });
    let config = Config {
        retries: 0,
        progress_timeout: Duration::from_secs(30),
        deadline: Duration::from_secs(30),
        ..impatient()
    };
    let client = Client::new(config, Arc::new(Anonymous));
    let readers = (0..10u64).map(|n| {
        let source = source(&client, &server, &content);
        tokio::spawn(async move { read(&source, n, n + 1).await })
    });
    for reader in readers.collect::<Vec<_>>() {
        let error = reader.await.unwrap().unwrap_err();
        assert!(
            matches!(error, Error::Status { status: 503, .. }),
            "{error}"
        );
    }
    // Who comes after an answer asks again; on a busy machine some of the ten come late.
    assert!(server.count("/token") <= 5, "{}", server.count("/token"));
    server.script(|_, _| None);
    read(&source(&client, &server, &content), 0, 1)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_foreign_realm_over_plain_http_gets_no_credentials() {
    let (server, content, _) = with_blob(1_000);
    let folder = tempfile::tempdir().unwrap();
    // Reaches this machine, but is neither the registry's host nor called loopback.
    let foreign = FakeRegistry::start_on("0.0.0.0:0");
    server.guard(Gatekeeper::Bearer {
        realm: Some(foreign.url("/token")),
        life: LIFE,
        login: None,
    });
    let client = with_config(folder.path(), &auths(&server, "u:p"));
    let result = read(&source(&client, &server, &content), 0, 1).await;
    assert!(result.is_err());
    let asked = foreign.seen();
    assert_eq!(asked.len(), 1, "without credentials it may be asked");
    assert_eq!(asked[0].header("authorization"), None);
}

#[tokio::test]
async fn an_identity_token_is_not_carried_to_another_host() {
    let (server, content, _) = with_blob(1_000);
    server.guard(bearer(None));
    let thief = FakeRegistry::start();
    let away = thief.url("/token");
    server.script(move |seen, _| (seen.path() == "/token").then(|| Reply::redirect(away.clone())));
    let folder = tempfile::tempdir().unwrap();
    let json = format!(
        r#"{{"auths":{{"{}":{{"identitytoken":"t"}}}}}}"#,
        server.host()
    );
    let client = with_config(folder.path(), &json);
    let error = read(&source(&client, &server, &content), 0, 1)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Redirect { .. }), "{error}");
    assert!(thief.seen().is_empty());
}

mod docker_config {
    use super::*;

    async fn find(folder: &Path, json: &str, host: &str) -> Result<Vec<Credential>, Error> {
        let path = folder.join("config.json");
        std::fs::write(&path, json).unwrap();
        let config = Config {
            docker_config: Some(path),
            helper_path: folder.display().to_string(),
            helper_timeout: Duration::from_millis(500),
            ..Config::default()
        };
        let found = DockerConfig::new(&config).find(host, "a/b").await?;
        Ok(found.into_iter().map(|found| found.credential).collect())
    }

    fn helper(folder: &Path, name: &str, script: &str) {
        let path = folder.join(format!("docker-credential-{name}"));
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    #[tokio::test]
    async fn helpers_are_asked_by_their_protocol() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let answer =
            r#"[ "$1" = get ] && printf '{"ServerURL":"x","Username":"%s","Secret":"s"}' "$(cat)""#;
        helper(folder, "echo", answer);
        helper(
            folder,
            "token",
            r#"cat >/dev/null; echo '{"Username":"<token>","Secret":"t"}'"#,
        );
        helper(
            folder,
            "none",
            "echo credentials not found in native keychain; exit 1",
        );
        let hub = password("https://index.docker.io/v1/", "s");
        let token = Credential::IdentityToken(Secret::new("t".to_owned()));
        let auths = r#""auths":{"r.io":{"auth":"dTpw"}}"#;
        let both = vec![password("r.io", "s"), password("u", "p")];
        for (json, host, expected) in [
            (
                r#"{"credsStore":"echo"}"#.to_owned(),
                "docker.io",
                vec![hub.clone()],
            ),
            (
                r#"{"credHelpers":{"docker.io":"echo"}}"#.to_owned(),
                "docker.io",
                vec![hub],
            ),
            (
                r#"{"credHelpers":{"r.io":"token"},"credsStore":"echo"}"#.to_owned(),
                "r.io",
                vec![token],
            ),
            (
                r#"{"credHelpers":{"r.io":"token"}}"#.to_owned(),
                "q.io",
                vec![],
            ),
            (r#"{"credsStore":"none"}"#.to_owned(), "r.io", vec![]),
            (
                format!(r#"{{"credsStore":"none",{auths}}}"#),
                "r.io",
                vec![password("u", "p")],
            ),
            (format!(r#"{{"credsStore":"echo",{auths}}}"#), "r.io", both),
            (
                format!(r#"{{"credsStore":"missing",{auths}}}"#),
                "r.io",
                vec![password("u", "p")],
            ),
        ] {
            assert_eq!(find(folder, &json, host).await.unwrap(), expected, "{json}");
        }
    }

    #[tokio::test]
    async fn helpers_that_fail_or_hang_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        helper(folder, "broken", "echo no keyring; exit 1");
        helper(folder, "garbage", "echo hello");
        helper(folder, "hanging", "exec sleep 77.25");
        for (name, why) in [
            ("broken", "no keyring"),
            ("garbage", "protocol"),
            ("hanging", "no answer within 500ms"),
            ("missing", "No such file"),
            ("../x", "no slash"),
        ] {
            let json = format!(r#"{{"credsStore":"{name}"}}"#);
            let text = find(folder, &json, "r.io").await.unwrap_err().to_string();
            assert!(text.contains(why) && text.contains(name), "{text}");
        }
        let ended = || {
            let processes = std::fs::read_dir("/proc").unwrap().flatten();
            let mut lines = processes.filter_map(|p| std::fs::read(p.path().join("cmdline")).ok());
            lines.all(|line| line != b"sleep\x0077.25\0")
        };
        for _ in 0..100 {
            if ended() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("a hanging helper goes on running");
    }

    fn password(username: &str, password: &str) -> Credential {
        Credential::Password {
            username: username.to_owned(),
            password: Secret::new(password.to_owned()),
        }
    }

    #[tokio::test]
    async fn keys_are_understood_in_all_their_spellings() {
        let folder = tempfile::tempdir().unwrap();
        for (key, host) in [
            ("https://index.docker.io/v1/", "docker.io"),
            ("index.docker.io", "docker.io"),
            ("docker.io", "docker.io"),
            ("registry-1.docker.io", "docker.io"),
            ("r.io:5000", "r.io:5000"),
            ("https://r.io", "r.io"),
            ("https://r.io/v2/", "r.io"),
            ("r.io/a", "r.io"),
            ("r.io/a/b", "r.io"),
        ] {
            let json = format!(r#"{{"auths":{{"{key}":{{"auth":"dTpwOng="}}}}}}"#);
            let found = find(folder.path(), &json, host).await.unwrap();
            assert_eq!(found, [password("u", "p:x")], "{key}");
        }
        for (key, host) in [
            ("r.io", "r.io:5000"),
            ("r.io/a/bc", "r.io"),
            ("evilr.io", "r.io"),
        ] {
            let json = format!(r#"{{"auths":{{"{key}":{{"auth":"dTpw"}}}}}}"#);
            assert_eq!(find(folder.path(), &json, host).await.unwrap(), [], "{key}");
        }
    }

    #[tokio::test]
    async fn what_is_broken_is_said_without_secrets() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            find(folder.path(), r#"{"auths":{"r.io":{}}}"#, "r.io")
                .await
                .unwrap(),
            []
        );
        for json in [
            "{\"auths\": \"hunter2\"}",
            r#"{"auths":{"r.io":{"auth":"hunter2!"}}}"#,
            "hunter2",
        ] {
            let text = find(folder.path(), json, "r.io")
                .await
                .unwrap_err()
                .to_string();
            assert!(
                text.contains("config.json") && !text.contains("hunter2"),
                "{text}"
            );
        }
        let secret = format!("{:?}", password("u", "hunter2"));
        assert!(!secret.contains("hunter2"), "{secret}");
        let missing = Config {
            docker_config: Some(folder.path().join("nothing")),
            ..Config::default()
        };
        let found = DockerConfig::new(&missing).find("r.io", "a").await;
        assert_eq!(found.unwrap(), []);
    }
}
