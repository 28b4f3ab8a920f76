//! The first start of an image that no profile knows: what each start reads is fetched before it is read.

use std::fs;
use std::time::Duration;

use crate::bed::{self, Bed};

/// Pulls an image whose program is `/usr/bin/busybox`, reads that with the registry down, and gives what came of it and
/// how many bytes had been served by then.
fn program_offline(config: &str) -> (bool, u64) {
    let bed = Bed::up(config, &[]);
    let image = bed.convert(&bed::image("busybox"), "app:lazy");
    bed.relay("POST", "reset");
    bed.pull("crfs", &image);
    let mut last = u64::MAX;
    bed::wait_for("the pull to be over", 30, || {
        std::thread::sleep(Duration::from_millis(300));
        std::mem::replace(&mut last, bed.bytes_served()) == bed.bytes_served()
    });
    let target = bed.mount(&image);
    bed.relay("POST", "down?on=1");
    let read = fs::read(target.join("usr/bin/busybox"));
    bed.relay("POST", "down?on=0");
    (
        read.is_ok_and(|program| program.starts_with(b"\x7fELF")),
        last,
    )
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
