//! The command line as a user types it: help, what is said when something is wrong, how it ends.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::bed::{Bed, CRFS};
use crate::serve::{self, Image, Serve};

/// The longest that anything may take to end.
const IN_ORDER: Duration = Duration::from_secs(2);

/// Runs crfs, and says with which code it ended and what it printed.
fn run(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new("timeout");
    command.args(["30", CRFS]).args(arguments);
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// Runs crfs and insists that it fails with this code and one message that holds all of `words`.
fn refused(arguments: &[&str], code: i32, words: &[&str]) {
    let (got, stdout, stderr) = run(arguments);
    assert_eq!(got, code, "{arguments:?}: {stderr}");
    assert_eq!(stdout, "", "{arguments:?}: errors are no output");
    for word in words {
        assert!(
            stderr.contains(word),
            "{arguments:?}: {word:?} is not in: {stderr}"
        );
    }
    if code == 1 {
        // A daemon may have logged that it begins.
        let mut said = stderr.lines().filter(|line| !line.contains(" INFO "));
        let first = said.next().unwrap_or_default();
        assert!(first.starts_with("crfs: "), "{arguments:?}: {stderr}");
    }
}

/// `crfs status | head`: also a reader that has left before the first line.
#[test]
fn an_output_that_nobody_reads_is_no_failure() {
    let root = TempDir::new().unwrap();
    let root = root.path().to_str().unwrap();
    for (arguments, code) in [
        (&["config", "show"][..], 0),
        (&["status", "--root", root], 3),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(CRFS);
        let done = command.args(arguments).stdout(writer).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(
            (done.status.code(), &*said),
            (Some(code), ""),
            "{arguments:?}"
        );
    }
}

#[test]
fn every_subcommand_explains_itself() {
    for name in [
        "", "serve", "status", "why", "layers", "top", "stop", "upgrade", "convert", "mount",
        "fsck", "config", "doctor", "setup",
    ] {
        let arguments: Vec<_> = [name, "--help"]
            .into_iter()
            .filter(|a| !a.is_empty())
            .collect();
        let (code, stdout, stderr) = run(&arguments);
        assert_eq!((code, stderr.as_str()), (0, ""), "{name}");
        let examples = stdout
            .split_once("Examples:")
            .unwrap_or_else(|| panic!("{stdout}"))
            .1;
        assert!(examples.contains(&format!("crfs {name}")), "{stdout}");
        if name.is_empty() {
            for command in [
                "serve", "why", "layers", "top", "stop", "upgrade", "convert", "mount", "fsck",
                "config", "doctor", "setup",
            ] {
                assert!(
                    stdout.contains(&format!("\n  {command} ")),
                    "{command}: {stdout}"
                );
            }
        }
    }
    let (_, serve, _) = run(&["serve", "--help"]);
    for default in [
        "/etc/crfs/config.toml",
        "/var/lib/crfs",
        "/run/crfs/crfs.sock",
    ] {
        assert!(serve.contains(&format!("[default: {default}")), "{serve}");
    }
    let (code, stdout, stderr) = run(&[]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(stderr.contains("Usage: crfs"), "{stderr}");
    let (code, stdout, _) = run(&["--version"]);
    let version = format!("crfs {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!((code, stdout), (0, version));
    refused(&["convrt"], 2, &["convrt", "convert"]);
    refused(&["serve", "--rot", "/x"], 2, &["--rot", "--root"]);
}

#[test]
fn what_is_wrong_with_serve_is_said() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (config, root, address) = (at("crfs.toml"), at("root"), at("run/crfs.sock"));
    let unused = ["--root", &root, "--address", &address];
    for (text, words) in [
        ("[fetch]\nbackgrond = true\n", ["line 2", "backgrond"]),
        ("root = 7\n", ["line 1", "root"]),
        ("[registry]\ndeadline = \"soon\"\n", ["line 2", "deadline"]),
        ("[lgo]\n", ["line 1", "lgo"]),
        ("[log]\nformat = \"xml\"\n", ["line 2", "text"]),
        (
            "[log]\nlevel = \"chatty\"\n",
            ["chatty", "error, warn, info, debug, trace"],
        ),
    ] {
        fs::write(&config, text).unwrap();
        let arguments = [&["serve", "--config", &config], &unused[..]].concat();
        refused(&arguments, 1, &words);
    }
    fs::write(&config, "").unwrap();
    let configured = ["serve", "--config", &config];
    let serve = |more: &[&str], words: &[&str]| {
        let arguments: Vec<_> = [&configured, more].concat();
        refused(&arguments, 1, words);
    };
    serve(
        &["--root", "here", "--address", &address],
        &["root", "\"here\"", "absolute"],
    );
    serve(
        &["--root", &root, "--address", "s"],
        &["address", "\"s\"", "absolute"],
    );
    serve(
        &["--root", "/tmp/a:b", "--address", &address],
        &["root", "/tmp/a:b", ": \\"],
    );
    serve(
        &[&unused[..], &["--log-level", "loud"]].concat(),
        &["loud", "error, warn"],
    );
    fs::write(at("file"), "").unwrap();
    serve(
        &["--root", &at("file"), "--address", &address],
        &[&at("file"), "Not a directory"],
    );
    fs::create_dir(at("open")).unwrap();
    fs::set_permissions(at("open"), fs::Permissions::from_mode(0o777)).unwrap();
    serve(
        &["--root", &root, "--address", &at("open/s")],
        &[&at("open"), "others may write"],
    );
    refused(
        &["serve", "--config", "/nonexistent.toml"],
        1,
        &["/nonexistent.toml", "No such file"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_starts_alone_and_ends_in_order() {
    let dir = TempDir::new().unwrap();
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = Serve::start(dir.path(), "", &[]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(daemon.socket().parent().unwrap()), 0o700);
        assert_eq!(mode(&daemon.socket()), 0o600);
        let client = daemon.client().await;
        client
            .prepare(&format!("key {signal:?}"), "", [].into())
            .await
            .unwrap();

        let flags = Serve::flags(dir.path());
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        let (pid, root) = (daemon.pid().to_string(), daemon.root());
        let second = [&["serve"], &flags[..]].concat();
        refused(
            &second,
            1,
            &[root.to_str().unwrap(), "in use", &pid, "stop it"],
        );
        let other = dir.path().join("other").display().to_string();
        let socket = daemon.socket().display().to_string();
        let second = [
            "serve",
            "--config",
            flags[1],
            "--root",
            &other,
            "--address",
            &socket,
        ];
        refused(&second, 1, &[&socket, "already"]);
        refused(
            &["fsck", "--root", root.to_str().unwrap()],
            1,
            &["in use", &pid],
        );

        // The client stays connected, as containerd does.
        let (status, took) = daemon.end(signal);
        assert!(status.success(), "{status}: {}", daemon.log());
        assert!(
            took < IN_ORDER,
            "{signal:?} took {took:?}: {}",
            daemon.log()
        );
        assert!(daemon.log().contains("stopping"), "{}", daemon.log());
        drop(client);
    }
    let daemon = Serve::start(dir.path(), "", &[]);
    let kept = daemon.client().await.list(&[]).await.unwrap();
    assert_eq!(kept.len(), 2, "nothing is deleted: {kept:?}");
}

#[test]
fn the_log_is_as_loud_and_as_formatted_as_asked_for() {
    let logged = |config: &str, options: &[&str]| {
        let dir = TempDir::new().unwrap();
        let mut daemon = Serve::start(dir.path(), config, options);
        daemon.end(Signal::TERM);
        daemon.log()
    };
    let text = logged("", &[]);
    assert!(
        text.contains(" INFO ") && text.contains("serving"),
        "{text}"
    );
    assert!(!text.contains("DEBUG"), "{text}");
    assert_eq!(logged("", &["--log-level", "error"]), "");
    assert_eq!(logged("[log]\nlevel = \"error\"\n", &[]), "");
    let flag = logged("[log]\nlevel = \"error\"\n", &["--log-level", "info"]);
    assert!(
        flag.contains("serving"),
        "the flag goes before the file: {flag}"
    );
    let json = logged("[log]\nformat = \"json\"\n", &[]);
    assert!(json.lines().count() >= 2, "{json}");
    for line in json.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        for key in ["timestamp", "level", "message", "target"] {
            assert!(line[key].is_string(), "{key}: {line}");
        }
    }
}

#[test]
fn what_is_wrong_with_convert_mount_and_fsck_is_said() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let out = format!("oci:{}:x", at("out"));
    refused(&["convert"], 2, &["<SRC>", "<DST>", "--help"]);
    refused(&["convert", &out], 2, &["<DST>"]);
    refused(
        &["convert", "https://r.io/a", &out],
        2,
        &["https://r.io/a", "docker://HOST/NAME:TAG"],
    );
    refused(&["convert", "oci::t", &out], 2, &["oci:DIR:TAG"]);
    refused(&["convert", &out, "r.io/a", "r.io/b"], 2, &["r.io/b"]);
    let missing = at("missing");
    let source = format!("oci:{missing}:t");
    refused(
        &["convert", &source, &out],
        1,
        &[&missing, "OCI layout", "index.json"],
    );
    assert!(
        !Path::new(&at("out")).exists(),
        "a wrong source makes no destination"
    );

    fs::write(at("quick.toml"), "[registry]\nretries = 0\n").unwrap();
    let quick = ["--config", &at("quick.toml")];
    let image = "127.0.0.1:1/team/app:tag";
    let down = ["127.0.0.1:1", "team/app", "cannot be reached", "refused"];
    refused(&[&["convert", image, &out], &quick[..]].concat(), 1, &down);
    let list = at("list");
    let profile = ["convert", image, &out, "--prefetch", &list];
    refused(&profile, 1, &[&list, "prefetch"]);

    let target = at("target");
    refused(&["mount", image], 2, &["<DIR>"]);
    refused(&["mount", "Not/An Image", &target], 2, &["Not/An Image"]);
    refused(
        &["mount", image, &target, "--layer", "two"],
        2,
        &["--layer", "two"],
    );
    refused(
        &["mount", image, &target],
        1,
        &[&target, "no such folder", "make it"],
    );
    fs::write(&target, "").unwrap();
    refused(&["mount", image, &target], 1, &[&target, "not a folder"]);
    fs::remove_file(&target).unwrap();
    fs::create_dir(&target).unwrap();
    refused(&[&["mount", image, &target], &quick[..]].concat(), 1, &down);

    refused(
        &["fsck", "--root", &missing],
        1,
        &[&missing, "No such file"],
    );
    refused(&["fsck", "--root", "relative"], 1, &["relative"]);
    assert!(!Path::new(&missing).exists(), "to look is not to make");
}

#[test]
fn convert_reads_and_writes_layouts_and_registries() {
    let bed = Bed::up("", &["--only", "registry"]);
    let layout = small_image(bed.folder(), "small");
    let at = |name: &str| format!("oci:{}", bed.folder().join(name).display());
    let remote = |name: &str| format!("docker://{}/{name}", bed.registry());
    let mut digests = Vec::new();
    for (source, destination) in [
        (format!("oci:{}:latest", layout.display()), at("one:app")),
        (
            format!("oci:{}:latest", layout.display()),
            remote("two:lazy"),
        ),
        (format!("oci:{}", layout.display()), remote("plain:tag")),
    ] {
        let (code, stdout, stderr) = run(&["convert", &source, &destination]);
        assert_eq!(code, 0, "{stderr}");
        let (said, digest) = stdout.trim_end().rsplit_once(' ').unwrap();
        assert_eq!(said, destination);
        assert!(
            !stderr.contains('\x1b'),
            "no terminal, no colours: {stderr:?}"
        );
        assert!(
            stderr.contains("layer 1/3"),
            "a line for each layer: {stderr}"
        );
        digests.push(digest.to_owned());
    }
    bed.push(&layout, "source:tag");
    for destination in [at("three:app"), remote("four:lazy")] {
        let source = remote("source:tag");
        let (code, stdout, stderr) = run(&["convert", &source, &destination, "--json"]);
        assert_eq!(code, 0, "{stderr}");
        let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(
            (&report["source"], &report["destination"]),
            (&source.into(), &destination.into())
        );
        assert_eq!(report["layers"].as_array().unwrap().len(), 3, "{report}");
        assert!(report["seconds"].as_f64().unwrap() > 0.0);
        digests.push(report["digest"].as_str().unwrap().to_owned());
    }
    digests.dedup();
    assert_eq!(digests.len(), 1, "the same bytes on every way: {digests:?}");
    let image = Image::of(&bed, &format!("{}/four:lazy", bed.registry()));
    assert_eq!(image.manifest, digests[0]);
    refused(
        &["convert", &remote("none:tag"), &at("five")],
        1,
        &["none:tag", "not found"],
    );
    let tag = format!("oci:{}:nightly", layout.display());
    refused(
        &["convert", &tag, &at("five")],
        1,
        &["\"nightly\"", "latest"],
    );
    let digest = remote(&format!("six@{}", digests[0]));
    refused(
        &["convert", &remote("source:tag"), &digest],
        1,
        &["by a tag, not by a digest"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn fsck_tells_a_good_root_from_a_damaged_one() {
    let bed = Bed::up("", &["--only", "registry"]);
    let image = bed.convert(&small_image(bed.folder(), "small"), "small:lazy");
    let folder = bed.folder().join("daemon");
    let mut daemon = Serve::start(&folder, "", &[]);
    serve::pull(&daemon.client().await, &Image::of(&bed, &image), "ns").await;
    daemon.end(Signal::TERM);
    let root = daemon.root();
    assert_eq!(serve::lazy_mounts(&root).len(), 3, "nothing is unmounted");
    let fsck = |more: &[&str]| run(&[&["fsck", "--root", root.to_str().unwrap()], more].concat());

    let (code, stdout, stderr) = fsck(&[]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    assert!(
        stdout.contains("3 snapshots; 0 losses, 0 damages"),
        "{stdout}"
    );

    let record = root.join("snapshots/2/record");
    let mut bytes = fs::read(&record).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&record, bytes).unwrap();
    for _ in 0..2 {
        let (code, stdout, _) = fsck(&[]);
        assert_eq!(code, 1, "{stdout}");
        assert!(stdout.contains("damage  folder 2: "), "{stdout}");
        assert!(stdout.contains("nothing changed"), "{stdout}");
    }
    let (code, stdout, _) = fsck(&["--repair"]);
    assert_eq!(code, 0, "{stdout}");
    assert!(
        stdout.contains("1 damages") && stdout.contains("repaired"),
        "{stdout}"
    );
    let (code, stdout, _) = fsck(&[]);
    assert_eq!(code, 0, "{stdout}");
    assert!(
        stdout.contains("3 snapshots; 0 losses, 0 damages"),
        "{stdout}"
    );
}

/// Three layers: two files, one of them replaced, one removed.
pub fn small_image(folder: &Path, name: &str) -> std::path::PathBuf {
    let tar = |n: usize, files: &[(&str, &[u8])]| {
        serve::tar(&folder.join(format!("{name}-{n}.tar")), files)
    };
    let noise = serve::noise(1, 300_000);
    let tars = [
        tar(
            0,
            &[
                ("etc/low", b"lowest"),
                ("etc/gone", b"here"),
                ("data", &noise),
            ],
        ),
        tar(1, &[("etc/low", b"replaced"), ("etc/middle", b"middle")]),
        tar(2, &[("etc/.wh.gone", b""), ("top", b"top")]),
    ];
    let tars: Vec<_> = tars.iter().map(std::path::PathBuf::as_path).collect();
    crate::bed::image_of(&tars, &folder.join(name))
}
