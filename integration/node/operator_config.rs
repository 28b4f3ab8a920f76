//! Configuration as an operator meets it: checked, shown, reloaded; and a node that is looked at.

use std::fs;
use std::process::{Command, Stdio};

use crfs::keeper;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::bed::{self, Bed, CRFS};
use crate::operator::{ask, ask_json};
use crate::serve::{self, Image, Serve};

fn crfs(arguments: &[&str]) -> (i32, String, String) {
    let mut crfs = Command::new(CRFS);
    let done = crfs.args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        done.status.code().unwrap(),
        text(done.stdout),
        text(done.stderr),
    )
}

#[test]
fn a_configuration_is_checked_and_shown_without_a_daemon() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("crfs.toml");
    let path = file.to_str().unwrap();
    fs::write(
        &file,
        "[fetch]\nbackgrond = true\nreadahead = \"much\"\n[log]\nlevel = \"loud\"\n",
    )
    .unwrap();
    let (code, stdout, stderr) = crfs(&["config", "check", path]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(
        stderr.starts_with("crfs: configuration ") && stderr.contains("2 problems"),
        "{stderr}"
    );
    for words in [
        "line 2: unknown key fetch.backgrond (did you mean background?)",
        "line 3: fetch.readahead:",
    ] {
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
    fs::write(&file, "[fetch]\nreadahead = \"1MiB\"\n").unwrap();
    let (code, stdout, _) = crfs(&["config", "check", path]);
    assert!(code == 0 && stdout.contains("is all right"), "{stdout}");
    let (_, stdout, _) = crfs(&["config", "show", path]);
    let shown: toml::Table = stdout.parse().unwrap();
    assert_eq!(shown["fetch"]["readahead"].as_str(), Some("1MiB"));
    assert_eq!(shown["root"].as_str(), Some("/var/lib/crfs"));
    let deployed = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/config.toml");
    assert_eq!(crfs(&["config", "check", deployed]).0, 0);
}

fn keeper_pid(root: &str) -> Pid {
    let folder = keeper::Folder::new(root.as_ref()).unwrap();
    let state = keeper::state(&folder).unwrap();
    let pid = state.lines().find_map(|line| line.strip_prefix("keeper "));
    Pid::from_raw(pid.unwrap().parse().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_changes_what_it_can_and_names_what_it_cannot() {
    let dir = TempDir::new().unwrap();
    let mut daemon = Serve::start(dir.path(), "", &[]);
    let file = dir.path().join("crfs.toml");
    let root = daemon.root();
    let status = || -> Value {
        let (_, text, error) = crfs(&["status", "--json", "--root", root.to_str().unwrap()]);
        let report: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{error}"));
        report["status"]["reload"].clone()
    };
    assert_eq!(status(), Value::Null);
    let pid = daemon.pid();
    let hang_up = || {
        let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        kill_process(pid, Signal::HUP).unwrap();
    };
    fs::write(
        &file,
        "[log]\nlevel = \"debug\"\n[fetch]\nrate_limit = \"1MiB\"\nbackground = false\n[fuse]\nthreads = 2\n",
    )
    .unwrap();
    hang_up();
    bed::wait_for("a reload", 10, || status() != Value::Null);
    let reload = status();
    assert_eq!(
        reload["applied"],
        serde_json::json!(["fetch.rate_limit", "log.level"])
    );
    assert_eq!(
        reload["refused"],
        serde_json::json!(["fetch.background", "fuse.threads"])
    );
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("need a restart"));
    assert!(
        line.is_some_and(|line| line.contains("fuse.threads")),
        "{log}"
    );
    // The new level holds: calls are told now, in their span.
    let client = daemon.client().await;
    client.prepare("after", "", [].into()).await.unwrap();

    fs::write(&file, "[fetch]\nbackgrond = true\n").unwrap();
    hang_up();
    bed::wait_for("a refusal", 10, || status()["error"] != "");
    assert!(
        status()["error"]
            .as_str()
            .unwrap()
            .contains("did you mean background?")
    );
    assert_eq!(daemon.pid(), pid, "the same daemon serves on");

    // What an operator sees of the daemon is its front, and its keeper: they pass the signal on and live.
    let keeper = keeper_pid(root.to_str().unwrap());
    for (process, level) in [(daemon.front(), "trace"), (keeper, "warn")] {
        fs::write(&file, format!("[log]\nlevel = \"{level}\"\n")).unwrap();
        kill_process(process, Signal::HUP).unwrap();
        bed::wait_for("a reload", 10, || {
            let reload = status();
            let applied = reload["applied"].as_array().unwrap();
            reload["error"] == "" && applied.iter().any(|key| key == "log.level")
        });
        fs::write(&file, "[fetch]\nbackgrond = true\n").unwrap();
        kill_process(process, Signal::HUP).unwrap();
        bed::wait_for("a refusal", 10, || status()["error"] != "");
    }
    assert_eq!(daemon.pid(), pid, "the same daemon serves on");
    assert_eq!(keeper_pid(root.to_str().unwrap()), keeper);
    let (ended, _) = daemon.end(Signal::TERM);
    assert!(ended.success(), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_request_is_logged_within_the_read_that_needs_it() {
    let bed = Bed::up("", &["--only", "registry"]);
    let image = bed.convert(
        &crate::cli::small_image(bed.folder(), "small"),
        "small:lazy",
    );
    let config = "[log]\nlevel = \"debug\"\nformat = \"json\"\n[fetch]\nbackground = false\nprefetch = false\n";
    let daemon = Serve::start(&bed.folder().join("daemon"), config, &[]);
    let names = serve::pull(&daemon.client().await, &Image::of(&bed, &image), "ns").await;
    let lowest = serve::lazy_mounts(&daemon.root());
    assert_eq!(names.len(), lowest.len());
    let data = lowest.iter().map(|mount| mount.join("data"));
    let read: Vec<_> = data.filter_map(|path| fs::read(path).ok()).collect();
    assert_eq!(read.len(), 1);
    let log = daemon.log();
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let requests: Vec<Value> = lines
        .filter(|line| line["message"] == "http request")
        .collect();
    let within = |name: &str, key: &str, value: &str| {
        requests.iter().any(|line| {
            let spans = line["spans"].as_array().into_iter().flatten();
            let mut spans = spans.filter(|span| span["name"] == name);
            spans.any(|span| span[key] == value)
        })
    };
    assert!(within("fuse", "request", "read"), "{requests:#?}");
    assert!(within("grpc", "call", "prepare"), "{requests:#?}");
}

#[test]
fn doctor_finds_a_sound_node_sound_and_says_what_is_wrong_with_another() {
    let mut bed = Bed::up("[registry]\nretries = 0\ndeadline = \"2s\"\n", &[]);
    let image = bed.convert(
        &crate::cli::small_image(bed.folder(), "small"),
        "small:lazy",
    );
    let config = bed.folder().join("node/containerd.toml");
    let (crfs, containerd) = (
        bed.value("CRFS_CONFIG").to_owned(),
        config.to_str().unwrap().to_owned(),
    );
    let socket = bed.value("CONTAINERD_SOCKET").to_owned();
    let text =
        fs::read_to_string(&crfs).unwrap() + &format!("[containerd]\naddress = \"{socket}\"\n");
    fs::write(&crfs, text).unwrap();
    let files = ["--config", &crfs, "--containerd-config", &containerd];
    let look = |bed: &Bed, image: &str| -> Vec<(String, String, String)> {
        let findings = ask_json(bed, &[&["doctor", image], &files[..]].concat());
        let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
        let all = findings.as_array().unwrap().iter();
        all.map(|f| {
            (
                text(f, "check"),
                text(f, "verdict"),
                text(f, "found") + &text(f, "remedy"),
            )
        })
        .collect()
    };
    let sound = look(&bed, &image);
    let failed: Vec<_> = sound
        .iter()
        .filter(|(_, verdict, _)| verdict == "failure")
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
    for check in [
        "kernel",
        "fuse",
        "overlay",
        "limits",
        "root folder",
        "clock",
        "daemon",
        "containerd",
        "registry",
    ] {
        assert!(
            sound.iter().any(|(name, ..)| name == check),
            "{check}: {sound:#?}"
        );
    }
    let (code, text) = ask(&bed, &[&["doctor", &image], &files[..]].concat());
    assert!(
        code == 0 && text.contains("ok       fuse: /dev/fuse opens"),
        "{text}"
    );

    // One thing is broken at a time.
    let right = fs::read_to_string(&config).unwrap();
    fs::write(&config, right.replace("\"true\"", "\"false\"")).unwrap();
    bed.relay("POST", "down?on=1");
    bed.tell("crfs stop");
    let (code, text) = ask(&bed, &[&["doctor", &image], &files[..]].concat());
    assert_eq!(code, 1, "{text}");
    for words in [
        "FAILURE  daemon: nobody serves",
        "-> systemctl start crfs",
        "nothing is lazy",
        "FAILURE  registry: ",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}
