//! The proxies of the environment: for which registries they are asked, and how.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;

use crfs::oci::Digest;
use serde_json::json;
use tempfile::TempDir;

use crate::bed::CRFS;
use crate::fake_registry::FakeRegistry;
use crate::pki::Ca;

/// An image without layers.
fn fill(registry: &FakeRegistry) {
    let config =
        br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let digest = Digest::of(config).to_string();
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": kind, "layers": [],
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": config.len(),
        },
    });
    registry.add("/v2/a/b/manifests/t", kind, manifest.to_string().as_bytes());
    registry.add(&format!("/v2/a/b/blobs/{digest}"), "x", config);
}

/// Has crfs copy the image of a registry that has no address, with these variables.
fn copy(folder: &TempDir, registry: &str, variables: &[(&str, &str)]) -> Output {
    let config = folder.path().join("crfs.toml");
    let certs = folder.path().display();
    let text = format!(
        "[registry]\nplain_http = [\"plain.test\"]\nretries = 0\ndeadline = \"5s\"\nconfig_path = \"{certs}\"\n"
    );
    fs::write(&config, text).unwrap();
    let out = folder.path().join("out");
    let _ = fs::remove_dir_all(&out);
    let mut command = Command::new(CRFS);
    command.args(["convert", "--config"]).arg(&config);
    command
        .arg(format!("docker://{registry}/a/b:t"))
        .arg(format!("oci:{}:t", out.display()));
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    command.envs(variables.iter().copied()).output().unwrap()
}

/// A proxy that knows CONNECT only, leads everything to `target`, and notes whom it was asked for.
fn tunnel(target: String) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&asked);
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let (target, notes) = (target.clone(), Arc::clone(&notes));
            thread::spawn(move || lead(client, &target, &notes).unwrap_or_default());
        }
    });
    (address, asked)
}

fn lead(mut client: TcpStream, target: &str, notes: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut head = BufReader::new(client.try_clone()?);
    let mut first = String::new();
    head.read_line(&mut first)?;
    notes.lock().unwrap().push(first.trim_end().to_owned());
    let mut line = String::new();
    while head.read_line(&mut line)? > 2 {
        line.clear();
    }
    client.write_all(b"HTTP/1.1 200 ok\r\n\r\n")?;
    let mut server = TcpStream::connect(target)?;
    let (mut there, mut back) = (server.try_clone()?, client.try_clone()?);
    thread::spawn(move || std::io::copy(&mut head, &mut there));
    std::io::copy(&mut server, &mut back)?;
    Ok(())
}

#[test]
fn plain_requests_go_through_http_proxy_unless_no_proxy_names_the_host() {
    let folder = TempDir::new().unwrap();
    let proxy = FakeRegistry::start();
    fill(&proxy);
    let url = proxy.url("");
    for name in ["HTTP_PROXY", "http_proxy"] {
        let done = copy(&folder, "plain.test", &[(name, &url)]);
        assert!(
            done.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        let first = proxy.seen().remove(0);
        assert!(
            first.target.starts_with("http://plain.test/v2/a/b/"),
            "{}",
            first.target
        );
        proxy.reset();
    }
    for other in [
        ("NO_PROXY", "plain.test"),
        ("NO_PROXY", ".test"),
        ("no_proxy", "*"),
    ] {
        let done = copy(&folder, "plain.test", &[("HTTP_PROXY", &url), other]);
        assert!(!done.status.success(), "{other:?}: there is no such host");
        assert_eq!(proxy.seen().len(), 0, "{other:?}");
    }
    // Not for this machine.
    let registry = FakeRegistry::start();
    fill(&registry);
    let done = copy(&folder, &registry.host(), &[("HTTP_PROXY", &url)]);
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    assert_eq!(
        (proxy.seen().len(), registry.count("/v2/a/b/manifests")),
        (0, 1)
    );
}

#[test]
fn tls_goes_through_a_tunnel_of_https_proxy() {
    let folder = TempDir::new().unwrap();
    let ca = Ca::new("ours");
    let server = ca.pair(&["secret.test"]).server(None, &["http/1.1"]);
    let registry = FakeRegistry::start_tls("127.0.0.1:0", server);
    fill(&registry);
    let own = folder.path().join("secret.test");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("ca.crt"), &ca.pem).unwrap();
    let (proxy, asked) = tunnel(registry.host());
    let done = copy(&folder, "secret.test", &[("HTTPS_PROXY", &proxy)]);
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    assert_eq!(asked.lock().unwrap()[0], "CONNECT secret.test:443 HTTP/1.1");
    assert_eq!(registry.seen()[0].target.split('/').nth(1), Some("v2"));
    // Only for TLS, and not for those excepted.
    let before = asked.lock().unwrap().len();
    assert!(
        !copy(&folder, "plain.test", &[("HTTPS_PROXY", &proxy)])
            .status
            .success()
    );
    let except = [("HTTPS_PROXY", proxy.as_str()), ("NO_PROXY", "secret.test")];
    assert!(!copy(&folder, "secret.test", &except).status.success());
    assert_eq!(asked.lock().unwrap().len(), before);
}
