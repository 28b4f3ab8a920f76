//! A whole node for one test: registry, containerd and crfs, brought up by `integration/bed/up.sh`.
//!
//! The bed lives as long as the [`Bed`]: dropping it closes the script's standard input, and the
//! script takes everything down. What even that leaves is taken by the pen around the test.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

use rustix::process::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// The compiled `crfs` of this build.
pub const CRFS: &str = env!("CARGO_BIN_EXE_crfs");

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/integration/bed");

/// A running node.
pub struct Bed {
    values: HashMap<String, String>,
    commands: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
    script: Child,
    folder: TempDir,
}

impl Bed {
    /// Brings a node up: crfs with this configuration, `up.sh` with these options. `{node}` in the
    /// configuration is the node's folder.
    pub fn up(config: &str, options: &[&str]) -> Self {
        let folder = TempDir::with_prefix("bed-").unwrap();
        let node = folder.path().join("node");
        fs::create_dir_all(&node).unwrap();
        let config = config.replace("{node}", node.to_str().unwrap());
        fs::write(node.join("crfs.toml"), config).unwrap();
        let mut script = Command::new(format!("{SCRIPTS}/up.sh"))
            .arg(folder.path())
            .args(options)
            .env("CRFS_BIN", CRFS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = script.stdin.take();
        let answers = BufReader::new(script.stdout.take().unwrap()).lines();
        let mut bed = Self {
            values: HashMap::new(),
            commands,
            answers,
            script,
            folder,
        };
        bed.read_until("READY");
        bed
    }

    /// A value that the bed has printed: `REGISTRY`, `CRFS_PID`, `CRFS_ROOT`…
    pub fn value(&self, key: &str) -> &str {
        self.values
            .get(key)
            .unwrap_or_else(|| panic!("the bed has no {key}"))
    }

    /// The real `ctr`, beside which the rest of containerd is: [`Self::ctr`] runs a script that names it.
    pub fn real_ctr(&self) -> PathBuf {
        let script = fs::read_to_string(self.value("CTR")).unwrap();
        let mut words = script.split('\'');
        words.find(|word| word.ends_with("/ctr")).unwrap().into()
    }

    /// The registry as crfs sees it: `127.0.0.1:PORT`, behind the counting relay.
    pub fn registry(&self) -> &str {
        self.value("REGISTRY")
    }

    /// The folder that everything of this bed lies in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// crfs's root folder.
    pub fn crfs_root(&self) -> PathBuf {
        PathBuf::from(self.value("CRFS_ROOT"))
    }

    /// The process that serves; `None` between two of them.
    pub fn server(&self) -> Option<Pid> {
        let pid = fs::read_to_string(self.crfs_root().join("server.pid")).ok()?;
        Pid::from_raw(pid.trim().parse().ok()?)
    }

    /// What crfs has logged so far.
    pub fn crfs_log(&self) -> String {
        fs::read_to_string(self.value("CRFS_LOG")).unwrap()
    }

    /// One of the script's commands: `crfs stop`, `containerd start`, `clear`…
    pub fn tell(&mut self, command: &str) {
        writeln!(self.commands.as_mut().unwrap(), "{command}").unwrap();
        self.read_until("OK");
    }

    /// Waits until containerd reaches crfs again: its client pauses after a failure to connect.
    pub fn wait_for_crfs(&self) {
        let list = ["snapshots", "--snapshotter", "crfs", "ls"];
        wait_for("containerd to reach crfs", 20, || {
            self.try_ctr(&list).status.success()
        });
    }

    /// Runs `ctr` and insists that it succeeds; gives what it printed.
    pub fn ctr(&self, arguments: &[&str]) -> String {
        checked(
            &self.try_ctr(arguments),
            &format!("ctr {arguments:?}"),
            &self.crfs_log(),
        )
    }

    /// Runs `ctr`, whatever comes of it.
    pub fn try_ctr(&self, arguments: &[&str]) -> Output {
        let mut ctr = Command::new("timeout");
        let seconds = if long() { "3600" } else { "120" };
        ctr.args([seconds, self.value("CTR")]).args(arguments);
        ctr.stdin(Stdio::null()).output().unwrap()
    }

    /// Pulls an image through a snapshotter.
    pub fn pull(&self, snapshotter: &str, image: &str) {
        let plain = "--plain-http";
        self.ctr(&["image", "pull", plain, "--snapshotter", snapshotter, image]);
    }

    /// Pulls a private image through crfs, as who has this `user:password`.
    pub fn pull_as(&self, login: &str, image: &str) {
        let pull = ["image", "pull", "--snapshotter", "crfs", "--plain-http"];
        self.ctr(&[&pull[..], &["--user", login, image]].concat());
    }

    /// Mounts an image that was pulled by crfs; gives the folder.
    pub fn mount(&self, image: &str) -> PathBuf {
        let target = self.folder().join("mounted");
        fs::create_dir_all(&target).unwrap();
        let mount = ["image", "mount", "--snapshotter", "crfs", image];
        self.ctr(&[&mount[..], &[target.to_str().unwrap()]].concat());
        target
    }

    /// Runs a command in a new container of an image that was pulled by crfs.
    pub fn run(&self, image: &str, name: &str, command: &[&str]) -> String {
        let name = format!("{}-{name}", self.value("NAMESPACE"));
        let mut arguments = vec!["run", "--rm", "--snapshotter", "crfs", image, &name];
        arguments.extend(command);
        self.ctr(&arguments)
    }

    /// `crfs convert` of an OCI layout into the registry; gives the image's reference.
    pub fn convert(&self, layout: &Path, name: &str) -> String {
        let image = format!("{}/{name}", self.registry());
        let source = format!("oci:{}:latest", layout.display());
        crfs(&["convert", &source, &format!("docker://{image}")]);
        image
    }

    /// Pushes an OCI layout as it is; gives the image's reference.
    pub fn push(&self, layout: &Path, name: &str) -> String {
        let image = format!("{}/{name}", self.registry());
        let mut push = Command::new(self.value("PYTHON"));
        push.arg(format!("{SCRIPTS}/push.py"))
            .args([&format!("{}:latest", layout.display()), &image]);
        checked(&push.output().unwrap(), "push.py", "");
        image
    }

    /// Bytes of answers that have left the registry since the counts were reset.
    pub fn bytes_served(&self) -> u64 {
        self.relay("GET", "counts")["total"].as_u64().unwrap()
    }

    /// Requests that reached the registry since the counts were reset.
    pub fn requests_served(&self) -> u64 {
        self.relay("GET", "counts")["requests"].as_u64().unwrap()
    }

    /// Runs `crictl` and insists that it succeeds; gives what it printed.
    pub fn crictl(&self, arguments: &[&str]) -> String {
        let log = fs::read_to_string(self.value("CONTAINERD_LOG")).unwrap();
        let done = self.try_crictl(arguments);
        checked(
            &done,
            &format!("crictl {arguments:?}"),
            &(log + &self.crfs_log()),
        )
    }

    /// Runs `crictl`, whatever comes of it.
    pub fn try_crictl(&self, arguments: &[&str]) -> Output {
        let mut crictl = Command::new("timeout");
        crictl.args(["120", self.value("CRICTL")]).args(arguments);
        crictl.stdin(Stdio::null()).output().unwrap()
    }

    /// Speaks to the relay: `reset`, `link?rtt_ms=100&mbit=0`, `down?on=1`, `fail?status=503&count=4`.
    pub fn relay(&self, method: &str, verb: &str) -> Value {
        let answer = self.curl(verb, &["-X", method]);
        serde_json::from_str(&answer).unwrap_or(Value::Null)
    }

    /// Sets who may read what of the registry: see `integration/bed/guard.py`.
    pub fn guard(&self, said: &Value) {
        self.curl("guard", &["-d", &said.to_string()]);
    }

    fn curl(&self, verb: &str, arguments: &[&str]) -> String {
        let url = format!("http://{}/_relay/{verb}", self.registry());
        let mut curl = Command::new("curl");
        curl.args(["-fsS", "--noproxy", "*", "--max-time", "10"]);
        checked(&curl.args(arguments).arg(url).output().unwrap(), "curl", "")
    }

    fn read_until(&mut self, last: &str) {
        for line in self.answers.by_ref() {
            let line = line.unwrap();
            let Some((key, value)) = line.split_once('=') else {
                continue;
            };
            assert_ne!(key, "FAILED", "the bed could not do that");
            if key == last {
                return;
            }
            self.values.insert(key.to_owned(), value.to_owned());
        }
        panic!("the bed ended before it said {last}");
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        drop(self.commands.take());
        let _ = self.script.wait();
    }
}

/// Runs the `crfs` of this build and insists that it succeeds; gives what it printed.
pub fn crfs(arguments: &[&str]) -> String {
    let done = Command::new(CRFS)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    checked(&done, &format!("crfs {arguments:?}"), "")
}

/// The same, insisting that it fails; gives what it said.
pub fn crfs_refuses(arguments: &[&str]) -> String {
    let done = Command::new(CRFS)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!done.status.success(), "crfs {arguments:?}: {done:?}");
    String::from_utf8_lossy(&done.stderr).into_owned()
}

/// A program at `path` that says it is crfs, and serves nothing.
pub fn crfs_that_fails(path: &Path) {
    let script = format!("#!/bin/sh\n[ \"$1\" != --version ] || exec '{CRFS}' --version\nexit 1\n");
    fs::write(path, script).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The image of an OCI layout with `count` more layers of files on top, below `data/`; in `out`.
pub fn append(layout: &Path, out: &Path, count: usize) {
    let mut append = Command::new("python3");
    append
        .arg(format!("{SCRIPTS}/append.py"))
        .args([layout, out]);
    checked(
        &append.arg(count.to_string()).output().unwrap(),
        "append.py",
        "",
    );
}

/// The OCI layout of a named image, built from Debian packages once and kept.
pub fn image(name: &str) -> PathBuf {
    let done = Command::new(format!("{SCRIPTS}/image.sh"))
        .arg(name)
        .output()
        .unwrap();
    PathBuf::from(checked(&done, "image.sh", "").trim())
}

/// An OCI layout of tar files, lowest layer first.
pub fn image_of(tars: &[&Path], out: &Path) -> PathBuf {
    let layers: Vec<_> = tars
        .iter()
        .map(|tar| serde_json::json!({ "tar": tar }))
        .collect();
    let spec = out.with_extension("json");
    fs::write(&spec, serde_json::json!({ "layers": layers }).to_string()).unwrap();
    let mut make = Command::new("python3");
    make.arg(format!("{SCRIPTS}/mkimage.py")).args([&spec, out]);
    checked(&make.output().unwrap(), "mkimage.py", "");
    out.to_owned()
}

/// Whether the long form of the tests is asked for.
pub fn long() -> bool {
    std::env::var_os("CRFS_LONG").is_some()
}

fn checked(output: &Output, what: &str, log: &str) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{what}: {}\n{stderr}\n{log}",
        output.status
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until something is so.
pub fn wait_for(what: &str, seconds: u64, mut is_so: impl FnMut() -> bool) {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
    while !is_so() {
        assert!(
            std::time::Instant::now() < until,
            "waited {seconds} s for {what}"
        );
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}
