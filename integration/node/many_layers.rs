//! Very many mounted layers: what the daemon's memory grows by for each, and for each file that is
//! looked at and read.
//!
//! By hand, up to 1,000 layers: `integration/run.sh --long many_layers`

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use crfs::stargz::write::{Options, Written, write};

use crate::bed::{self, Bed};
use crate::fs_layer::run;
use crate::many_files::{push, status};
use crate::serve::{self, Image, Serve};
use crate::tars::{Item, Tar};

/// Files in each layer.
const FILES: usize = 200;
/// Layers that are all looked into: 100,000 files.
const TOUCHED: usize = 500;
/// What the daemon may hold with that many, in MiB.
const MOST: u64 = 100;

fn layer(folder: &Path, number: usize) -> Written {
    let names = (0..FILES).map(|file| format!("srv/l{number}/d{}/file-{file}", file / 50));
    let files = names.map(|name| {
        let body = name.repeat(5);
        Item::file(name, body)
    });
    let tar = folder.join("tar");
    Tar::of(files).write(&tar);
    let blob = folder.join("blob");
    let written = write(
        &File::open(&tar).unwrap(),
        File::create(&blob).unwrap(),
        &Options::default(),
        &|_| (),
    );
    let written = written.unwrap();
    fs::rename(blob, folder.join("blobs/sha256").join(written.digest.hex())).unwrap();
    written
}

/// An image of so many layers, each with as many files as the others.
pub fn image(bed: &Bed, count: usize) -> Image {
    let layout = bed.folder().join("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let layers: Vec<_> = (0..count).map(|number| layer(&layout, number)).collect();
    push(bed, &layout, "layers:many", &layers)
}

/// VmRSS and RssAnon, in KiB.
fn memory(daemon: &Serve) -> (u64, u64) {
    let pid = daemon.pid();
    (status(pid, "VmRSS"), status(pid, "RssAnon"))
}

fn row(what: &str, count: usize, before: (u64, u64), now: (u64, u64)) {
    let each = |now: u64, before: u64| now.saturating_sub(before) as f64 / count as f64;
    println!(
        "{count:7} {what:14} VmRSS {:7} KiB, RssAnon {:7} KiB; each {:8.2} KiB, {:8.2} KiB",
        now.0,
        now.1,
        each(now.0, before.0),
        each(now.1, before.1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn many_layers_and_files_cost_little_memory() {
    let bed = Bed::up("", &["--only", "registry"]);
    let counts: &[usize] = if bed::long() {
        &[1, 10, 100, TOUCHED, 1000]
    } else {
        &[1, 10, 100]
    };
    let most = counts.last().copied().unwrap_or_default();
    let image = image(&bed, most);
    let folder = bed.folder().join("node");
    let mut daemon = Serve::start(&folder, "[fetch]\nbackground = false\n", &[]);
    let client = daemon.client().await;
    let empty = memory(&daemon);
    println!(
        "      0 layers         VmRSS {:7} KiB, RssAnon {:7} KiB",
        empty.0, empty.1
    );
    let mut names: Vec<String> = Vec::new();
    for number in 0..most {
        let parent = names.last().cloned().unwrap_or_default();
        names.push(serve::pull_layer(&client, &image, number, &parent, "ns").await);
        if counts.contains(&names.len()) {
            row("layers", names.len(), empty, memory(&daemon));
        }
    }
    let mounted = memory(&daemon);
    let layers = serve::lazy_mounts(&daemon.root());
    assert_eq!(layers.len(), most);
    let mut files = 0;
    for (number, mount) in layers.iter().take(TOUCHED).enumerate() {
        let script = "find . -type f -newermt 2000-01-01 -exec cat {} + | wc -c | grep -qvx 0";
        let read = Command::new("sh")
            .args(["-c", script])
            .current_dir(mount)
            .status();
        assert!(read.unwrap().success(), "{}", mount.display());
        files += FILES;
        if [1, 10, 100, TOUCHED].contains(&(number + 1)) {
            row("files touched", files, mounted, memory(&daemon));
        }
    }
    let touched = memory(&daemon);
    // Huge pages would turn each thread's 16 MiB of address space into memory.
    assert_eq!(status(daemon.pid(), "THP_enabled"), 0);
    daemon.end(rustix::process::Signal::TERM);
    for mount in layers {
        run("umount", &["-l", &mount.display().to_string()]);
    }
    let allowed = if most < TOUCHED {
        MOST / 2
    } else {
        MOST * most as u64 / TOUCHED as u64
    };
    assert!(touched.0 < allowed << 10, "{} KiB", touched.0);
}
