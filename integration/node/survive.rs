//! Containers outlive crfs: they read and verify while its server is killed, ended, replaced, and while
//! its keeper is killed. Not one read may fail, and none may take long.

use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::bed::{self, CRFS};
use crate::lazy_run::lazy_roots;
use crate::survivors::{Node, pause};
use crate::takeover_rig::kernel_repeats_requests;

#[test]
fn containers_read_on_while_the_server_is_killed() {
    if !kernel_repeats_requests() {
        return;
    }
    let kills = if bed::long() { 1000 } else { 50 };
    let mut node = Node::up();
    node.start_reading("reader");
    node.bed.relay("POST", "link?rtt_ms=30&mbit=100");
    node.start("crfs", "cold", &["read", "/shared", "cold", "once"]);
    let start = Instant::now();
    node.same_numbers(|node| {
        let mut done = 0;
        while done < kills {
            done += u32::from(node.kill_server());
            pause();
        }
    });
    println!("{kills} kills in {:?}", start.elapsed());
    // Nothing in it is met by a pattern that somebody kills daemons by.
    let keeper = format!("/proc/{}/cmdline", node.keeper().as_raw_nonzero());
    assert_eq!(std::fs::read(keeper).unwrap(), b"fd-keeper\0");
    assert_eq!(lazy_roots(&node.bed.crfs_root()).len(), 4);
    node.bed.relay("POST", "link?rtt_ms=0&mbit=0");
    node.judge("killed");
    let said = node
        .bed
        .run(&node.image, "after", &["python3", "/app/main.py"]);
    assert!(said.contains("numpy"), "{said}");
}

#[test]
fn containers_read_on_while_the_server_is_replaced_and_the_keeper_killed() {
    if !kernel_repeats_requests() {
        return;
    }
    let mut node = Node::up();
    node.start_reading("reader");
    let root = node.bed.crfs_root().display().to_string();
    node.same_numbers(|node| {
        let mut server = node.server().unwrap();
        for _ in 0..if bed::long() { 100 } else { 10 } {
            bed::crfs(&["upgrade", CRFS, "--root", &root]);
            server = node.wait_for_another(server);
            pause();
        }
        let why = bed::crfs_refuses(&["upgrade", "/bin/false", "--root", &root]);
        assert!(why.contains("is no crfs"), "{why}");
        assert_eq!(node.server(), Some(server), "nobody had to wait for that");
        let bad = node.bed.folder().join("crfs-bad");
        bed::crfs_that_fails(&bad);
        let why = bed::crfs_refuses(&["upgrade", bad.to_str().unwrap(), "--root", &root]);
        assert!(why.contains("back to the old"), "{why}");
        bed::wait_for("the old one", 20, || {
            bed::crfs(&["status", "--root", &root]).contains("ready")
        });
        server = node.server().unwrap();
        for before in 0..3 {
            kill_process(node.keeper(), Signal::KILL).unwrap();
            bed::wait_for("another keeper", 20, || {
                let log = node.bed.crfs_log();
                log.matches("another keeper holds everything").count() > before
            });
            assert_eq!(node.server(), Some(server), "the server lives");
            // What the new keeper was given is enough for the next server.
            assert!(node.kill_server());
            server = node.server().unwrap();
            std::thread::sleep(Duration::from_millis(300));
        }
    });
    let status = bed::crfs(&["status", "--root", &root]);
    assert!(
        status.contains("4 layers served, 4 taken over, 0 lost"),
        "{status}"
    );
    node.judge("replaced");
}

#[test]
fn containers_wait_for_a_daemon_that_was_ended_or_stands_still() {
    if !kernel_repeats_requests() {
        return;
    }
    let mut node = Node::up();
    node.start_reading("reader");
    node.same_numbers(|node| {
        for _ in 0..3 {
            node.bed.tell("crfs stop");
            assert!(node.server().is_none());
            node.bed.tell("crfs start");
            std::thread::sleep(Duration::from_millis(300));
        }
        let server = node.server().unwrap();
        kill_process(server, Signal::STOP).unwrap();
        std::thread::sleep(Duration::from_secs(10));
        kill_process(server, Signal::CONT).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(node.server(), Some(server), "it recovers by itself");
    });
    let (_, report) = node.reports().remove(0);
    println!("ended and started again, stopped for 10 s: {report}");
    assert_eq!(report["bad"], serde_json::json!([]));
    assert!(report["reads"].as_u64().unwrap() > 100, "{report}");
    assert!(
        report["worst_ms"].as_u64().unwrap() > 9000,
        "it did stand still: {report}"
    );
    assert_eq!(node.unanswered(), 0, "requests are stuck");
}

#[test]
fn what_nobody_kept_is_lost_loudly_and_mounted_again() {
    let mut node = Node::up();
    node.bed.tell("crfs kill");
    assert_eq!(
        lazy_roots(&node.bed.crfs_root()).len(),
        4,
        "dead mounts stay"
    );
    node.bed.tell("crfs start");
    let root = node.bed.crfs_root().display().to_string();
    bed::wait_for("the line about it", 10, || {
        bed::crfs(&["status", "--root", &root]).contains("4 layers served, 0 taken over, 4 lost")
    });
    let log = node.bed.crfs_log();
    assert_eq!(
        log.matches("a mount has lost its server").count(),
        4,
        "{log}"
    );
    node.bed.wait_for_crfs();
    let said = node
        .bed
        .run(&node.image, "after", &["python3", "/app/main.py"]);
    assert!(said.contains("numpy"), "{said}");
}
