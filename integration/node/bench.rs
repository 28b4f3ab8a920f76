//! The benchmark itself, on an image of a few files: that it runs, agrees with itself and writes its results; and that
//! another snapshotter can be measured beside crfs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::bed::CRFS;

const RUN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/integration/bench/run.sh");

#[test]
fn measures_every_way_and_writes_results() {
    let folder = TempDir::with_prefix("bench-").unwrap();
    let json = folder.path().join("runs.json");
    let done = Command::new(RUN)
        .args([
            "--only", "smoke", "--runs", "1", "--link", "2:1000", "--crfs", CRFS,
        ])
        .arg("--json")
        .arg(&json)
        .arg("--save")
        .arg(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{said}");

    let measured: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    let cold = measured["cold"].as_array().unwrap();
    let ways: Vec<_> = cold
        .iter()
        .map(|run| run["way"].as_str().unwrap())
        .collect();
    assert_eq!(ways, ["overlayfs", "crfs", "crfs, background off"]);
    for run in cold {
        let way = &run["way"];
        let part = |name: &str| run[name].as_f64().unwrap();
        assert!(part("pull") + part("run") <= part("total") + 1e-6, "{run}");
        assert!(part("second") > 0.0 && part("requests") > 2.0, "{run}");
        assert_eq!(run["peak"].is_number(), way != "overlayfs", "{run}");
    }
    // What is not asked for stays where it is, and a plain pull brings everything.
    let bytes: Vec<_> = cold
        .iter()
        .map(|run| run["bytes"].as_u64().unwrap())
        .collect();
    assert!(
        bytes[0] > 20_000_000 && bytes[2] < bytes[0] / 4,
        "{bytes:?}"
    );

    let micro = measured["micro"].as_array().unwrap();
    assert_eq!(micro.len(), 6, "two steps in three states: {micro:?}");
    let text = fs::read_to_string(folder.path().join("RESULTS.md")).unwrap();
    assert!(text.contains("## smoke") && text.contains("find"), "{text}");
    let plot = fs::read_to_string(folder.path().join("results.svg")).unwrap();
    assert!(
        plot.ends_with("</svg>\n") && plot.contains("crfs, background off"),
        "{plot}"
    );
}

/// A stand-in for another snapshotter: a crfs without a keeper, which is told of the registry as a peer is.
fn stand_in(folder: &Path) -> String {
    let file = folder.join("peer");
    let script = format!(
        r#"#!/bin/sh
[ "$1" != --version ] || exec echo stand-in 7
host=$(sed -n 's/^\[\[resolver\.host\."\(.*\)"\.mirrors\]\]$/\1/p' "$2")
grep -qx "  host = \"$host\"" "$2" && grep -qx '  insecure = true' "$2" || exit 1
printf '[registry]\nplain_http = ["%s"]\n' "$host" >"$2.crfs"
exec {CRFS} serve --no-keeper --config "$2.crfs" --root "$4" --address "$6"
"#
    );
    fs::write(&file, script).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    format!("stargz={}", file.display())
}

#[test]
fn measures_another_snapshotter_beside_crfs() {
    let folder = TempDir::with_prefix("bench-").unwrap();
    let json = folder.path().join("runs.json");
    let measure = |peer: &str| {
        let mut run = Command::new(RUN);
        run.args(["--only", "smoke,killed", "--runs", "1"]);
        run.args(["--link", "2:1000", "--crfs", CRFS, "--peer", peer]);
        run.arg("--json")
            .arg(&json)
            .arg("--save")
            .arg(folder.path());
        let done = run.output().unwrap();
        (
            done.status.success(),
            String::from_utf8_lossy(&done.stderr).into_owned(),
        )
    };
    for wrong in ["other=/bin/true", "stargz=/nonexistent", "soci=/bin/true"] {
        let (ok, said) = measure(wrong);
        let name = wrong.split_once('=').unwrap().0;
        assert!(!ok && said.contains(name), "{wrong}: {said}");
    }
    let (ok, said) = measure(&stand_in(folder.path()));
    assert!(ok, "{said}");

    let measured: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!(measured["peers"]["stargz"], "stand-in 7");
    let cold = measured["cold"].as_array().unwrap();
    let ways: Vec<_> = cold.iter().map(|run| &run["way"]).collect();
    assert_eq!(ways, ["overlayfs", "crfs", "stargz"]);
    assert!(cold[0]["lazy"].is_null());
    for run in &cold[1..] {
        assert_eq!(run["lazy"], 2, "{run}");
        assert!(run["peak"].as_u64() > Some(1_000_000), "{run}");
    }
    let killed = measured["killed"].as_array().unwrap();
    let failed: Vec<_> = killed.iter().map(|row| row["failed"].as_u64()).collect();
    assert_eq!(failed[0], Some(0), "with a keeper: {killed:?}");
    assert!(failed[1] > Some(0), "without one: {killed:?}");
    assert_eq!([&killed[0]["new"], &killed[1]["new"]], [true, true]);

    let text = fs::read_to_string(folder.path().join("PEERS.md")).unwrap();
    for words in [
        "stand-in 7",
        "## smoke, 2 ms",
        "| stargz ",
        "Least: total",
        "--peer stargz=/path/to/peer",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains(folder.path().to_str().unwrap()), "{text}");
    assert!(folder.path().join("peers.svg").exists());
}
