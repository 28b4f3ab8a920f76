//! `crfs pull` into a stock containerd: 1.7, whose own client cannot pull lazily, and the newest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::bed::{self, Bed, CRFS};
use crate::serve::{self, Image, compose, lazy_mounts, tar};

const FOREGROUND_ONLY: &str = "[fetch]\nbackground = false\n";
/// What an error message must not need to say.
const WORDY: usize = 600;

/// A command of crfs that speaks to the bed's containerd.
pub fn command(bed: &Bed, verb: &str, arguments: &[&str]) -> Command {
    command_in(bed.value("NAMESPACE"), bed, verb, arguments)
}

fn command_in(namespace: &str, bed: &Bed, verb: &str, arguments: &[&str]) -> Command {
    let socket = bed.value("CONTAINERD_SOCKET");
    let mut command = Command::new(CRFS);
    command
        .args([verb, "--address", socket, "--namespace", namespace])
        .args(arguments)
        .stdin(Stdio::null());
    command
}

/// Runs it and insists that it succeeds; gives what it printed.
pub fn done(bed: &Bed, verb: &str, arguments: &[&str]) -> String {
    let output = command(bed, verb, arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let log = bed.crfs_log();
    assert!(
        output.status.success(),
        "{verb} {arguments:?}: {said}\n{log}"
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The same with `--json`.
pub fn told(bed: &Bed, verb: &str, arguments: &[&str]) -> Value {
    let said = done(bed, verb, &[arguments, &["--json"]].concat());
    serde_json::from_str(&said).unwrap()
}

/// Insists that it fails, in one line of some length; gives that line.
pub fn refused(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let line = said.lines().last().unwrap_or_default().to_owned();
    assert!(line.starts_with("crfs: ") && line.len() < WORDY, "{said}");
    line
}

/// What is left of everything that was pulled: content, snapshots, leases.
pub fn left(bed: &Bed) -> Vec<String> {
    let lists: [&[&str]; 3] = [
        &["content", "ls", "-q"],
        &["snapshots", "--snapshotter", "crfs", "ls"],
        &["leases", "ls", "-q"],
    ];
    let all = lists.map(|list| bed.ctr(list));
    let lines = all.iter().flat_map(|text| text.lines());
    let lines = lines.filter(|line| !line.starts_with("KEY") && !line.is_empty());
    lines.map(str::to_owned).collect()
}

/// An image of three layers, of which the one in the middle is plain, in the registry. The upper two
/// are of 1 MiB and more.
fn mixed(bed: &Bed, name: &str) -> String {
    let at = |name: &str| bed.folder().join(name);
    let (two, three) = (serve::noise(2, 3 << 20), serve::noise(3, 1 << 20));
    let tars = [
        tar(&at("2.tar"), &[("m/two", b"two"), ("m/noise", &two)]),
        tar(&at("3.tar"), &[("m/three", b"three"), ("m/large", &three)]),
    ];
    let tars: Vec<&Path> = tars.iter().map(PathBuf::as_path).collect();
    let files = bed::image_of(&tars, &at("files"));
    let plain = compose(
        &at("plain"),
        &[(&bed::image("busybox"), 0), (&files, 0), (&files, 1)],
    );
    let lazy = at("lazy");
    let (from, to) = (plain.display(), lazy.display());
    bed::crfs(&[
        "convert",
        &format!("oci:{from}:latest"),
        &format!("oci:{to}:latest"),
    ]);
    let mixed = compose(&at("mixed"), &[(&lazy, 0), (&plain, 1), (&lazy, 2)]);
    bed.push(&mixed, name)
}

pub fn has_no_old_containerd() -> bool {
    let missing = std::env::var_os("CRFS_NO_CONTAINERD_17").is_some();
    if missing {
        println!("skipped: no containerd 1.7 could be had");
    }
    missing
}

#[test]
fn containerd_1_7_pulls_lazily_and_runs() {
    if !has_no_old_containerd() {
        pulls_lazily_and_runs("1.7");
    }
}

#[test]
fn the_newest_containerd_pulls_lazily_and_runs() {
    pulls_lazily_and_runs("2");
}

fn pulls_lazily_and_runs(line: &str) {
    let bed = Bed::up(FOREGROUND_ONLY, &["--containerd", line]);
    let version = bed.ctr(&["version"]);
    let server = version.split("Server:").nth(1).unwrap();
    let server = server.split("Version:").nth(1).unwrap().trim();
    let server = server.trim_start_matches('v');
    assert!(server.starts_with(&format!("{line}.")), "{version}");
    let name = mixed(&bed, "mixed:tag");
    let image = Image::of(&bed, &name);
    bed.relay("POST", "reset");

    let pulled = told(&bed, "pull", &[&name]);
    assert_eq!(pulled["image"], name.as_str());
    assert_eq!(pulled["manifest"], image.manifest.as_str());
    let layers = pulled["layers"].as_array().unwrap().iter();
    let outcomes: Vec<_> = layers
        .map(|layer| layer["outcome"].as_str().unwrap())
        .collect();
    assert_eq!(outcomes, ["lazy", "unpacked", "lazy"]);
    let (bytes, fetched) = (image.served(&bed), &pulled["layers"][1]["fetched"]);
    assert_eq!(fetched.as_u64(), Some(bytes[1]), "{bytes:?}");
    assert!(bytes[2] < 100 << 10, "of a layer of 1 MiB: {bytes:?}");
    assert_eq!(lazy_mounts(&bed.crfs_root()).len(), 2);
    let read = "cat /m/two /m/three; head -c 1000000 /m/large | wc -c";
    let said = bed.run(&name, "pulled", &["busybox", "sh", "-c", read]);
    assert_eq!(said, "twothree1000000\n");
    assert_eq!(
        bed.ctr(&["leases", "ls", "-q"]),
        "",
        "the pull's lease has ended"
    );
    let mut why = Command::new(CRFS);
    why.args(["why", &name, "--address", bed.value("CRFS_SOCKET")]);
    let why = why
        .args(["--root", bed.value("CRFS_ROOT")])
        .output()
        .unwrap();
    let why = String::from_utf8(why.stdout).unwrap();
    assert!(why.contains("no_toc_digest"), "{why}");

    // Once more: everything is there.
    bed.relay("POST", "reset");
    let again = told(&bed, "pull", &[&name]);
    assert_eq!((&again["present"], &again["lazy"]), (&3.into(), &0.into()));
    assert_eq!(image.served(&bed), [0, 0, 0]);
    assert!(bed.requests_served() <= 2, "{}", bed.relay("GET", "counts"));
    let said = bed.run(&name, "again", &["busybox", "cat", "/m/three"]);
    assert_eq!(said, "three");
    // A pass of garbage collection leaves what the image needs.
    bed.ctr(&["image", "tag", &name, "other"]);
    bed.ctr(&["image", "rm", "--sync", "other"]);
    let said = bed.run(&name, "collected", &["busybox", "cat", "/m/two"]);
    assert_eq!(said, "two");

    bed.ctr(&["image", "rm", "--sync", &name]);
    bed::wait_for("nothing to be left", 20, || {
        left(&bed).is_empty() && lazy_mounts(&bed.crfs_root()).is_empty()
    });
}

#[test]
fn a_pull_that_is_killed_is_gone_on_with_or_leaves_nothing() {
    if has_no_old_containerd() {
        return;
    }
    let bed = Bed::up(FOREGROUND_ONLY, &["--containerd", "1.7"]);
    let name = mixed(&bed, "mixed:tag");
    let image = Image::of(&bed, &name);
    let begin_and_kill = || {
        bed.relay("POST", "reset");
        bed.relay("POST", "link?rtt_ms=1&mbit=8");
        let mut pull = command(&bed, "pull", &[&name]).spawn().unwrap();
        bed::wait_for("a part of the plain layer", 30, || {
            image.served(&bed)[1] > 1 << 20
        });
        serve::end(&mut pull, Signal::KILL);
        bed.relay("POST", "link?rtt_ms=0&mbit=0");
        let said = bed.ctr(&["content", "active"]);
        assert!(said.contains(&image.layers[1]), "{said}");
    };
    begin_and_kill();
    assert_ne!(bed.ctr(&["leases", "ls", "-q"]), "", "its lease stays");
    assert_eq!(bed.ctr(&["image", "ls", "-q"]), "", "it was not named");
    // The end of the lease, by which containerd does what it does when it expires.
    for lease in bed.ctr(&["leases", "ls", "-q"]).lines() {
        bed.ctr(&["leases", "rm", "--sync", lease]);
    }
    bed::wait_for("nothing to be left", 20, || {
        left(&bed).is_empty() && lazy_mounts(&bed.crfs_root()).is_empty()
    });
    assert!(!bed.ctr(&["content", "active"]).contains("layer-"));

    begin_and_kill();
    bed.relay("POST", "reset");
    let pulled = told(&bed, "pull", &[&name]);
    let (size, rest) = (&pulled["layers"][1]["size"], image.served(&bed)[1]);
    let size = size.as_u64().unwrap();
    assert!(
        rest > 0 && rest < size - (512 << 10),
        "{rest} of {size} bytes"
    );
    // What the killed one had on its way may still be counted.
    let fetched = pulled["layers"][1]["fetched"].as_u64().unwrap();
    assert!(fetched > 0 && fetched <= rest, "{fetched} of {rest}");
    let said = bed.run(
        &name,
        "resumed",
        &["busybox", "sh", "-c", "cat /m/two; wc -c < /m/noise"],
    );
    assert_eq!(said, format!("two{}\n", 3 << 20));
    assert_eq!(
        bed.ctr(&["leases", "ls", "-q"]),
        "",
        "none of both attempts"
    );
    bed.ctr(&["image", "rm", "--sync", &name]);
    bed::wait_for("nothing to be left", 20, || left(&bed).is_empty());
}

#[test]
fn what_another_namespace_has_is_shared_and_what_is_wrong_is_written_anew() {
    let bed = Bed::up(FOREGROUND_ONLY, &[]);
    let name = mixed(&bed, "mixed:tag");
    let image = Image::of(&bed, &name);
    let begun = format!("manifest-{}", image.manifest);
    // Longer and shorter than the manifest, and as long as it.
    let blobs = bed.folder().join("mixed/blobs");
    let manifest = fs::metadata(blobs.join(image.manifest.replace(':', "/"))).unwrap();
    let manifest = usize::try_from(manifest.len()).unwrap();
    for length in [manifest - 1, manifest, manifest + 1] {
        let wrong = bed.folder().join("wrong");
        fs::write(&wrong, serve::noise(7, length)).unwrap();
        let mut ctr = Command::new(bed.value("CTR"));
        ctr.args(["content", "ingest", "--expected-digest", &image.manifest]);
        let refused = ctr.arg(&begun).stdin(fs::File::open(&wrong).unwrap());
        assert!(!refused.output().unwrap().status.success());
        let active = bed.ctr(&["content", "active"]);
        assert!(active.contains(&begun), "{active}");
        done(&bed, "pull", &[&name]);
        assert!(!bed.ctr(&["content", "active"]).contains(&begun));
        bed.ctr(&["image", "rm", "--sync", &name]);
        bed::wait_for("nothing to be left", 20, || left(&bed).is_empty());
    }

    done(&bed, "pull", &[&name]);
    bed.relay("POST", "reset");
    let second = command_in("second", &bed, "pull", &[&name, "--json"]).output();
    let second = second.unwrap();
    assert!(
        second.status.success(),
        "{}",
        String::from_utf8_lossy(&second.stderr)
    );
    let second: Value = serde_json::from_slice(&second.stdout).unwrap();
    assert_eq!(second["layers"][1]["outcome"], "unpacked");
    assert_eq!(image.served(&bed), [0, 0, 0]);
    let held = bed.ctr(&["--namespace", "second", "content", "ls", "-q"]);
    assert!(held.contains(&image.manifest), "{held}");
}

#[test]
fn who_pulls_the_same_image_meanwhile_takes_nothing_away() {
    let bed = Bed::up(FOREGROUND_ONLY, &[]);
    let name = mixed(&bed, "mixed:tag");
    let image = Image::of(&bed, &name);
    bed.relay("POST", "reset");
    bed.relay("POST", "link?rtt_ms=1&mbit=16");
    let begin = || {
        let mut pull = command(&bed, "pull", &[&name]);
        let pull = pull.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        pull.unwrap()
    };
    let first = begin();
    bed::wait_for("a part of the plain layer", 30, || {
        image.served(&bed)[1] > 1 << 19
    });
    let others = [begin(), begin()];
    bed::wait_for("three leases", 30, || {
        bed.ctr(&["leases", "ls", "-q"]).lines().count() == 3
    });
    for pull in std::iter::once(first).chain(others) {
        let output = pull.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
    bed.relay("POST", "link?rtt_ms=0&mbit=0");
    assert_eq!(bed.ctr(&["leases", "ls", "-q"]), "");
    let said = bed.run(&name, "meanwhile", &["busybox", "cat", "/m/two"]);
    assert_eq!(said, "two");
}

#[test]
fn what_goes_wrong_is_said_with_what_to_do() {
    let mut bed = Bed::up(
        "[fetch]\nbackground = false\n[registry]\nretries = 1\ndeadline = \"3s\"\n",
        &[],
    );
    let config = bed.value("CRFS_CONFIG").to_owned();
    let name = mixed(&bed, "mixed:tag");
    let fail = |bed: &Bed, arguments: &[&str]| {
        let arguments = [&["--config", &config], arguments].concat();
        refused(&command(bed, "pull", &arguments).output().unwrap())
    };
    let elsewhere = format!("{}/nothing:here", bed.registry());
    let said = fail(&bed, &[&elsewhere]);
    assert!(
        said.contains(&elsewhere) && said.contains("not found"),
        "{said}"
    );
    let said = fail(&bed, &["--platform", "linux/riscv64", &index(&bed, &name)]);
    assert!(
        said.contains("linux/riscv64") && said.contains("linux/arm64"),
        "{said}"
    );
    let said = fail(&bed, &["--snapshotter", "nobody", &name]);
    assert!(
        said.contains("nobody") && said.contains("crfs setup"),
        "{said}"
    );
    // Where containerd is says the configuration, and the flag before it.
    let configured = bed.folder().join("elsewhere.toml");
    fs::write(&configured, "[containerd]\naddress = \"/none/c.sock\"\n").unwrap();
    let configured = configured.to_str().unwrap();
    for named in [["--address", "/none/c.sock"], ["--config", configured]] {
        let mut gone = Command::new(CRFS);
        let said = refused(&gone.arg("pull").args(named).arg(&name).output().unwrap());
        assert!(
            said.contains("/none/c.sock") && said.contains("[containerd] address"),
            "{said}"
        );
    }
    bed.relay("POST", "down?on=1");
    let said = fail(&bed, &[&name]);
    assert!(said.contains(bed.registry()), "{said}");
    // Who has to wait longer is told what for.
    fs::write(configured, "[registry]\ndeadline = \"4s\"\n").unwrap();
    let waits = command(&bed, "pull", &["--config", configured, &name]).output();
    let said = String::from_utf8(waits.unwrap().stderr).unwrap();
    let (first, last) = said.split_once('\n').unwrap();
    assert!(
        first.contains(bed.registry()) && first.ends_with("; trying again"),
        "{said}"
    );
    assert!(
        last.starts_with("crfs: ") && last.lines().count() == 1,
        "{said}"
    );
    bed.relay("POST", "down?on=0");
    bed.tell("crfs stop");
    let said = fail(&bed, &[&name]);
    assert!(said.contains("crfs serve"), "{said}");
    // containerd does not ask at once again; a pull waits for that.
    bed.tell("crfs start");
    // Nothing of all that is in the way.
    assert_eq!(bed.ctr(&["leases", "ls", "-q"]), "");
    done(&bed, "pull", &[&name]);
}

/// An index with the image of this name for amd64 and another one for arm64; gives its name.
pub fn index(bed: &Bed, name: &str) -> String {
    let own = fs::read_dir(bed.folder()).unwrap().count();
    let other = tar(
        &bed.folder().join(format!("other{own}.tar")),
        &[("arm", &serve::noise(9, 200 << 10))],
    );
    let other = bed::image_of(&[&other], &bed.folder().join(format!("other{own}")));
    let other = bed.push(&other, &format!("{}:arm", repository(name)));
    serve::push_index(
        bed,
        &[(name, "amd64"), (&other, "arm64")],
        &format!("{}:both", repository(name)),
    )
}

fn repository(name: &str) -> &str {
    name.split_once('/').unwrap().1.rsplit_once(':').unwrap().0
}
