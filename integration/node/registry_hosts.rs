//! Mirrors, TLS and HTTP/2 under a container that reads and verifies: `hosts.toml` is rewritten under
//! its feet.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::fake_registry::{FakeRegistry, Gatekeeper, Reply, Seen};
use crate::fault_h2::{Fault, Http2};
use crate::faulty::{DEADLINE, Ward, part};
use crate::pki::{Ca, Pair};

/// Longer than crfs believes its files.
const NOTICED: Duration = Duration::from_millis(1100);

/// Puts a mirror before the registry. A header that is another each time makes it a new host.
fn mirrored(ward: &Ward, mirror: &FakeRegistry, round: usize) {
    let (up, url) = (ward.home.url(""), mirror.url(""));
    ward.hosts(&format!(
        "server = \"{up}\"\n[host.\"{url}\".header]\nx-round = \"{round}\"\n"
    ));
    std::thread::sleep(NOTICED);
}

type Script = Box<dyn Fn(&Seen) -> Option<Reply> + Send + Sync>;

/// What a mirror does, and requests for three files, read one after the other: at the mirror, at the
/// registry. One that is only slow may be asked again.
fn mirrors(blob: Vec<u8>) -> Vec<(&'static str, (usize, usize), Script)> {
    let mut other = blob.clone();
    other.iter_mut().step_by(1000).for_each(|byte| *byte ^= 1);
    vec![
        ("H24 it has all", (3, 0), Box::new(|_| None)),
        (
            "H24 it has nothing",
            (1, 3),
            Box::new(|_| Some(Reply::new(404))),
        ),
        (
            "H19 H22 other bytes",
            (1, 3),
            Box::new(move |seen| Some(part(&other, seen))),
        ),
        (
            "H2 another range",
            (1, 3),
            Box::new(|_| {
                Some(
                    Reply::new(206)
                        .with("content-range", "bytes 0-0/1")
                        .body("x"),
                )
            }),
        ),
        (
            "H5 silent",
            (1, 3),
            Box::new(|_| {
                Some(Reply {
                    delay: Some(Duration::from_secs(9)),
                    ..Reply::new(200)
                })
            }),
        ),
        (
            "H4 half of it",
            (1, 3),
            Box::new(move |seen| {
                Some(Reply {
                    cut: Some(100_000),
                    ..part(&blob, seen)
                })
            }),
        ),
    ]
}

#[test]
fn a_mirror_that_does_not_help_is_not_noticed() {
    let ward = Ward::up(20);
    let mirror = FakeRegistry::start_on("127.0.0.2:0");
    ward.fill(&mirror);
    for (round, (name, expected, script)) in mirrors(ward.blob.clone()).into_iter().enumerate() {
        mirrored(&ward, &mirror, round);
        mirror.reset();
        ward.home.reset();
        let path = ward.path.clone();
        mirror.script(move |seen, _| {
            if seen.path() == path {
                script(seen)
            } else {
                None
            }
        });
        for _ in 0..3 {
            let outcome = ward.read(&[ward.fresh()]);
            assert!(outcome.ok && outcome.took < DEADLINE, "{name}: {outcome:?}");
        }
        let asked = (mirror.count(&ward.path), ward.home.count(&ward.path));
        println!("{name}: {asked:?}");
        // The challenge for credentials is the registry's first answer once.
        let challenge = ward.home.count("/token");
        let passes = matches!(name, "H5 silent" | "H4 half of it");
        let most = if passes { 3 } else { expected.0 };
        assert!(
            (expected.0..=most).contains(&asked.0),
            "{name}: {asked:?}\n{}",
            ward.bed.crfs_log()
        );
        assert_eq!(asked.1 - challenge, expected.1, "{name}: {asked:?}");
        for seen in mirror.seen() {
            assert_eq!(seen.query("ns"), Some("faults.test"), "{name}");
            assert_eq!(seen.header("authorization"), None, "{name}");
        }
        assert!(
            ward.home
                .seen()
                .iter()
                .all(|seen| seen.header("x-round").is_none())
        );
    }
}

#[test]
fn a_mirror_has_a_path_and_a_password_of_its_own() {
    let ward = Ward::up(6);
    let mirror = FakeRegistry::start_on("127.0.0.2:0");
    let far = FakeRegistry::start_on("127.0.0.3:0");
    // H24: a path that has nothing of a registry's, and a password that is the mirror's.
    ward.fill_at(&mirror, "/cache/hub");
    mirror.guard(Gatekeeper::Basic("bWlycm9yOm93bg==".to_owned()));
    let home = ward.home.host();
    ward.logins(&[(&home, "user:pass"), (&mirror.host(), "mirror:own")]);
    let url = mirror.url("/cache/hub");
    ward.hosts(&format!(
        "server = \"{}\"\n[host.\"{url}\"]\noverride_path = true\n[host.\"{url}\".header]\nx-own = \"1\"\n",
        ward.home.url("")
    ));
    std::thread::sleep(NOTICED);
    ward.home.reset();
    for _ in 0..2 {
        let outcome = ward.read(&[ward.fresh()]);
        assert!(outcome.ok, "{outcome:?}\n{}", ward.bed.crfs_log());
    }
    let path = ward.path.replacen("/v2", "/cache/hub", 1);
    assert_eq!(
        mirror.count(&path),
        3,
        "a question for the password, and two files"
    );
    assert_eq!(ward.home.seen().len(), 0);
    for seen in mirror.seen().iter().skip(1) {
        assert_eq!(seen.header("authorization"), Some("Basic bWlycm9yOm93bg=="));
        assert_eq!(seen.header("x-own"), Some("1"));
        assert_eq!(seen.query("ns"), Some("faults.test"));
    }
    // H7: where the mirror leads, nothing of this goes along.
    far.add("/signed", "x", &ward.blob);
    let target = far.url("/signed");
    mirror.script(move |_, _| {
        let reply = Reply::redirect(target.clone());
        Some(reply.with("set-cookie", "s=1"))
    });
    assert!(ward.read(&[ward.fresh()]).ok);
    assert_eq!(far.count("/signed"), 1);
    crate::registry_readers::no_secrets(&far);
    // Its password is no longer good: the registry's is tried at the registry, and only there.
    mirror.reset();
    mirror.guard(Gatekeeper::Basic("other".to_owned()));
    far.script(|_, _| Some(Reply::new(403)));
    let outcome = ward.read(&[ward.fresh()]);
    assert!(outcome.ok && outcome.took < DEADLINE, "{outcome:?}");
    let shown = mirror.seen();
    let shown = shown.iter().filter_map(|seen| seen.header("authorization"));
    assert!({ shown }.all(|shown| shown == "Basic bWlycm9yOm93bg=="));
    let asked = ward.home.seen();
    assert!(asked.iter().any(|seen| seen.path() == ward.path));
    assert!(asked.iter().all(|seen| seen.header("x-own").is_none()));
}

/// Has crfs ask this address by TLS, with a CA.
fn by_tls(ward: &Ward, url: &str) {
    ward.hosts(&format!("server = \"{url}\"\nca = \"ca.crt\"\n"));
    std::thread::sleep(NOTICED);
}

#[test]
fn tls_and_http2_may_fail_in_every_way() {
    let ward = Ward::up(30);
    let ca = Ca::new("ours");
    fs::write(ward.folder().join("ca.crt"), &ca.pem).unwrap();
    let pair = ca.pair(&["127.0.0.1"]);

    // H17: refused at once, and never asked without TLS.
    let bad: [(&str, Pair); 3] = [
        ("expired", ca.pair_of(&["127.0.0.1"], (2019, 2020))),
        ("of another host", ca.pair(&["other.test"])),
        ("of another CA", Ca::new("theirs").pair(&["127.0.0.1"])),
    ];
    for (name, bad) in bad {
        let server = FakeRegistry::start_tls("127.0.0.1:0", bad.server(None, &["http/1.1"]));
        ward.fill(&server);
        by_tls(&ward, &format!("https://{}", server.host()));
        let outcome = ward.read(&[ward.fresh()]);
        assert!(
            !outcome.ok && outcome.took < DEADLINE,
            "{name}: {outcome:?}"
        );
        assert_eq!(server.seen().len(), 0, "{name}");
    }

    what_is_not_quite_tls_is_refused(&ward, &pair);

    let server = Http2::start(&ward.home, pair.server(None, &["h2"]));
    by_tls(&ward, &server.url());
    let before = resident(&ward);
    for (fault, requests) in [
        (None, 1),
        (Some(Fault::ResetStream), 2),
        (Some(Fault::GoAway), 2),
        (Some(Fault::Silent), 2),
        (Some(Fault::RapidReset), 0),
        (Some(Fault::SettingsFlood), 1),
        (Some(Fault::ContinuationFlood), 1),
        (Some(Fault::Garbage), 1),
    ] {
        server.next(fault, 100);
        let file = ward.fresh();
        let outcome = ward.read(&[file]);
        println!(
            "H18 {fault:?}: {} requests, {:?}",
            server.asked(),
            outcome.took
        );
        if fault == Some(Fault::RapidReset) {
            // That connection never gets better: whoever is asked again on it is told the same.
            server.next(None, 100);
            std::thread::sleep(Duration::from_millis(120));
            assert!(outcome.ok || ward.read(&[file]).ok, "{outcome:?}");
            continue;
        }
        assert!(
            outcome.ok && outcome.took < DEADLINE * 2,
            "{fault:?}: {outcome:?}\n{}",
            ward.bed.crfs_log()
        );
        assert_eq!(server.asked(), requests, "{fault:?}");
    }
    let grown = resident(&ward).saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB more than before");

    // One stream at a time is slow, and enough.
    server.next(None, 1);
    let files: Vec<_> = (0..6).map(|_| ward.fresh()).collect();
    let outcome = ward.read(&files);
    assert!(outcome.ok, "{outcome:?}");
    assert!(
        (1..=6).contains(&server.asked()),
        "{} requests",
        server.asked()
    );
}

/// `pair` is one that crfs believes.
fn what_is_not_quite_tls_is_refused(ward: &Ward, pair: &Pair) {
    // Plain HTTP where TLS is due, and TLS of long ago.
    let plain = FakeRegistry::start();
    ward.fill(&plain);
    // Version 3.2 is TLS 1.1; the suite is one that TLS 1.2 has too.
    let hello = [&[2, 0, 0, 38, 3, 2][..], &[7; 32], &[0, 0xc0, 0x13, 0]].concat();
    let old = says(&[&[22, 3, 2, 0, 42][..], &hello].concat());
    for (name, address) in [("plain http", plain.host()), ("TLS 1.1", old)] {
        by_tls(ward, &format!("https://{address}"));
        let outcome = ward.read(&[ward.fresh()]);
        assert!(
            !outcome.ok && outcome.took < DEADLINE,
            "{name}: {outcome:?}"
        );
    }
    let asked = plain.seen();
    assert!(
        asked.iter().all(|seen| seen.target.is_empty()),
        "without TLS: {asked:?}"
    );
    // Nothing at all after the connection: tried as long as there is time.
    by_tls(ward, &format!("https://{}", says(b"")));
    let outcome = ward.read(&[ward.fresh()]);
    let took = outcome.took;
    let in_time = DEADLINE.mul_f32(0.7) <= took && took < DEADLINE.mul_f32(1.4);
    assert!(!outcome.ok && in_time, "{outcome:?}");
    // A signature by SHA-1.
    let weak = sha1(ward.folder().as_path());
    let server = FakeRegistry::start_tls("127.0.0.1:0", weak.server(None, &["http/1.1"]));
    ward.fill(&server);
    ward.hosts(&format!(
        "server = \"https://{}\"\nca = \"weak.crt\"\n",
        server.host()
    ));
    std::thread::sleep(NOTICED);
    let outcome = ward.read(&[ward.fresh()]);
    assert!(!outcome.ok && outcome.took < DEADLINE, "{outcome:?}");
    assert_eq!(server.seen().len(), 0);
    // H8: what began with TLS goes on with it.
    let server = FakeRegistry::start_tls("127.0.0.1:0", pair.server(None, &["http/1.1"]));
    let target = ward.home.url(&ward.path);
    server.script(move |_, _| Some(Reply::redirect(target.clone())));
    by_tls(ward, &format!("https://{}", server.host()));
    ward.home.reset();
    let outcome = ward.read(&[ward.fresh()]);
    assert!(!outcome.ok && outcome.took < DEADLINE, "{outcome:?}");
    assert_eq!((server.seen().len(), ward.home.seen().len()), (1, 0));
}

/// A server that answers each connection with these bytes, and then with nothing.
fn says(bytes: &[u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, bytes) = (listener.local_addr().unwrap(), bytes.to_vec());
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for mut client in listener.incoming().flatten() {
            client.write_all(&bytes).unwrap();
            open.push(client);
        }
    });
    address.to_string()
}

/// A certificate for this machine that a CA, `weak.crt` in `folder`, has signed with SHA-1.
fn sha1(folder: &Path) -> Pair {
    let script = "set -e; new='-newkey rsa:2048 -nodes'
        openssl req -x509 $new -keyout weak.key -out weak.crt -subj /CN=weak -days 2
        openssl req $new -keyout own.key -out own.csr -subj /CN=own
        printf 'subjectAltName=IP:127.0.0.1\\nbasicConstraints=CA:FALSE\\n' >own.ext
        openssl x509 -req -sha1 -in own.csr -out own.crt -CA weak.crt -CAkey weak.key -CAcreateserial -days 2 \
            -extfile own.ext";
    let mut openssl = Command::new("sh");
    let done = openssl
        .args(["-c", script])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    Pair {
        cert: read("own.crt"),
        key: read("own.key"),
    }
}

/// Resident memory of crfs in KiB.
fn resident(ward: &Ward) -> u64 {
    let status =
        fs::read_to_string(format!("/proc/{}/status", ward.bed.value("CRFS_PID"))).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
