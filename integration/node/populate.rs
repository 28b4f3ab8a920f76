//! Small files read one after another: the kernel is given the next ones before it asks.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::bed::{self, Bed};
use crate::operator_metrics::scrape;
use crate::tars::{Item, Tar};

/// More than any machine's timing moves.
const FILES: u64 = 3000;

/// A node on which an image of small files is mounted, all of it here and none of it in the kernel's memory.
struct Node {
    bed: Bed,
    tree: PathBuf,
}

fn content(file: u64) -> Vec<u8> {
    let len = 50 + usize::try_from(file * 7919 % 3000).unwrap();
    file.to_string().bytes().cycle().take(len).collect()
}

impl Node {
    fn up(config: &str) -> Self {
        let config = format!("{config}\n[metrics]\naddress = \"unix:{{node}}/metrics.sock\"\n");
        let bed = Bed::up(&config, &[]);
        let folders = (0..FILES / 100).map(|folder| Item::folder(format!("data/{folder:03}")));
        let files = (0..FILES)
            .map(|file| Item::file(format!("data/{:03}/{file:05}", file / 100), content(file)));
        let tar = bed.folder().join("small.tar");
        Tar::of(
            [Item::folder("data")]
                .into_iter()
                .chain(folders)
                .chain(files),
        )
        .write(&tar);
        let layout = bed::image_of(&[&tar], &bed.folder().join("small"));
        let image = bed.convert(&layout, "small:lazy");
        bed.pull("crfs", &image);
        let tree = bed.mount(&image).join("data");
        let node = Self { bed, tree };
        node.read_all();
        node.forget();
        node
    }

    /// What the kernel has read of the tree leaves its memory.
    fn forget(&self) {
        rustix::fs::sync();
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    }

    /// Reads all files in order and compares them; gives how long that took.
    fn read_all(&self) -> Duration {
        let began = Instant::now();
        for folder in names(&self.tree) {
            for file in names(&folder) {
                let number = file.file_name().unwrap().to_str().unwrap().parse().unwrap();
                assert!(fs::read(&file).unwrap() == content(number), "{number}");
            }
        }
        began.elapsed()
    }

    fn metrics(&self) -> BTreeMap<String, f64> {
        scrape(&self.bed.folder().join("node/metrics.sock"))
    }

    /// Reads of the kernel since `before`, and files it was given unasked.
    fn since(&self, before: &BTreeMap<String, f64>) -> (f64, f64) {
        let now = self.metrics();
        let grown = |name: &str| now[name] - before[name];
        (
            grown("crfs_read_duration_seconds_count{outcome=\"cached\"}"),
            grown("crfs_populated_files_total"),
        )
    }

    /// The process that writes to the device, if there is one.
    fn filler(&self) -> Option<Pid> {
        let mut pgrep = std::process::Command::new("pgrep");
        let server = self.bed.server().unwrap().as_raw_nonzero().to_string();
        let said = pgrep
            .args(["-P", &server, "-x", "page-filler"])
            .output()
            .unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        said.trim().parse().ok().and_then(Pid::from_raw)
    }
}

fn names(folder: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    names
}

#[test]
fn whoever_reads_small_files_in_order_asks_for_few_of_them() {
    let node = Node::up("");
    let before = node.metrics();
    node.read_all();
    let (reads, populated) = node.since(&before);
    println!("{reads} reads, {populated} populated");
    assert!(
        populated > 2000.0 && reads < 1000.0,
        "{reads} reads, {populated} populated"
    );
    // In no order nothing can be foreseen.
    node.forget();
    let before = node.metrics();
    for at in 0..FILES {
        let file = at * 1009 % FILES;
        let path = node.tree.join(format!("{:03}/{file:05}", file / 100));
        assert!(fs::read(path).unwrap() == content(file));
    }
    let (reads, populated) = node.since(&before);
    assert!(
        reads > 2900.0 && populated < 100.0,
        "{reads} reads, {populated} populated"
    );
}

#[test]
fn whoever_has_listed_all_before_asks_for_the_fewest() {
    let node = Node::up("");
    let before = node.metrics();
    names(&node.tree)
        .iter()
        .for_each(|folder| drop(names(folder)));
    node.read_all();
    let (reads, populated) = node.since(&before);
    assert!(
        populated > 2800.0 && reads < 250.0,
        "{reads} reads, {populated} populated"
    );
}

#[test]
fn it_can_be_turned_off() {
    let node = Node::up("[fuse]\npopulate = false\n");
    let before = node.metrics();
    node.read_all();
    assert_eq!(node.since(&before), (3000.0, 0.0), "reads and populated");
    assert!(node.filler().is_none());
}

#[test]
fn nobody_depends_on_the_process_that_does_it() {
    let node = Node::up("");
    let filler = node.filler().expect("it was needed already");
    kill_process(filler, Signal::STOP).unwrap();
    let took = node.read_all();
    assert!(took < Duration::from_secs(5), "{took:?}");
    kill_process(filler, Signal::KILL).unwrap();
    node.forget();
    node.read_all();
    bed::wait_for("it to be gone", 20, || node.filler() != Some(filler));
    // Another is started, not at once.
    bed::wait_for("another one", 60, || {
        node.forget();
        node.read_all();
        node.filler().is_some()
    });
    let filler = node.filler().unwrap();
    kill_process(node.bed.server().unwrap(), Signal::KILL).unwrap();
    node.forget();
    node.read_all();
    let gone = PathBuf::from(format!("/proc/{}", filler.as_raw_nonzero()));
    bed::wait_for("it to end with its server", 5, || !gone.exists());
}
