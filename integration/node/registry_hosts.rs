//! Mirrors, TLS and HTTP/2 under a container that reads and verifies: `hosts.toml` is rewritten under
//! its feet.

use std::fs;
use std::time::Duration;

use crate::fake_registry::{FakeRegistry, Reply, Seen};
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

/// Has crfs ask this address by TLS, with a CA.
fn by_tls(ward: &Ward, url: &str) {
    ward.hosts(&format!("server = \"{url}\"\nca = \"ca.crt\"\n"));
    std::thread::sleep(NOTICED);
}

#[test]
fn tls_and_http2_may_fail_in_every_way() {
    let ward = Ward::up(20);
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

    let server = Http2::start(&ward.home, pair.server(None, &["h2"]));
    by_tls(&ward, &server.url());
    let before = resident(&ward);
    for (fault, requests) in [
        (None, 1),
        (Some(Fault::ResetStream), 2),
        (Some(Fault::GoAway), 2),
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
