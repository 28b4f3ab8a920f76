//! Containers outlive crfs: they read and verify while its server is killed, ended, replaced, and while
//! its keeper is killed. Not one read may fail, and none may take long.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::bed::{self, Bed, CRFS};
use crate::lazy_run::{inode_numbers, lazy_roots};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/integration/bed/survive.py");

/// The longest that one operation on cached content may take.
const STALL: u64 = 1000;

/// A node with readers in containers.
struct Node {
    bed: Bed,
    image: String,
    folder: PathBuf,
    readers: Vec<(String, Child)>,
}

impl Node {
    /// Pulls the image both ways and notes what is in it, as an ordinary container sees it.
    fn up() -> Self {
        let bed = Bed::up("[fetch]\nbackground = false\n", &[]);
        let plain = bed.push(&bed::image("numpy"), "numpy:plain");
        let image = bed.convert(&bed::image("numpy"), "numpy:lazy");
        let folder = bed.folder().join("shared");
        fs::create_dir(&folder).unwrap();
        bed.pull("overlayfs", &plain);
        let mut node = Self {
            bed,
            image: plain,
            folder,
            readers: Vec::new(),
        };
        node.start("overlayfs", "lister", &["list", "/shared"]);
        node.wait_for_readers();
        node.image = image;
        node.bed.pull("crfs", &node.image);
        node
    }

    /// Starts a container that runs the script.
    fn start(&mut self, snapshotter: &str, name: &str, arguments: &[&str]) {
        let mut ctr = Command::new("timeout");
        let script = format!("type=bind,src={SCRIPT},dst=/survive.py,options=rbind:ro");
        let folder = self.folder.display();
        let shared = format!("type=bind,src={folder},dst=/shared,options=rbind:rw");
        ctr.args(["3000", self.bed.value("CTR"), "run", "--rm"])
            .args(["--mount", &script, "--mount", &shared])
            .args(["--snapshotter", snapshotter, &self.image])
            .arg(format!("{}-{name}", self.bed.value("NAMESPACE")))
            .args(["python3", "/survive.py"])
            .args(arguments)
            .stdin(Stdio::null());
        let child = ctr.spawn().unwrap();
        self.readers.push((name.to_owned(), child));
    }

    fn wait_for_readers(&mut self) {
        for (name, mut child) in self.readers.drain(..) {
            let mut ended = None;
            bed::wait_for(&name, 300, || {
                ended = child.try_wait().unwrap();
                ended.is_some()
            });
            assert!(ended.unwrap().success(), "{name}: {ended:?}");
        }
    }

    /// Starts one that reads for as long as the test takes, and waits until it does.
    fn start_reading(&mut self) {
        self.start("crfs", "reader", &["read", "/shared", "reader"]);
        let begun = self.folder.join("begun");
        bed::wait_for("the reader", 60, || begun.exists());
    }

    /// Ends the readers and gives their reports.
    fn reports(&mut self) -> Vec<(String, Value)> {
        fs::write(self.folder.join("stop"), "").unwrap();
        let names: Vec<_> = self.readers.iter().map(|(name, _)| name.clone()).collect();
        self.wait_for_readers();
        let report = |name: String| {
            let text = fs::read_to_string(self.folder.join(&name)).unwrap();
            (name, serde_json::from_str(&text).unwrap())
        };
        names.into_iter().map(report).collect()
    }

    /// Ends the readers, and insists on no failed read and no long stall of what was cached.
    fn judge(&mut self, what: &str) {
        for (name, report) in self.reports() {
            let (reads, worst) = (&report["reads"], report["worst_ms"].as_u64().unwrap());
            println!(
                "{what}: {name}: {reads} operations, {} failed or wrong, worst {worst} ms ({})",
                report["bad"].as_array().unwrap().len(),
                report["worst"]
            );
            assert!(reads.as_u64().unwrap() > 100, "{report}");
            assert_eq!(
                report["bad"],
                serde_json::json!([]),
                "{}",
                self.bed.crfs_log()
            );
            assert!(name != "reader" || worst < STALL, "{report}");
        }
    }

    fn server(&self) -> Option<Pid> {
        let pid = fs::read_to_string(self.bed.crfs_root().join("server.pid")).ok()?;
        Pid::from_raw(pid.trim().parse().unwrap())
    }

    /// Waits until another process serves than `before`.
    fn wait_for_another(&self, before: Pid) -> Pid {
        bed::wait_for("another server", 20, || {
            self.server().is_some_and(|now| now != before)
        });
        self.server().unwrap()
    }

    fn keeper(&self) -> Pid {
        let root = self.bed.crfs_root().into_os_string().into_encoded_bytes();
        let wanted = [b"fd-keeper\0".as_slice(), &root, b"\0"].concat();
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut found = pids.filter(|pid: &i32| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == wanted)
        });
        Pid::from_raw(found.next().unwrap()).unwrap()
    }
}

/// Some time between 20 and 420 ms: kills hit starting servers and serving ones.
fn pause() {
    let nanos = std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    std::thread::sleep(Duration::from_millis(20 + u64::from(nanos / 1000 % 400)));
}

#[test]
fn containers_read_on_while_the_server_is_killed() {
    let kills = if bed::long() { 1000 } else { 10 };
    let mut node = Node::up();
    node.start_reading();
    node.bed.relay("POST", "link?rtt_ms=30&mbit=100");
    node.start("crfs", "cold", &["read", "/shared", "cold", "once"]);
    let before = inode_numbers(&node.bed.crfs_root());
    let start = Instant::now();
    let mut done = 0;
    while done < kills {
        if let Some(server) = node.server()
            && kill_process(server, Signal::KILL).is_ok()
        {
            done += 1;
            node.wait_for_another(server);
        }
        pause();
    }
    println!("{kills} kills in {:?}", start.elapsed());
    assert_eq!(lazy_roots(&node.bed.crfs_root()).len(), 4);
    assert_eq!(inode_numbers(&node.bed.crfs_root()), before);
    node.bed.relay("POST", "link?rtt_ms=0&mbit=0");
    node.judge("killed");
    let said = node
        .bed
        .run(&node.image, "after", &["python3", "/app/main.py"]);
    assert!(said.contains("numpy"), "{said}");
}

#[test]
fn containers_read_on_while_the_server_is_replaced_and_the_keeper_killed() {
    let mut node = Node::up();
    node.start_reading();
    let mut server = node.server().unwrap();
    for _ in 0..if bed::long() { 100 } else { 5 } {
        let root = node.bed.crfs_root().display().to_string();
        bed::crfs(&["upgrade", CRFS, "--root", &root]);
        server = node.wait_for_another(server);
    }
    for before in 0..3 {
        kill_process(node.keeper(), Signal::KILL).unwrap();
        bed::wait_for("another keeper", 20, || {
            let log = node.bed.crfs_log();
            log.matches("another keeper holds everything").count() > before
        });
        assert_eq!(node.server(), Some(server), "the server lives");
        // What the new keeper was given is enough for the next server.
        kill_process(server, Signal::KILL).unwrap();
        server = node.wait_for_another(server);
        std::thread::sleep(Duration::from_millis(300));
    }
    node.judge("replaced");
}

#[test]
fn containers_wait_for_a_daemon_that_was_ended() {
    let mut node = Node::up();
    node.start_reading();
    let before = inode_numbers(&node.bed.crfs_root());
    for _ in 0..3 {
        node.bed.tell("crfs stop");
        assert!(node.server().is_none());
        node.bed.tell("crfs start");
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(inode_numbers(&node.bed.crfs_root()), before);
    let (_, report) = node.reports().remove(0);
    println!("ended and started again: {report}");
    assert_eq!(report["bad"], serde_json::json!([]));
    assert!(report["reads"].as_u64().unwrap() > 100, "{report}");
}
