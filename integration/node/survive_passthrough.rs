//! A file that the kernel reads by itself is open while the server is killed: it goes on, and is
//! opened again by the next server with the same backing file, without which the kernel answers EIO.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::bed::{self, Bed};
use crate::fs_passthrough::noise;
use crate::lazy_run::lazy_roots;
use crate::takeover_rig::kernel_passes_through;

fn kill_server(bed: &Bed) {
    let before = bed.server().unwrap();
    kill_process(before, Signal::KILL).unwrap();
    bed::wait_for("another server", 20, || {
        bed.server().is_some_and(|now| now != before)
    });
}

/// Whether a file can be read while the server stands still.
fn reads_alone(bed: &Bed, file: &File) -> bool {
    let server = bed.server().unwrap();
    let file = file.try_clone().unwrap();
    kill_process(server, Signal::STOP).unwrap();
    fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut piece = vec![0; 1 << 20];
        sender.send(file.read_exact_at(&mut piece, 3 << 20).is_ok())
    });
    let alone = receiver
        .recv_timeout(Duration::from_secs(2))
        .unwrap_or(false);
    kill_process(server, Signal::CONT).unwrap();
    let _ = reader.join().unwrap();
    alone
}

fn whole(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// A node with this configuration, and a layer of one large file: its bytes, and where it is.
fn large_file(config: &str) -> (Bed, Vec<u8>, PathBuf) {
    let bed = Bed::up(config, &[]);
    let bytes = noise(3, 24 << 20);
    let folder = bed.folder().join("large");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("model.bin"), &bytes).unwrap();
    let tar = bed.folder().join("large.tar");
    let made = Command::new("tar")
        .arg("-cf")
        .arg(&tar)
        .arg("-C")
        .arg(&folder)
        .arg(".")
        .status();
    assert!(made.unwrap().success());
    let layout = bed::image_of(&[&tar], &bed.folder().join("layout"));
    let image = bed.convert(&layout, "large:lazy");
    bed.pull("crfs", &image);
    let path = lazy_roots(&bed.crfs_root()).remove(0).join("model.bin");
    (bed, bytes, path)
}

#[test]
fn a_file_passed_through_is_opened_again_by_the_next_server() {
    if !kernel_passes_through() {
        return;
    }
    let (mut bed, bytes, path) = large_file("");
    // The first open may still be by READ: the rest is fetched while it is read.
    assert!(whole(&path) == bytes);
    let mut held = File::open(&path).unwrap();
    bed::wait_for("the file to be passed through", 20, || {
        held = File::open(&path).unwrap();
        reads_alone(&bed, &held)
    });
    for _ in 0..3 {
        kill_server(&bed);
        // By another number, or by READ, this open would fail.
        assert!(whole(&path) == bytes);
        assert!(reads_alone(&bed, &held));
        assert!(reads_alone(&bed, &File::open(&path).unwrap()));
    }
    drop(held);
    // Closed by all, it is opened anew: complete and sealed since before.
    kill_server(&bed);
    assert!(reads_alone(&bed, &File::open(&path).unwrap()));
    bed.tell("crfs stop");
    bed.tell("crfs start");
    assert!(whole(&path) == bytes);
}

#[test]
fn with_passthrough_off_the_next_server_answers_instead() {
    let (bed, bytes, path) = large_file("[fuse]\npassthrough = false\n");
    assert!(whole(&path) == bytes);
    let held = File::open(&path).unwrap();
    for _ in 0..3 {
        assert!(!reads_alone(&bed, &held), "nobody else may answer");
        kill_server(&bed);
        let mut again = vec![0; bytes.len()];
        held.read_exact_at(&mut again, 0).unwrap();
        assert!(again == bytes && whole(&path) == bytes);
    }
}
