//! How fast a mount is, and what it costs: run by name, prints a table.
//!
//! `cargo test --release --test node fs_scale -- --ignored --nocapture --test-threads=1`

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::fs_layer::{Content, Mount, Mounted, can_mount, with_open};

const FILES: usize = 30_000;

fn name(number: usize) -> String {
    format!(
        "d{}/e{}/file-{number}.txt",
        number / 3000,
        number / 100 % 30
    )
}

fn body(number: usize) -> Vec<u8> {
    format!("content of {number}\n")
        .repeat(1 + number % 100)
        .into_bytes()
}

fn many() -> Content {
    let mut content = Content::default();
    for number in 0..FILES {
        content = content.file(&name(number), "", &body(number), 1 << 20);
    }
    content
}

fn time(command: &str, folder: &Path) -> Duration {
    let begun = Instant::now();
    let shell = Command::new("sh")
        .args(["-c", command])
        .current_dir(folder)
        .status();
    assert!(shell.unwrap().success());
    begun.elapsed()
}

fn drop_caches(what: &str) {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", what).unwrap();
}

fn row(label: &str, folder: &Path) -> Duration {
    let find = "find . -type f | wc -l | grep -qx 30000";
    let stat = "find . -type f -newermt 2100-01-01 | wc -l | grep -qx 0";
    let cat = "find . -type f -exec cat {} + >/dev/null";
    drop_caches("3");
    let cold_find = time(find, folder);
    let warm_find = time(stat, folder);
    let cold_cat = time(cat, folder);
    let warm_cat = time(cat, folder);
    drop_caches("3");
    let cold_all = time(cat, folder);
    println!(
        "{label:24} find cold {cold_find:8.2?}  stat warm {warm_find:8.2?}  cat first {cold_cat:8.2?}  \
         again {warm_cat:8.2?}  find+cat cold {cold_all:8.2?}"
    );
    warm_cat
}

fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
#[ignore = "measures; drops the machine's caches"]
fn small_files() {
    if !can_mount() {
        return;
    }
    let disk = tempfile::tempdir().unwrap();
    for number in 0..FILES {
        let path = disk.path().join(name(number));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, body(number)).unwrap();
    }
    let host = row("host's disk", disk.path());
    let warm = |layer: &Mounted| {
        time("find . -type f -exec cat {} + >/dev/null", &layer.path);
    };
    for (label, threads, open) in [
        ("one thread", 1, false),
        ("two threads", 2, false),
        ("one thread, with open", 1, true),
    ] {
        let mount = Mount::of(many()).with(move |options| {
            options.threads = threads.try_into().unwrap();
            if open {
                with_open(options);
            }
        });
        let layer = mount.mount();
        warm(&layer);
        let took = row(label, &layer.path);
        if !open {
            assert!(took < host * 5, "{took:?} against {host:?}");
        }
        layer.unmount().unwrap();
    }
    let marked = many().file("marked", r#","xattrs":{"user.k":"dg=="}"#, b"", 1);
    println!("with attributes: one more file, so that every look-up of one is asked");
    let layer = Mount::of(marked).mount();
    warm(&layer);
    let took = time("find . -type f -exec cat {} + >/dev/null", &layer.path);
    assert!(took < host * 5);
}

/// In a process of its own: other tests of this one take memory too.
#[test]
fn a_mount_costs_little_memory() {
    if !can_mount() {
        return;
    }
    let test = "fs_scale::memory_of_many_mounts";
    let arguments = ["--exact", test, "--ignored", "--nocapture"];
    let child = Command::new(std::env::current_exe().unwrap())
        .args(arguments)
        .output()
        .unwrap();
    print!("{}", String::from_utf8_lossy(&child.stdout));
    assert!(child.status.success());
}

#[test]
#[ignore = "run by the test above"]
fn memory_of_many_mounts() {
    let mut mounts = Vec::new();
    // The first brings the runtime and its threads.
    let mut before = resident();
    for count in [1, 10, 50] {
        while mounts.len() < count {
            let content = Content::default().file("d/f", "", &body(mounts.len()), 100);
            let layer = Mount::of(content).mount();
            fs::read(layer.at("d/f")).unwrap();
            mounts.push(layer);
        }
        let now = resident() - before;
        println!(
            "{count:4} mounts: {now} KiB more resident, {} each",
            now / count as u64
        );
        if count == 1 {
            before = resident();
        }
    }
    let each = (resident() - before) / 49;
    assert!(each < 200, "{each} KiB for each mount");
}
