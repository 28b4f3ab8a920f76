//! What happens to containerd's calls, and on a kernel that repeats no requests, when the server ends.

use std::fs;
use std::process::{Command, Output};

use crate::bed::{self, Bed, CRFS};
use crate::lazy_run::lazy_roots;
use crate::survivors::{Node, pause};
use crate::takeover_rig::kernel_repeats_requests;

/// Layers of the image that comes and goes.
const LAYERS: usize = 6;

/// Runs `ctr` while the server is killed at some moment of it, and gives what came of it.
fn killed_meanwhile(node: &Node, arguments: &[&str]) -> Output {
    let mut ctr = Command::new("timeout");
    ctr.args(["60", node.bed.value("CTR")]).args(arguments);
    let call = ctr.spawn().unwrap();
    pause();
    node.kill_server();
    call.wait_with_output().unwrap()
}

#[test]
fn a_pull_or_removal_cut_short_leaves_nothing_and_costs_nobody_a_read() {
    if !kernel_repeats_requests() {
        return;
    }
    let rounds = if bed::long() { 100 } else { 8 };
    let mut node = Node::up();
    node.start_reading("reader");
    let layout = node.bed.folder().join("more");
    let numpy = bed::image("numpy");
    bed::append(&numpy, &layout, LAYERS);
    let image = node.bed.convert(&layout, "survive:more");
    // Each Prepare takes a while, so that a kill finds some.
    node.bed.relay("POST", "link?rtt_ms=60&mbit=0");
    let pull = [
        "image",
        "pull",
        "--plain-http",
        "--snapshotter",
        "crfs",
        &image,
    ];
    let remove = ["image", "rm", "--sync", &image];
    let all = 4 + LAYERS;
    let (mut cut, root) = (0, node.bed.crfs_root());
    for _ in 0..rounds {
        cut += usize::from(!killed_meanwhile(&node, &pull).status.success());
        bed::wait_for("a pull that succeeds", 60, || {
            node.bed.try_ctr(&pull).status.success()
        });
        assert_eq!(lazy_roots(&root).len(), all);
        for lazy in lazy_roots(&root) {
            fs::read_dir(lazy).unwrap();
        }
        cut += usize::from(!killed_meanwhile(&node, &remove).status.success());
        node.bed.wait_for_crfs();
        // containerd tries again what it could not remove whenever something is removed.
        bed::wait_for("the removal", 60, || {
            let _ = node.bed.try_ctr(&pull);
            let _ = node.bed.try_ctr(&remove);
            lazy_roots(&root).len() == 4
        });
    }
    println!(
        "{} calls, {cut} of them failed and were repeated",
        2 * rounds
    );
    node.judge("killed in Prepare and Remove");
    node.bed.tell("crfs stop");
    let report = bed::crfs(&["fsck", "--root", &root.display().to_string()]);
    println!("{report}");
}

#[test]
fn without_repeated_requests_an_upgrade_loses_nothing_and_a_crash_is_told() {
    let bed = Bed::up("[fetch]\nbackground = false\n[fuse]\nresend = false\n", &[]);
    let mut node = Node::on(bed, &bed::image("numpy"));
    node.start_reading("reader");
    // Reads under way at each upgrade.
    node.bed.relay("POST", "link?rtt_ms=30&mbit=100");
    node.start("crfs", "cold", &["read", "/shared", "cold", "once"]);
    let root = node.bed.crfs_root().display().to_string();
    for _ in 0..if bed::long() { 100 } else { 10 } {
        let server = node.server().unwrap();
        bed::crfs(&["upgrade", CRFS, "--root", &root]);
        node.wait_for_another(server);
        pause();
    }
    node.bed.relay("POST", "link?rtt_ms=0&mbit=0");
    node.judge("replaced without RESEND");
    assert!(
        !node.bed.crfs_log().contains("left unanswered"),
        "{}",
        node.bed.crfs_log()
    );
    // Nobody reads: nothing is lost by a crash either, and new containers work.
    assert!(node.kill_server());
    node.bed.wait_for_crfs();
    let said = node
        .bed
        .run(&node.image, "after", &["python3", "/app/main.py"]);
    assert!(said.contains("numpy"), "{said}");
}
