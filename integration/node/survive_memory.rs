//! crfs in a cgroup of 128 MB: with 50 layers and several readers it lives, and when the kernel kills it
//! for memory it comes back without a failed read. And what the keeper costs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::bed::{self, Bed, CRFS};
use crate::lazy_run::lazy_roots;
use crate::survivors::Node;
use crate::takeover_rig::kernel_repeats_requests;

const LIMIT: u64 = 128 << 20;
const LAYERS: usize = 50;
const READERS: usize = 4;

/// A cgroup with a limit of memory, of either version.
struct Group {
    path: PathBuf,
    limit: &'static str,
    peak: &'static str,
    events: &'static str,
}

impl Group {
    /// `None`, with a line that says why, where there is no such thing.
    fn new() -> Option<Self> {
        let name = format!("crfs-memory-{}", std::process::id());
        let of = |top: &str, limit, peak, events| Self {
            path: Path::new(top).join(&name),
            limit,
            peak,
            events,
        };
        let group = if Path::new("/sys/fs/cgroup/memory/cgroup.procs").exists() {
            let (limit, peak) = ("memory.limit_in_bytes", "memory.max_usage_in_bytes");
            of("/sys/fs/cgroup/memory", limit, peak, "memory.oom_control")
        } else {
            of(
                "/sys/fs/cgroup",
                "memory.max",
                "memory.peak",
                "memory.events",
            )
        };
        if fs::create_dir(&group.path).is_err() || !group.path.join(group.limit).exists() {
            println!("skipped: no cgroup with a limit of memory can be made");
            return None;
        }
        fs::write(group.path.join(group.limit), LIMIT.to_string()).unwrap();
        Some(group)
    }

    fn add(&self, pid: impl std::fmt::Display) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path.join(name)).unwrap()
    }

    /// How many processes were killed in it.
    fn killed(&self) -> u64 {
        let text = self.read(self.events);
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.unwrap().parse().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its processes go with the pen; an empty group costs nothing until then.
        let _ = fs::remove_dir(&self.path);
    }
}

#[test]
fn a_small_cgroup_is_enough_and_the_killer_does_no_harm() {
    if !kernel_repeats_requests() {
        return;
    }
    let Some(group) = Group::new() else { return };
    let bed = Bed::up("[fetch]\nbackground = true\n", &[]);
    let layout = bed.folder().join("fifty");
    bed::append(&bed::image("numpy"), &layout, LAYERS - 4);
    let server = bed.server().unwrap().to_string();
    for pid in [bed.value("CRFS_PID").to_owned(), keeper(&bed), server] {
        group.add(pid);
    }
    let mut node = Node::on(bed, &layout);
    assert_eq!(lazy_roots(&node.bed.crfs_root()).len(), LAYERS);
    for number in 0..READERS {
        node.start_reading(&format!("reader-{number}"));
    }
    let before = node.server();
    std::thread::sleep(Duration::from_secs(if bed::long() { 60 } else { 8 }));
    assert_eq!(
        (node.server(), group.killed()),
        (before, 0),
        "{}",
        node.bed.crfs_log()
    );
    println!(
        "{LAYERS} layers, {READERS} readers: peak {} of {LIMIT} bytes",
        group.read(group.peak).trim()
    );

    for _ in 0..3 {
        let (server, killed) = (node.server().unwrap(), group.killed());
        // Not every machine lets a process make itself less likely to be killed.
        let adjust = format!("/proc/{}/oom_score_adj", server.as_raw_nonzero());
        fs::write(adjust, "1000").unwrap();
        // Takes all that is left, and stops when somebody was killed for it.
        let hog = format!(
            "import os, time\n\
             open('{}/cgroup.procs', 'w').write(str(os.getpid()))\n\
             taken = []\n\
             while open('{}').read().split('oom_kill ')[1].split()[0] == '{killed}':\n    \
                 taken.append(bytearray(b'1' * (1 << 19)))\n    time.sleep(0.001)\n",
            group.path.display(),
            group.path.join(group.events).display()
        );
        let mut take = Command::new("timeout");
        take.args(["60", "python3", "-c", &hog])
            .stdin(Stdio::null());
        // While the memory of the dead is being given back the killer may take the taker as well.
        take.status().unwrap();
        assert!(group.killed() > killed);
        assert_ne!(node.wait_for_another(server), server);
        std::thread::sleep(Duration::from_millis(500));
    }
    node.judge("killed for memory three times");
}

fn keeper(bed: &Bed) -> String {
    let status = bed::crfs(&["status", "--root", &bed.crfs_root().display().to_string()]);
    let line = status.lines().find_map(|line| line.strip_prefix("keeper"));
    line.unwrap().trim().to_owned()
}

/// From the start of the process until its socket takes calls.
fn start(folder: &Path, more: &[&str]) -> Duration {
    let root = folder.join("root").display().to_string();
    let socket = folder.join("s").display().to_string();
    let from = Instant::now();
    let mut serve = Command::new(CRFS);
    serve
        .args(["serve", "--root", &root, "--address", &socket])
        .args(more);
    let mut child = serve
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(from.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_micros(200));
    }
    let took = from.elapsed();
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    child.wait().unwrap();
    took
}

#[test]
fn a_keeper_costs_next_to_nothing_at_a_start() {
    let folder = tempfile::tempdir().unwrap();
    // In turn, so that whatever else the machine does is the same for both.
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..15 {
        for (times, more) in times.iter_mut().zip([&["--no-keeper"][..], &[]]) {
            times.push(start(folder.path(), more));
        }
    }
    times.iter_mut().for_each(|times| times.sort());
    let [alone, kept] = times;
    println!(
        "crfs serve takes calls after {:.1?} without and {:.1?} with a keeper (median of 15; least {:.1?}, {:.1?})",
        alone[7], kept[7], alone[0], kept[0]
    );
    // Two programs' starts more, and some messages: a few milliseconds where nobody else is busy.
    assert!(
        kept[7] < alone[7] + Duration::from_millis(30),
        "{alone:?} {kept:?}"
    );
}
