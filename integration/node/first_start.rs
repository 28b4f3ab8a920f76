//! The first start of an image that no profile knows: what each start reads is fetched before it is read.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use crate::bed::{self, Bed};

/// Pulls an image whose program is `/usr/bin/busybox`, reads that with the registry down, and gives what came of it and
/// how many bytes had been served by then.
fn program_offline(config: &str) -> (bool, u64) {
    let bed = Bed::up(config, &[]);
    let image = bed.convert(&bed::image("busybox"), "app:lazy");
    bed.relay("POST", "reset");
    bed.pull("crfs", &image);
    let bytes = settled(&bed);
    let target = bed.mount(&image);
    bed.relay("POST", "down?on=1");
    let read = fs::read(target.join("usr/bin/busybox"));
    bed.relay("POST", "down?on=0");
    (
        read.is_ok_and(|program| program.starts_with(b"\x7fELF")),
        bytes,
    )
}

/// Waits until nothing has been served for a while, and gives how many bytes were until then.
fn settled(bed: &Bed) -> u64 {
    let mut last = u64::MAX;
    bed::wait_for("what was asked for", 30, || {
        std::thread::sleep(Duration::from_millis(300));
        std::mem::replace(&mut last, bed.bytes_served()) == bed.bytes_served()
    });
    last
}

#[test]
fn the_program_of_an_image_is_here_before_it_is_started() {
    let lean = "[fetch]\nbackground = false\n";
    let (is_here, bytes) = program_offline(lean);
    assert!(is_here, "after {bytes} bytes");
    // So it was fetched for that, and can be left out.
    let (is_here, fewer) = program_offline(
        "[fetch]\nbackground = false\nprefetch = false\n[fuse]\nread_deadline = \"2s\"\n",
    );
    assert!(!is_here && fewer + 500_000 < bytes, "{fewer}, {bytes}");
}

/// Reads the beginning of a library of the distribution's.
fn library_begins(target: &Path, name: &str) -> bool {
    let folder = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let mut start = [0; 4];
    let file = fs::File::open(target.join(folder).join(name));
    file.is_ok_and(|mut file| file.read_exact(&mut start).is_ok() && start == *b"\x7fELF")
}

#[test]
fn the_libraries_of_what_is_started_are_here_before_it_has_come_to_them() {
    let bed = Bed::up(
        "[fetch]\nbackground = false\n[fuse]\nread_deadline = \"2s\"\n",
        &[],
    );
    let image = bed.convert(&bed::image("numpy"), "app:lazy");
    bed.pull("crfs", &image);
    settled(&bed);
    let target = bed.mount(&image);
    let numpy = target.join("usr/lib/python3/dist-packages/numpy/core");
    let module = fs::read_dir(numpy).unwrap().map(|entry| entry.unwrap());
    let module = module
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().contains("/_multiarray_umath."))
        .unwrap();
    let mut first = [0; 64];
    fs::File::open(module)
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    settled(&bed);
    bed.relay("POST", "down?on=1");
    let here = [
        "libexpat.so.1",
        "libblas.so.3",
        "libgfortran.so.5",
        "libdb-5.3.so",
    ]
    .map(|name| library_begins(&target, name));
    bed.relay("POST", "down?on=0");
    assert_eq!(
        here,
        [true, true, true, false],
        "of the program; of the module that was read; of a library of that; of nobody"
    );
}
