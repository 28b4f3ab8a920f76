//! The documentation to the letter: every command line of `README.md` and `deploy/*.md` is run, in the order of the text, on a
//! machine as the text assumes it (`integration/bed/letter.sh`), or listed here with what else holds it. One that is in
//! neither list fails the test, and so does one that is listed and not written any more.

use std::fs;
use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use tempfile::TempDir;

use crate::bed::{self, CRFS};

const TREE: &str = env!("CARGO_MANIFEST_DIR");

/// A command of the text, what it has to say, and its exit status.
struct Run(&'static str, &'static str, i32);

/// Every command that is run, in the order of the text. What stands in brackets is done before the one that follows.
const RUN: &[Run] = &[
    Run("install target/release/crfs /usr/local/bin/", "", 0),
    Run("crfs serve &", "", 0),
    Run(
        "[until [ -S /run/crfs/crfs.sock ]; do sleep 0.05; done]",
        "",
        0,
    ),
    Run("crfs setup --dry-run", "+[proxy_plugins.crfs]", 0),
    Run("crfs setup", "an image was pulled lazily and read", 0),
    Run("crfs doctor", "/etc/containerd/config.toml is right", 0),
    Run(
        "crfs convert docker://docker.io/library/python:3.12 docker://registry.example/python:3.12-lazy",
        "docker://registry.example/python:3.12-lazy sha256:",
        0,
    ),
    Run(
        "ctr image pull --snapshotter crfs registry.example/python:3.12-lazy",
        "saved",
        0,
    ),
    Run(
        r#"ctr run --rm --snapshotter crfs registry.example/python:3.12-lazy demo python3 -c 'print("hello")'"#,
        "hello",
        0,
    ),
    Run(
        "crfs pull registry.example/python:3.12-lazy",
        "registry.example/python:3.12-lazy",
        0,
    ),
    Run(
        r#"ctr run --rm --snapshotter crfs registry.example/python:3.12-lazy demo python3 -c 'print("hello")'"#,
        "hello",
        0,
    ),
    Run("crfs why", "4 of 4 layers are lazy", 0),
    Run(
        "crfs why registry.example/python:3.12",
        "0 of 4 layers would be lazy",
        3,
    ),
    Run(
        "[crfs convert docker://docker.io/library/app:1 docker://registry.example/app:1]",
        "",
        0,
    ),
    Run(
        "[ctr image pull --snapshotter crfs registry.example/app:1]",
        "",
        0,
    ),
    Run("crfs complete registry.example/app:1", "", 0),
    Run("ctr image export app.tar registry.example/app:1", "", 0),
    Run(
        "crfs profile registry.example/python:3.12-lazy >start.txt",
        "",
        0,
    ),
    Run(
        "crfs convert --prefetch start.txt docker://docker.io/library/python:3.12 docker://registry.example/python:3.12-fast",
        "docker://registry.example/python:3.12-fast sha256:",
        0,
    ),
    // deploy/TROUBLESHOOTING.md
    Run("crfs doctor", "serves /run/crfs/crfs.sock", 0),
    Run(
        "crfs doctor registry.example/app:1",
        "registry.example/app:1 can be read",
        0,
    ),
    Run("crfs why registry.example/app:1", "layers are lazy", 0),
    Run("crfs complete registry.example/app:1", "", 0),
    Run("crfs config check", "every key has its default", 0),
    Run("crfs status", "lazy, of 2 images", 0),
    Run("crfs top", "0 degraded", ENDED),
    Run("systemctl reload crfs", "", 0),
    Run("[sleep 0.3]", "", 0),
    Run("crfs status", "configuration   reloaded", 0),
    Run(
        "crfs layers --json | jq '.layers[] | select(.users == 0) | .image'",
        "\"registry.example/python:3.12-lazy\"",
        0,
    ),
    Run("[systemctl stop crfs]", "", 0),
    Run("crfs fsck", " snapshots; 0 losses, 0 damages", 0),
    Run("crfs fsck --repair", " snapshots; 0 losses, 0 damages", 0),
    Run("[systemctl start crfs]", "", 0),
    Run(
        "[until ctr snapshots --snapshotter crfs ls; do sleep 0.2; done]",
        "",
        0,
    ),
    Run(
        "[ctr image rm --sync registry.example/python:3.12-lazy registry.example/app:1]",
        "",
        0,
    ),
    Run(
        "[until crfs layers | grep 'no lazy layer'; do sleep 0.2; done]",
        "",
        0,
    ),
    Run("crfs setup --undo", "is as it was", 0),
    Run("systemctl disable --now crfs", "", 0),
    Run("crfs stop --force", "", 0),
    Run(
        "[! grep -E ' - fuse[^ ]* crfs:' /proc/self/mountinfo]",
        "",
        0,
    ),
    Run("[! grep -rs crfs /etc/containerd]", "", 0),
];

/// What runs until it is ended, which is after two seconds.
const ENDED: i32 = 124;

/// Commands that are not run here, and why. A script of this tree is looked at: it can be started, and knows the options.
const NOT_RUN: &[(&str, &str)] = &[
    (
        "deploy/demo.sh",
        "builds crfs; its parts are the bed of every test",
    ),
    ("cargo build --release", "made the program that is run here"),
    ("integration/run.sh", "runs this test"),
    ("integration/run.sh oci:: node::", "runs this test"),
    ("integration/run.sh --long", "runs this test"),
    (
        "integration/bed/pen.sh cargo test --release --test node",
        "is how this test is run",
    ),
    (
        "integration/bed/pen.sh integration/bed/up.sh /tmp/bed",
        "is the bed of every test",
    ),
    ("integration/bench/run.sh", "bench.rs runs it on little"),
    (
        "integration/bench/run.sh --only python --runs 5",
        "bench.rs runs it on little",
    ),
    (
        "integration/bench/run.sh --only small,micro --link 50:200",
        "bench.rs runs it on little",
    ),
    (
        "integration/bench/run.sh --image redis=/tmp/redis",
        "an image as it is: what bench.rs runs on little, by another name",
    ),
    (
        "integration/bench/run.sh --save integration/bench",
        "bench.rs runs it on little",
    ),
    (
        "integration/bench/run.sh --only python,killed --peer stargz=/usr/local/bin/containerd-stargz-grpc",
        "bench.rs runs it on little, beside a stand-in",
    ),
    (
        "docker build --file deploy/Dockerfile --tag registry.example/crfs:0.1.0 .",
        "no base image is here; deploy_pod.rs holds the file against what it copies",
    ),
    ("docker push registry.example/crfs:0.1.0", "the same"),
    (
        "kubectl apply -f deploy/daemonset.yaml",
        "no cluster is here; deploy_pod.rs runs what its pod runs",
    ),
    (
        "kubectl -n kube-system rollout status daemonset/crfs",
        "the same",
    ),
    (
        "kubectl -n kube-system logs daemonset/crfs -c install",
        "the same",
    ),
    ("systemctl restart crfs k3s", "no k3s is here"),
    (
        "k3s ctr image pull --snapshotter crfs registry.example/app:1",
        "the same",
    ),
];

/// The rows of README's table of commands, and what is run for each once an image is there; `""`: it is in [`RUN`].
const ROWS: &[(&str, &str, &str)] = &[
    ("crfs serve", "", ""),
    ("crfs stop [--force]", "", ""),
    ("crfs status", "", ""),
    ("crfs why [IMAGE]", "", ""),
    (
        "crfs layers",
        "crfs layers",
        "registry.example/python:3.12-lazy",
    ),
    ("crfs top", "", ""),
    ("crfs upgrade [EXE]", "crfs upgrade", ""),
    ("crfs pull IMAGE", "", ""),
    ("crfs complete IMAGE", "", ""),
    ("crfs convert SRC DST", "", ""),
    (
        "crfs mount REF DIR",
        "mkdir m && { timeout -s INT 2 crfs mount registry.example/python:3.12-lazy m & sleep 1; ls m/usr; wait; ls -A m; }",
        "bin",
    ),
    (
        "crfs profile [IMAGE]",
        "until crfs profile registry.example/python:3.12-lazy; do sleep 0.2; done; crfs profile; crfs profile registry.example/python:3.12-lazy",
        "usr/lib/python3",
    ),
    ("crfs fsck [--repair]", "", ""),
    ("crfs config check", "crfs config show", "[fetch]"),
    ("crfs setup", "", ""),
    ("crfs doctor [IMAGE]", "", ""),
];

/// README first, then the rest by name.
fn documents() -> Vec<(PathBuf, String)> {
    let folder = fs::read_dir(Path::new(TREE).join("deploy")).unwrap();
    let mut found: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|name| name == "md"));
    found.sort();
    found.insert(0, Path::new(TREE).join("README.md"));
    let read = |path: PathBuf| (path.clone(), fs::read_to_string(path).unwrap());
    found.into_iter().map(read).collect()
}

/// The command lines of a text: what is indented by four, and what a fence says is for a shell. Comments are left out.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut fence = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), fence) {
            (Some(_), Some(_)) => fence = None,
            (Some(language), None) => {
                assert!(!language.is_empty(), "a fence without a language");
                fence = Some(language);
            }
            (None, Some("sh" | "bash" | "console")) => found.push(line),
            (None, Some(_)) => {}
            (None, None) => found.extend(line.strip_prefix("    ")),
        }
    }
    let bare = |line: &str| {
        line.split(" #")
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    found.retain(|line| !line.trim().is_empty() && !line.trim().starts_with('#'));
    found.into_iter().map(bare).collect()
}

fn all_commands() -> Vec<String> {
    documents()
        .iter()
        .flat_map(|(_, text)| commands(text))
        .collect()
}

/// The first fenced block of a language that has these words.
fn block(file: &str, language: &str, words: &str) -> String {
    let text = fs::read_to_string(Path::new(TREE).join(file)).unwrap();
    let parts = text.split("\n```").skip(1).step_by(2);
    let mut blocks = parts.filter_map(|part| part.strip_prefix(language));
    let found = blocks.find(|block| block.contains(words));
    found
        .unwrap_or_else(|| panic!("{file} has no {words}"))
        .to_owned()
}

/// `letter.sh`: takes command lines, answers with their exit status.
struct Machine {
    script: Child,
    lines: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
    folder: TempDir,
}

impl Machine {
    fn up() -> Self {
        let folder = TempDir::with_prefix("letter-").unwrap();
        let mut script = Command::new("unshare")
            .args(["--mount", "--net", "--"])
            .arg(Path::new(TREE).join("integration/bed/letter.sh"))
            .args([folder.path(), Path::new(CRFS)])
            .args([bed::image("numpy"), bed::image("busybox")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = script.stdin.take();
        let mut answers = BufReader::new(script.stdout.take().unwrap()).lines();
        let first = answers.next().map(Result::unwrap);
        assert_eq!(first.as_deref(), Some("READY"));
        Self {
            script,
            lines,
            answers,
            folder,
        }
    }

    /// Runs a line; gives its exit status and what it printed.
    fn run(&mut self, line: &str) -> (i32, String) {
        writeln!(self.lines.as_mut().unwrap(), "{line}").unwrap();
        let status = self.answers.next().expect("an answer").unwrap();
        let said = fs::read(self.folder.path().join("said")).unwrap();
        let said = String::from_utf8_lossy(&said).into_owned();
        (status.parse().unwrap(), said)
    }

    fn insist(&mut self, line: &str, words: &str, expected: i32) {
        let (status, said) = self.run(line);
        assert!(
            status == expected && said.contains(words),
            "{line}: status {status}, not {expected}, or {words:?} not in:\n{said}\nlog:\n{}",
            self.run("journalctl -u crfs | tail -n 40").1
        );
    }

    /// Writes a file below /etc.
    fn write(&self, name: &str, text: &str) {
        let file = self.folder.path().join("etc").join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.lines.take());
        drop(self.script.wait());
    }
}

#[test]
fn every_command_of_the_text_is_run_or_accounted_for() {
    let written = all_commands();
    for (command, why) in NOT_RUN {
        assert!(
            written.iter().any(|one| one == command),
            "{command} ({why})"
        );
        let mut words = command.split_whitespace();
        let program = words.next().unwrap();
        if !program.contains('/') {
            continue;
        }
        let program = Path::new(TREE).join(program);
        let mode = fs::metadata(&program).unwrap().permissions().mode();
        assert_ne!(mode & 0o111, 0, "{command}");
        let script = fs::read_to_string(&program).unwrap();
        let options = words
            .take_while(|word| *word != "cargo")
            .filter(|word| word.starts_with("--"));
        for option in options {
            assert!(script.contains(option), "{command}: {option}");
        }
    }
    let is_listed = |command: &&String| NOT_RUN.iter().any(|(listed, _)| listed == command);
    let others: Vec<_> = written.iter().filter(|one| !is_listed(one)).collect();
    let run = RUN.iter().map(|Run(command, ..)| *command);
    let run: Vec<_> = run.filter(|command| !command.starts_with('[')).collect();
    assert_eq!(others, run, "what is written, and what is run");

    let readme = fs::read_to_string(Path::new(TREE).join("README.md")).unwrap();
    let table = readme.split("### Commands").nth(1).unwrap();
    let table = table.split("###").next().unwrap();
    let rows = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `crfs "));
    let rows: Vec<_> = rows
        .map(|row| format!("crfs {}", row.split('`').next().unwrap()))
        .collect();
    let listed: Vec<_> = ROWS.iter().map(|(row, ..)| *row).collect();
    assert_eq!(rows, listed, "the table of commands");
    for (row, ..) in ROWS.iter().filter(|(_, command, _)| command.is_empty()) {
        let is_name = |word: &&str| word.starts_with(char::is_lowercase);
        let name: Vec<_> = row.split(' ').take_while(is_name).collect();
        let name = name.join(" ");
        assert!(
            run.iter().any(|command| command.starts_with(&name)),
            "{row}"
        );
    }
}

#[test]
fn the_commands_of_the_text_do_what_it_says() {
    let mut machine = Machine::up();
    for Run(command, words, status) in RUN {
        match command.strip_prefix('[') {
            Some(done) => machine.insist(done.strip_suffix(']').unwrap(), words, *status),
            None if *status == ENDED => {
                machine.insist(&format!("timeout 2 {command}"), words, ENDED);
            }
            None => machine.insist(command, words, *status),
        }
        if command.starts_with("crfs pull ") {
            for (_, command, words) in ROWS.iter().filter(|(_, command, _)| !command.is_empty()) {
                machine.insist(command, words, 0);
            }
        }
    }

    // The configurations that the text shows are right, and do what it says.
    let by_hand = block("README.md", "toml", "[proxy_plugins.crfs]");
    machine.write("containerd/config.toml", &by_hand);
    machine.write(
        "crfs/config.toml",
        &block("deploy/METRICS.md", "toml", "[metrics]"),
    );
    machine.insist("crfs config check", "", 0);
    machine.insist("systemctl start crfs", "", 0);
    let metrics =
        "for i in $(seq 50); do curl -fsS http://127.0.0.1:9253/metrics && break; sleep 0.1; done";
    machine.insist(metrics, "crfs_mounts 0", 0);
    machine.insist("systemctl restart containerd", "", 0);
    machine.insist("crfs doctor", "/etc/containerd/config.toml is right", 0);
    machine.insist("crfs setup --verify", "pulled lazily and read", 0);
    machine.insist("crfs stop --force", "", 0);
}
