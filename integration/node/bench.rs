//! The benchmark itself, on an image of a few files: that it runs, agrees with itself and writes its results.

use std::fs;
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
