//! Private images on a node: what opens them reaches crfs, stays alive, outlives restarts, and is not
//! needed for what is cached.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::bed::{self, Bed};
use crate::cri::{PROXIED, Pod, bed_with_cri, prepare};

const ALICE: &str = "alice:open-sesame-alice";
const BOB: &str = "bob:open-sesame-bob";

#[test]
fn tokens_of_five_seconds_are_renewed_once_each_under_load() {
    let config = "[fetch]\nbackground = false\nreadahead = \"0B\"\n\
                  [registry]\ndocker_config = \"{node}/docker.json\"\n";
    let bed = Bed::up(config, &[]);
    let image = bed.convert(&bed::image("numpy"), "numpy:lazy");
    let auth = STANDARD.encode(ALICE);
    let login = json!({ "auths": { bed.registry(): { "auth": auth } } });
    fs::write(bed.folder().join("node/docker.json"), login.to_string()).unwrap();
    bed.guard(&json!({ "life": 5, "logins": { ALICE: "" } }));
    bed.pull_as(ALICE, &image);

    // Slow enough that reading all of it takes the time that is to be tested.
    let seconds: u64 = if bed::long() { 600 } else { 30 };
    let size = 95_000_000 * 8 / 1_000_000 / seconds;
    bed.relay("POST", &format!("link?rtt_ms=5&mbit={size}"));
    bed.relay("POST", "reset");
    let start = Instant::now();
    let read = "import concurrent.futures, os, sys
files = [os.path.join(d, f) for d, _, fs in os.walk('/usr') for f in fs]
files = [f for f in files if os.path.isfile(f) and not os.path.islink(f)]
def read(part):
    failed = 0
    for f in part:
        try: open(f, 'rb').read()
        except OSError as e: failed += 1; print(f, e)
    return failed
with concurrent.futures.ThreadPoolExecutor(6) as pool:
    failed = sum(pool.map(read, [files[n::6] for n in range(6)]))
print('read', len(files), 'failed', failed)";
    let said = bed.run(&image, "load", &["python3", "-c", read]);
    let took = start.elapsed().as_secs_f64();
    assert!(said.contains("failed 0"), "{said}");
    let counts = bed.relay("GET", "counts");
    let tokens = counts["tokens"].as_f64().unwrap();
    println!(
        "{took:.0} s, {tokens} tokens, {} requests, {} turned away",
        counts["requests"], counts["turned_away"]
    );
    assert!(took > seconds as f64 * 0.6, "the load ended after {took} s");
    assert!(
        tokens <= took / 4.5 + 2.0,
        "more than one refresh per expiry"
    );
    // Nobody asks while all connections bring bodies of many seconds, and then nothing is renewed.
    assert!(
        tokens >= took / 5.0 * 0.8,
        "the load was not one all the time"
    );
    assert!(
        counts["turned_away"].as_f64().unwrap() <= 2.0,
        "tokens are renewed before they end"
    );
}

#[test]
fn a_pods_credentials_reach_crfs_and_outlive_it() {
    let Some(mut bed) = bed_with_cri(PROXIED, "transfer") else {
        return;
    };
    prepare(&bed);
    let a = bed.convert(&bed::image("numpy"), "a/numpy:lazy");
    let b = bed.convert(&bed::image("numpy"), "b/numpy:lazy");
    let public = ["pause"];
    bed.guard(&json!({ "logins": { ALICE: "a/", BOB: "b/" }, "public": public }));
    bed.relay("POST", "reset");
    assert!(
        !bed.try_crictl(&["pull", &a]).status.success(),
        "it is private"
    );
    bed.crictl(&["pull", "--creds", ALICE, &a]);
    assert!(
        bed.bytes_served() < 8_000_000,
        "lazily: {}",
        bed.bytes_served()
    );
    let pod = Pod::run(&bed, &a, "private");
    let read = |bed: &Bed, what: &str| {
        let size = pod.exec(bed, &["sh", "-c", &format!("cat {what} | wc -c")]);
        let read = size.trim().parse::<u64>().unwrap_or_default();
        assert!(read > 1000, "{what}: {size}\n{}", bed.crfs_log());
    };
    read(&bed, "/usr/lib/python3/dist-packages/numpy/core/*.py");

    bed.tell("crfs stop");
    bed.tell("crfs start");
    bed.wait_for_crfs();
    let tokens = |bed: &Bed| bed.relay("GET", "counts")["tokens"].as_u64().unwrap();
    let before = tokens(&bed);
    read(&bed, "/usr/lib/python3/dist-packages/numpy/ma/*.py");
    assert!(
        tokens(&bed) > before,
        "the new process has shown what the old one learned"
    );
    nothing_secret_lies_about(&bed);

    // The same layers, by another image and somebody else's credentials; then the first are revoked.
    bed.crictl(&["pull", "--creds", BOB, &b]);
    bed.guard(&json!({ "logins": { BOB: "b/" }, "public": public }));
    read(&bed, "/usr/lib/python3/dist-packages/numpy/linalg/*.py");
    bed.tell("crfs stop");
    bed.tell("crfs start");
    bed.wait_for_crfs();
    read(&bed, "/usr/lib/python3/dist-packages/numpy/random/*.py*");

    // Nobody is let in any more: what was read is read again, by a crfs that has just started.
    bed.guard(&json!({ "logins": {}, "public": public }));
    bed.tell("crfs stop");
    bed.tell("crfs start");
    bed.wait_for_crfs();
    let drop = Command::new("sh")
        .args(["-c", "echo 3 >/proc/sys/vm/drop_caches"])
        .status();
    println!("page cache dropped: {}", drop.unwrap().success());
    read(&bed, "/usr/lib/python3/dist-packages/numpy/linalg/*.py");
    let refused = pod.exec(
        &bed,
        &[
            "sh",
            "-c",
            "cat /usr/lib/python3/dist-packages/numpy/fft/*.py >/dev/null 2>&1; echo $?",
        ],
    );
    assert_eq!(
        refused.trim(),
        "1",
        "what was never read is refused, and says so"
    );
    // And let in again.
    bed.guard(&json!({ "logins": { ALICE: "a/" }, "public": public }));
    bed::wait_for("reads to go on", 20, || {
        let done = pod.exec(
            &bed,
            &[
                "sh",
                "-c",
                "cat /usr/lib/python3/dist-packages/numpy/fft/*.py >/dev/null 2>&1; echo $?",
            ],
        );
        done.trim() == "0"
    });
    pod.remove(&bed);
}

/// Neither in what crfs keeps nor in what it says.
fn nothing_secret_lies_about(bed: &Bed) {
    bed::wait_for("the credentials to be kept", 5, || {
        bed.crfs_root().join("credentials").exists()
    });
    std::thread::sleep(Duration::from_millis(100));
    let mut grep = Command::new("grep");
    grep.args([
        "-r",
        "-l",
        "-a",
        "--devices=skip",
        "open-sesame",
        "--exclude-dir=snapshots",
    ]);
    grep.arg(bed.crfs_root()).arg(bed.value("CRFS_LOG"));
    let found = grep.output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&found.stdout),
        "",
        "a secret in the clear"
    );
}

/// A stand-in for Kubernetes' API server; ends with the test.
struct Api {
    server: Child,
    folder: PathBuf,
}

impl Api {
    fn start(bed: &Bed) -> Self {
        let folder = bed.folder().join("node/kube");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/integration/bed/kubeapi.py");
        let mut python = Command::new(bed.value("PYTHON"));
        python
            .args([script, folder.to_str().unwrap()])
            .stdout(Stdio::piped());
        let mut server = python.spawn().unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(server.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "READY=1\n");
        Self { server, folder }
    }

    /// The only pull secrets from now on: one for another registry, and one for this.
    fn holds(&self, registry: &str, login: &str) {
        let other = json!({ "auths": { "r.example": { "auth": STANDARD.encode(login) } } });
        let ours = json!({ "auths": { registry: { "auth": STANDARD.encode(login) } } });
        let fresh = self.folder.join("fresh");
        fs::write(&fresh, json!({ "other": other, "ours": ours }).to_string()).unwrap();
        fs::rename(fresh, self.folder.join("secrets.json")).unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }

    fn end(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        // It may have been ended by the test.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
fn pull_secrets_open_images_and_may_be_rotated() {
    let config =
        "[fetch]\nbackground = false\n[credentials]\nkubeconfig = \"{node}/kube/kubeconfig\"\n";
    let mut bed = Bed::up(config, &[]);
    let image = bed.convert(&bed::image("numpy"), "numpy:lazy");
    let mut api = Api::start(&bed);
    api.holds(bed.registry(), ALICE);
    bed.guard(&json!({ "logins": { ALICE: "" } }));
    bed.relay("POST", "reset");
    bed.pull_as(ALICE, &image);
    assert!(
        bed.bytes_served() < 8_000_000,
        "lazily: {}",
        bed.bytes_served()
    );
    let run = |bed: &Bed, name: &str, what: &str| {
        let said = bed.run(&image, name, &["sh", "-c", &format!("cat {what} | wc -c")]);
        assert!(said.trim().parse::<u64>().unwrap() > 1000, "{what}: {said}");
    };
    run(
        &bed,
        "first",
        "/usr/lib/python3/dist-packages/numpy/core/*.py",
    );
    // Rotated; and with it crfs restarted, which then knows nothing but the kubeconfig.
    bed.guard(&json!({ "logins": { BOB: "" } }));
    api.holds(bed.registry(), BOB);
    run(
        &bed,
        "rotated",
        "/usr/lib/python3/dist-packages/numpy/ma/*.py",
    );
    let kube = bed.folder().join("node/kube");
    fs::rename(kube.join("by-program"), kube.join("kubeconfig")).unwrap();
    bed.tell("crfs stop");
    bed.tell("crfs start");
    bed.wait_for_crfs();
    run(
        &bed,
        "restarted",
        "/usr/lib/python3/dist-packages/numpy/linalg/*.py",
    );
    // Without the API server what it said last holds, and what is cached needs nobody.
    api.end();
    bed.guard(&json!({ "life": 1, "logins": { BOB: "" } }));
    run(
        &bed,
        "without",
        "/usr/lib/python3/dist-packages/numpy/fft/*.py",
    );
    bed.tell("crfs kill");
    bed.tell("crfs start");
    bed.wait_for_crfs();
    run(
        &bed,
        "cached",
        "/usr/lib/python3/dist-packages/numpy/fft/*.py",
    );
    let log = api.log();
    let only =
        |line: &str| line.starts_with("GET /api/v1/secrets?") && line.ends_with(" bed client");
    assert!(log.lines().all(only), "{log}");
    // The pull, the rotation and the restart, two pages each; and at most one more that was too old.
    assert!((6..=8).contains(&log.lines().count()), "{log}");
}
