//! Pods through containerd's CRI, by a real client: `crictl`, which speaks what kubelet speaks.
//!
//! All calls, those of the runtime too, go through crfs's CRI proxy. Pods use the host's network:
//! there is no CNI in a bed, and none is needed for what crfs does.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::bed::{self, Bed};

/// crfs as kubelet's image service endpoint, nothing fetched but what is read.
pub const PROXIED: &str = "
[fetch]
background = false
[containerd]
address = \"{node}/containerd.sock\"
[cri]
listen = \"{node}/cri.sock\"
[credentials]
key_file = \"{node}/key/credentials\"
";

#[test]
fn a_pod_is_pulled_and_run_lazily_by_the_transfer_service() {
    pulled_and_run("transfer");
}

#[test]
fn a_pod_is_pulled_and_run_lazily_by_the_cri_itself() {
    pulled_and_run("annotations");
}

#[test]
fn calls_wait_for_the_next_daemon() {
    let Some(mut bed) = bed_with_cri(PROXIED, "transfer") else {
        return;
    };
    let pause = bed.convert(&bed::image("pause"), "pause:lazy");
    bed.crictl(&["pull", &pause]);
    for _ in 0..10 {
        // Not one call may be turned away: no other is tried here.
        bed.tell("crfs crash");
        bed.crictl(&["images"]);
    }
    bed.tell("crfs stop");
    let mut call = Command::new(bed.value("CRICTL"))
        .arg("images")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(call.try_wait().unwrap().is_none(), "nobody can answer yet");
    bed.tell("crfs start");
    let done = call.wait_with_output().unwrap();
    assert!(done.status.success(), "{done:?}");
    assert!(String::from_utf8_lossy(&done.stdout).contains("pause"));
    // A daemon that is to serve no proxy lets nobody wait.
    bed.tell("crfs stop");
    let config = bed.folder().join("node/crfs.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("listen = ", "#")).unwrap();
    bed.tell("crfs start");
    bed::wait_for("the socket to be closed", 10, || {
        let refused = UnixStream::connect(bed.folder().join("node/cri.sock")).err();
        refused.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    });
}

fn pulled_and_run(way: &str) {
    let Some(mut bed) = bed_with_cri(PROXIED, way) else {
        return;
    };
    let (image, whole) = prepare(&bed);
    bed.relay("POST", "reset");
    bed.crictl(&["pull", &image]);
    let pulled = bed.bytes_served();
    assert!(
        pulled * 100 < whole * 5,
        "the pull took {pulled} of {whole} bytes"
    );

    let mut pod = Pod::run(&bed, &image, "one");
    let said = pod.exec(&bed, &["python3", "/app/main.py"]);
    assert!(said.contains("numpy"), "{said}");
    let ran = bed.bytes_served();
    assert!(
        ran * 100 < whole * 30,
        "the run took {ran} of {whole} bytes"
    );
    println!("{way}: {whole} bytes of image, {pulled} to pull, {ran} to run, pause image included");
    assert_eq!(
        lazy_mounts(&bed).len(),
        5,
        "four layers and the pause image's"
    );

    statistics(&bed, &pod, &image);
    restarts(&mut bed, &mut pod);

    pod.remove(&bed);
    bed.crictl(&["rmi", &image]);
    assert!(!bed.crictl(&["images"]).contains("numpy"));
    bed::wait_for("the image's layers to be unmounted", 30, || {
        lazy_mounts(&bed).len() == 1
    });
}

/// What kubelet asks for all the time.
fn statistics(bed: &Bed, pod: &Pod, image: &str) {
    let get = || parse(&bed.crictl(&["stats", "-o", "json", &pod.container]));
    bed::wait_for("the container's usage to be collected", 30, || {
        let used = &get()["stats"][0]["writableLayer"]["usedBytes"]["value"];
        !used.is_null() && number(used) > 0
    });
    let stats = &get()["stats"][0];
    assert_eq!(stats["attributes"]["id"], pod.container.as_str());
    let written = &stats["writableLayer"];
    assert!(number(&written["usedBytes"]["value"]) > 0, "{stats}");
    let root = fs::canonicalize(bed.crfs_root()).unwrap();
    let folder = written["fsId"]["mountpoint"].as_str().unwrap();
    assert_eq!(fs::canonicalize(folder).unwrap(), root, "{stats}");

    let info = parse(&bed.crictl(&["imagefsinfo", "-o", "json"]));
    let info = &info["status"]["imageFilesystems"][0];
    let folder = info["fsId"]["mountpoint"].as_str().unwrap();
    assert_eq!(fs::canonicalize(folder).unwrap(), root, "{info}");
    bed::wait_for("the snapshots' usage to be collected", 30, || {
        let info = parse(&bed.crictl(&["imagefsinfo", "-o", "json"]));
        number(&info["status"]["imageFilesystems"][0]["usedBytes"]["value"]) > 0
    });
    let image = parse(&bed.crictl(&["inspecti", image]));
    assert!(number(&image["status"]["size"]) > 0, "{image}");
    assert!(bed.crictl(&["logs", &pod.container]).contains("started"));
}

/// containerd and crfs go and come back under the pod; what ran runs on, and new containers start.
fn restarts(bed: &mut Bed, pod: &mut Pod) {
    for (stop, start) in [
        ("containerd stop", "containerd start"),
        ("crfs stop", "crfs start"),
        ("containerd kill", "containerd start"),
    ] {
        bed.tell(stop);
        let listens = bed.folder().join("node/cri.sock");
        let accepted = std::os::unix::net::UnixStream::connect(listens);
        assert!(
            accepted.is_ok(),
            "kubelet's calls wait while crfs is replaced: {accepted:?}"
        );
        drop(accepted);
        bed.tell(start);
        bed.tell("crfs crash");
        bed.wait_for_crfs();
        bed::wait_for("the CRI to answer", 30, || {
            bed.try_crictl(&["pods", "-q"]).status.success()
        });
        let state = parse(&bed.crictl(&["inspect", &pod.container]));
        assert_eq!(
            state["status"]["state"], "CONTAINER_RUNNING",
            "after {stop}"
        );
        let said = pod.exec(bed, &["python3", "/app/main.py"]);
        assert!(said.contains("numpy"), "after {stop}: {said}");
        // Files that nothing has read yet.
        let said = pod.exec(
            bed,
            &[
                "sh",
                "-c",
                "cat /usr/lib/python3/dist-packages/numpy/ma/*.py | wc -c",
            ],
        );
        assert!(
            said.trim().parse::<u64>().unwrap() > 100_000,
            "after {stop}: {said}"
        );
    }
    let lines = bed.crictl(&["logs", &pod.container]);
    assert_eq!(
        lines.matches("started").count(),
        1,
        "it was never restarted"
    );
    let other = Pod::run(bed, &pod.image, "two");
    assert!(other.exec(bed, &["cat", "/etc/passwd"]).contains("root"));
    other.remove(bed);
}

/// A bed with the CRI; `None`, and the reason is printed, where no client can be had.
pub fn bed_with_cri(config: &str, way: &str) -> Option<Bed> {
    if std::env::var_os("CRFS_NO_CRICTL").is_some() {
        println!("skipped: no crictl is installed, and none can be built");
        return None;
    }
    Some(Bed::up(config, &["--cri", way]))
}

/// Converts the images that a pod needs; gives the reference of its own and its compressed size.
pub fn prepare(bed: &Bed) -> (String, u64) {
    bed.convert(&bed::image("pause"), "pause:lazy");
    let image = bed.convert(&bed::image("numpy"), "numpy:lazy");
    let layout = bed::image("numpy");
    let blobs = fs::read_dir(layout.join("blobs/sha256")).unwrap();
    let sizes = blobs.map(|blob| blob.unwrap().metadata().unwrap().len());
    (image, sizes.sum())
}

/// A pod with one container, which waits.
pub struct Pod {
    id: String,
    /// The container's id.
    pub container: String,
    image: String,
}

impl Pod {
    /// Makes and starts it.
    pub fn run(bed: &Bed, image: &str, name: &str) -> Self {
        let unique = format!("{}-{name}", bed.value("NAMESPACE"));
        let pod = json!({
            "metadata": {"name": name, "namespace": "default", "uid": unique, "attempt": 0},
            "log_directory": bed.folder().join("pods").join(name),
            "linux": {
                "cgroup_parent": format!("/{unique}"),
                "security_context": {"namespace_options": {"network": 2}},
            },
        });
        let container = json!({
            "metadata": {"name": "main"},
            "image": {"image": image},
            "command": ["sh", "-c", "echo started; while :; do sleep 1; done"],
            "log_path": "main.log",
            "linux": {},
        });
        let write = |kind: &str, value: Value| -> PathBuf {
            let path = bed.folder().join(format!("{name}-{kind}.json"));
            fs::write(&path, value.to_string()).unwrap();
            path
        };
        let (pod, container) = (write("pod", pod), write("container", container));
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let id = bed.crictl(&["runp", &text(&pod)]).trim().to_owned();
        let created = bed.crictl(&["create", &id, &text(&container), &text(&pod)]);
        let container = created.trim().to_owned();
        bed.crictl(&["start", &container]);
        let image = image.to_owned();
        Self {
            id,
            container,
            image,
        }
    }

    /// Runs a command in it and gives what it printed.
    pub fn exec(&self, bed: &Bed, command: &[&str]) -> String {
        let mut arguments = vec!["exec", "--sync", &self.container];
        arguments.extend(command);
        bed.crictl(&arguments)
    }

    /// Ends it.
    pub fn remove(&self, bed: &Bed) {
        bed.crictl(&["rmp", "--force", &self.id]);
    }
}

/// Where lazy layers of the bed's crfs are mounted.
fn lazy_mounts(bed: &Bed) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let root = bed.crfs_root();
    let lazy = mounts.lines().filter(|line| line.contains(" - fuse"));
    let targets = lazy.filter_map(|line| line.split(' ').nth(4));
    let ours = targets.filter(|target| Path::new(target).starts_with(&root));
    ours.map(str::to_owned).collect()
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Protocol buffers' JSON writes 64-bit numbers as text.
fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .or_else(|| value.as_str()?.parse().ok())
        .unwrap_or_else(|| panic!("no number: {value}"))
}
