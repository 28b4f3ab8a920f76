//! A node whose containers read and verify while something happens to crfs: the rig of `survive*.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crfs::keeper::{self, Folder};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::bed::{self, Bed};
use crate::lazy_run::inode_numbers;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/integration/bed/survive.py");

/// The longest that one operation on cached content may take.
pub const STALL: u64 = 1000;

/// A node with readers in containers.
pub struct Node {
    pub bed: Bed,
    pub image: String,
    pub folder: PathBuf,
    readers: Vec<(String, Child)>,
}

impl Node {
    /// Pulls the image both ways and notes what is in it, as an ordinary container sees it.
    pub fn up() -> Self {
        let bed = Bed::up("[fetch]\nbackground = false\n", &[]);
        Self::on(bed, &bed::image("numpy"))
    }

    /// The same on a bed of the caller's, of the image in this OCI layout.
    pub fn on(bed: Bed, layout: &Path) -> Self {
        let plain = bed.push(layout, "survive:plain");
        let image = bed.convert(layout, "survive:lazy");
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
    pub fn start(&mut self, snapshotter: &str, name: &str, arguments: &[&str]) {
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

    pub fn wait_for_readers(&mut self) {
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
    /// The name's beginning says what [`Self::judge`] demands: of a `reader` also that it never waits long.
    pub fn start_reading(&mut self, name: &str) {
        let _ = fs::remove_file(self.folder.join("stop"));
        self.start("crfs", name, &["read", "/shared", name]);
        let begun = self.folder.join("begun");
        bed::wait_for("the reader", 60, || begun.exists());
        fs::remove_file(begun).unwrap();
    }

    /// Keeps count of the inode numbers on the layer mounts while `work` is done: they stay.
    pub fn same_numbers(&mut self, work: impl FnOnce(&mut Self)) {
        let before = inode_numbers(&self.bed.crfs_root());
        assert!(before.len() > 1000, "{} files", before.len());
        work(self);
        assert_eq!(inode_numbers(&self.bed.crfs_root()), before);
    }

    /// Ends the readers and gives their reports.
    pub fn reports(&mut self) -> Vec<(String, Value)> {
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
    pub fn judge(&mut self, what: &str) {
        for (name, report) in self.reports() {
            let (reads, worst) = (&report["reads"], report["worst_ms"].as_u64().unwrap());
            println!(
                "{what}: {name}: {reads} operations, {} failed or wrong, worst {worst} ms ({})",
                report["bad"].as_array().unwrap().len(),
                report["worst"]
            );
            assert!(reads.as_u64().unwrap() > 20, "{report}");
            assert_eq!(
                report["bad"],
                serde_json::json!([]),
                "{}",
                self.bed.crfs_log()
            );
            assert!(!name.starts_with("reader") || worst < STALL, "{report}");
        }
        assert_eq!(self.unanswered(), 0, "requests are stuck");
    }

    /// The daemon's process: as its keeper says, which knows it first, else as it says itself.
    pub fn server(&self) -> Option<Pid> {
        let root = self.bed.crfs_root();
        let pid = fs::read_to_string(root.join("server.pid"));
        let pid = match pid {
            Err(_) if !root.join("keeper.sock").exists() => fs::read_to_string(root.join("lock")),
            pid => pid,
        };
        Pid::from_raw(pid.ok()?.trim().parse().ok()?)
    }

    /// Kills it, and waits until another one serves. `false`: it was dead already.
    pub fn kill_server(&self) -> bool {
        let Some(server) = self.server() else {
            return false;
        };
        let killed = kill_process(server, Signal::KILL).is_ok();
        self.wait_for_another(server);
        killed
    }

    /// Waits until another process serves than `before`.
    pub fn wait_for_another(&self, before: Pid) -> Pid {
        bed::wait_for("another server", 20, || {
            self.server().is_some_and(|now| now != before)
        });
        self.server().unwrap()
    }

    pub fn keeper(&self) -> Pid {
        let folder = Folder::new(&self.bed.crfs_root()).unwrap();
        let state = keeper::state(&folder).unwrap();
        let pid = state.lines().find_map(|line| line.strip_prefix("keeper "));
        Pid::from_raw(pid.unwrap().parse().unwrap()).unwrap()
    }

    /// Requests of the layers' mounts that nobody has answered: what is stuck when all readers are done.
    pub fn unanswered(&self) -> u64 {
        let control = "/sys/fs/fuse/connections";
        if fs::read_dir(control).unwrap().next().is_none() {
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount("fusectl", control, "fusectl", flags, None).unwrap();
        }
        // The connections of other nodes on this machine are there as well.
        let root = self.bed.crfs_root().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours = mounts
            .lines()
            .filter(|line| line.contains(&root) && line.contains(" - fuse"));
        let minors = ours.map(|line| line.split([' ', ':']).nth(3).unwrap());
        let waiting = minors.map(|minor| fs::read_to_string(format!("{control}/{minor}/waiting")));
        waiting
            .map(|text| text.unwrap().trim().parse::<u64>().unwrap())
            .sum()
    }
}

/// Some time between 20 and 420 ms: kills hit starting servers and serving ones.
pub fn pause() {
    let nanos = std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    std::thread::sleep(Duration::from_millis(20 + u64::from(nanos / 1000 % 400)));
}
