//! TLS as configured: CAs, client certificates, none checked; and what is refused.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use super::mirrors::hosts_toml;
use super::*;
use crate::registry::testing::Reply;
use crate::registry::testing_pki::{Ca, Pair};

const MANIFEST: &[u8] = br#"{"layers":[]}"#;

fn serve(pair: &Pair, clients: Option<&Ca>) -> FakeRegistry {
    let server = FakeRegistry::start_tls("127.0.0.1:0", pair.server(clients, &["http/1.1"]));
    server.add("/v2/a/b/manifests/t", "x", MANIFEST);
    server
}

/// What a node makes of a server, by this `hosts.toml`; `URL` in it is the server's.
async fn ask(folder: &Path, server: &FakeRegistry, text: &str) -> Result<Fetched, Error> {
    let url = format!("https://{}", server.host());
    hosts_toml(folder, "reg.test", &text.replace("URL", &url));
    let config = Config {
        config_path: folder.display().to_string(),
        retries: 0,
        ..impatient()
    };
    let client = Client::new(config, Arc::new(Anonymous));
    client.manifest(&"reg.test/a/b:t".parse().unwrap()).await
}

#[tokio::test]
async fn an_own_ca_is_believed_where_it_is_configured() {
    let (ca, other) = (Ca::new("ours"), Ca::new("theirs"));
    let server = serve(&ca.pair(&["127.0.0.1"]), None);
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("reg.test")).unwrap();
    fs::write(folder.path().join("reg.test/ca.crt"), &ca.pem).unwrap();
    let absolute = folder.path().join("other.crt");
    fs::write(&absolute, &other.pem).unwrap();
    let absolute = absolute.display();
    for (text, ok) in [
        ("[host.\"URL\"]\nca = \"ca.crt\"".to_owned(), true),
        (
            format!("[host.\"URL\"]\nca = [\"{absolute}\", \"ca.crt\"]"),
            true,
        ),
        ("server = \"URL\"\nca = \"ca.crt\"".to_owned(), true),
        (format!("server = \"URL\"\nca = \"{absolute}\""), false),
        ("server = \"URL\"".to_owned(), false),
        ("server = \"URL\"\nskip_verify = true".to_owned(), true),
    ] {
        let server_line = if text.contains("server") {
            ""
        } else {
            "server = \"URL\"\n"
        };
        let got = ask(folder.path(), &server, &format!("{server_line}{text}")).await;
        assert_eq!(got.is_ok(), ok, "{text}: {got:?}");
        if let Err(error) = got {
            assert!(matches!(error, Error::Tls { .. }), "{error}");
        }
    }
    let missing = ask(
        folder.path(),
        &server,
        "server = \"URL\"\nca = \"none.crt\"",
    )
    .await;
    assert!(missing.unwrap_err().to_string().contains("none.crt"));
    fs::write(folder.path().join("reg.test/empty.crt"), "no pem").unwrap();
    let empty = ask(
        folder.path(),
        &server,
        "server = \"URL\"\nca = \"empty.crt\"",
    )
    .await;
    assert!(empty.unwrap_err().to_string().contains("no certificate"));
}

#[tokio::test]
async fn certificates_that_do_not_fit_are_refused_and_plain_http_is_no_way_out() {
    let ca = Ca::new("ours");
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("reg.test")).unwrap();
    fs::write(folder.path().join("reg.test/ca.crt"), &ca.pem).unwrap();
    for (what, pair, why) in [
        (
            "expired",
            ca.pair_of(&["127.0.0.1"], (2019, 2020)),
            "xpired",
        ),
        ("not yet", ca.pair_of(&["127.0.0.1"], (2080, 2090)), "valid"),
        (
            "of another host",
            ca.pair(&["other.test", "127.0.0.2"]),
            "name",
        ),
        ("of nobody", Ca::new("self").pair(&["127.0.0.1"]), "ssuer"),
    ] {
        let server = serve(&pair, None);
        let error = ask(folder.path(), &server, "server = \"URL\"\nca = \"ca.crt\"").await;
        let error = error.unwrap_err();
        assert!(matches!(error, Error::Tls { .. }), "{what}: {error}");
        assert!(error.to_string().contains(why), "{what}: {error}");
        assert_eq!(server.seen().len(), 0, "{what}: nothing was asked");
        assert_eq!(server.connections(), 1, "{what}: once is enough");
    }
}

#[tokio::test]
async fn a_handshake_that_stalls_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = format!("https://{}", silent.local_addr().unwrap());
    hosts_toml(
        folder.path(),
        "reg.test",
        &format!("server = \"{url}\"\ndial_timeout = \"200ms\""),
    );
    let config = Config {
        config_path: folder.path().display().to_string(),
        retries: 0,
        progress_timeout: Duration::from_secs(5),
        ..impatient()
    };
    let start = std::time::Instant::now();
    let client = Client::new(config, Arc::new(Anonymous));
    let error = client.manifest(&"reg.test/a/b:t".parse().unwrap()).await;
    assert!(error.unwrap_err().is_transient());
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_its_host_and_to_no_other() {
    let (ca, clients) = (Ca::new("ours"), Ca::new("clients"));
    let pair = ca.pair(&["127.0.0.1", "127.0.0.2"]);
    let server = serve(&pair, Some(&clients));
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("reg.test");
    fs::create_dir(&own).unwrap();
    let client = clients.pair(&["node"]);
    for (name, text) in [
        ("ca.crt", &ca.pem),
        ("node.cert", &client.cert),
        ("node.key", &client.key),
        ("both.pem", &format!("{}{}", client.cert, client.key)),
    ] {
        fs::write(own.join(name), text).unwrap();
    }
    for (client, ok) in [
        ("client = [[\"node.cert\", \"node.key\"]]", true),
        ("client = \"both.pem\"", true),
        ("client = [\"both.pem\"]", true),
        ("", false),
    ] {
        let text = format!("server = \"URL\"\nca = \"ca.crt\"\n{client}");
        let got = ask(folder.path(), &server, &text).await;
        assert_eq!(got.is_ok(), ok, "{client}: {got:?}");
    }
    let text = "server = \"URL\"\nca = \"ca.crt\"\nclient = \"node.cert\"";
    let error = ask(folder.path(), &server, text).await.unwrap_err();
    assert!(error.to_string().contains("node.cert"), "{error}");

    // Another host that asks for a certificate gets none.
    let config = pair.server(Some(&clients), &["http/1.1"]);
    let foreign = FakeRegistry::start_tls("127.0.0.2:0", config);
    foreign.add("/m", "x", MANIFEST);
    let target = format!("https://{}/m", foreign.host());
    server.script(move |_, _| Some(Reply::redirect(target.clone())));
    let text = "server = \"URL\"\nca = \"ca.crt\"\nclient = \"both.pem\"";
    let refused = ask(folder.path(), &server, text).await;
    assert!(
        refused.is_err() && foreign.connections() == 1,
        "{refused:?}"
    );
    assert_eq!(foreign.seen().len(), 0);
}

#[tokio::test]
async fn of_several_client_certificates_the_one_is_shown_that_the_host_takes() {
    let ca = Ca::new("ours");
    let all = [Ca::new("one"), Ca::new("two"), Ca::new("three")];
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("reg.test");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("ca.crt"), &ca.pem).unwrap();
    for (n, issuer) in all.iter().enumerate() {
        let client = issuer.pair(&["node"]);
        let both = format!("{}{}", client.cert, client.key);
        fs::write(own.join(format!("{n}.pem")), both).unwrap();
    }
    let pair = ca.pair(&["127.0.0.1"]);
    for (takes, pairs, ok) in [
        (0, "[\"0.pem\", \"1.pem\"]", true),
        (1, "[\"0.pem\", \"1.pem\"]", true),
        (2, "[\"0.pem\", \"1.pem\"]", false),
        (
            2,
            "[[\"0.pem\", \"\"], [\"1.pem\", \"1.pem\"], [\"2.pem\", \"2.pem\"]]",
            true,
        ),
    ] {
        let server = serve(&pair, Some(&all[takes]));
        for trust in ["ca = \"ca.crt\"", "skip_verify = true"] {
            let text = format!("server = \"URL\"\n{trust}\nclient = {pairs}");
            let got = ask(folder.path(), &server, &text).await;
            assert_eq!(got.is_ok(), ok, "{takes} of {pairs}, {trust}: {got:?}");
        }
        // A certificate for the host changes nothing about whom crfs believes.
        let text = format!("server = \"URL\"\nclient = {pairs}");
        let error = ask(folder.path(), &server, &text).await.unwrap_err();
        assert!(matches!(error, Error::Tls { .. }), "{error}");
    }
    // A pair that is none spoils the file, as with containerd.
    fs::write(own.join("bad.pem"), "x").unwrap();
    let server = serve(&pair, Some(&all[0]));
    let text = "server = \"URL\"\nca = \"ca.crt\"\nclient = [\"0.pem\", \"bad.pem\"]";
    let error = ask(folder.path(), &server, text).await.unwrap_err();
    assert!(error.to_string().contains("bad.pem"), "{error}");
}

#[tokio::test]
async fn a_folder_of_docker_style_certificates_is_for_the_registry_itself() {
    let (ca, clients) = (Ca::new("ours"), Ca::new("clients"));
    let server = serve(&ca.pair(&["0.0.0.0"]), Some(&clients));
    let port = server.host().rsplit_once(':').unwrap().1.to_owned();
    let name = format!("0.0.0.0:{port}");
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join(&name);
    fs::create_dir(&own).unwrap();
    let client = clients.pair(&["node"]);
    for (file, text) in [
        ("x.crt", &ca.pem),
        ("n.cert", &client.cert),
        ("n.key", &client.key),
    ] {
        fs::write(own.join(file), text).unwrap();
    }
    let config = Config {
        config_path: folder.path().display().to_string(),
        retries: 0,
        ..impatient()
    };
    let client = Client::new(config, Arc::new(Anonymous));
    client
        .manifest(&format!("{name}/a/b:t").parse().unwrap())
        .await
        .unwrap();
}
