//! Readers go on while the server is killed, stopped, replaced, and while the keeper is.

use std::os::fd::AsFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crfs::fs::adopt;
use crfs::keeper;
use crfs::keeper::protocol::{FdName, Identity, Notify};
use rustix::mount::MountFlags;
use rustix::process::{Pid, Signal};

use crate::takeover_fs::{DEAF, content};
use crate::takeover_rig::{Readers, Rig, roll};
use crate::takeover_server::{front_process, set_mode};

/// The longest that a reader may wait over a take-over.
const STALL: Duration = Duration::from_secs(1);

#[test]
fn readers_never_notice_that_the_server_is_killed() {
    let Some(rig) = Rig::new() else { return };
    let long = std::env::var_os("CRFS_LONG").is_some();
    let kills = if long { 1000 } else { 50 };
    let front = rig.serve();
    let readers = [rig.path("merged"), rig.path("layer")].map(|root| Readers::start(&root));
    let mut dice = 7;
    for kill in 0..kills {
        // One in five in the middle of its start.
        let old = rig.signal_server(Signal::KILL);
        if kill % 5 == 4 {
            rig.until("there is another server", || {
                rig.server_pid().is_some_and(|pid| pid != old)
            });
            thread::sleep(Duration::from_millis(roll(&mut dice, 20)));
        } else {
            rig.until_replaced(old);
            thread::sleep(Duration::from_millis(roll(&mut dice, 120)));
        }
    }
    rig.until("the last one is ready", || rig.says("phase") == "ready");
    thread::sleep(Duration::from_millis(200));
    let seen = readers.map(Readers::end);
    let worst = seen.iter().map(|seen| seen.worst).max().unwrap();
    let reads: u64 = seen.iter().map(|seen| seen.reads).sum();
    eprintln!("{kills} kills, {reads} reads, 0 failed or wrong, worst stall {worst:?}");
    let keeper = quiet(rig.number("keeper"));
    eprintln!("keeper: {keeper} KiB resident");
    assert_eq!(rig.number("starts"), kills + 1);
    assert!(worst < STALL, "{worst:?}");
    assert!(keeper < LIMIT);
    rig.unmount();
    assert_eq!(
        front.join().unwrap().unwrap(),
        0,
        "the server ends with its last layer"
    );
    rig.until("the keeper leaves", || keeper::state(&rig.folder).is_err());
}

/// KiB that the keeper may hold when nothing happens.
const LIMIT: u64 = 4096;

/// KiB that the keeper holds once it has given back what the last burst needed.
fn quiet(pid: u64) -> u64 {
    let from = Instant::now();
    while resident(pid) >= LIMIT && from.elapsed() < Duration::from_secs(10) {
        thread::sleep(Duration::from_millis(100));
    }
    resident(pid)
}

/// KiB of memory that a process holds. The keeper is not asked: that would stir it.
fn resident(pid: u64) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn ten_thousand_mounts_are_kept() {
    let Some(rig) = Rig::new() else { return };
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    if limit.is_some_and(|limit| limit < 10_100) {
        return eprintln!("skipped: a process may open {limit:?} files");
    }
    let _front = rig.serve();
    let store = Notify::to_path(&rig.folder.notify()).unwrap();
    let file = tempfile::tempfile().unwrap();
    for n in 2..=10_000 {
        let name = FdName::new(&format!("m{n}")).unwrap();
        store.store(&name, file.as_fd(), Identity::Kept).unwrap();
    }
    store.barrier(Duration::from_secs(10)).unwrap();
    assert_eq!(rig.number("layers"), 10_000);
    let pid = rig.signal_server(Signal::KILL);
    let from = Instant::now();
    rig.until_replaced(pid);
    eprintln!("a start with 10,000 descriptors took {:?}", from.elapsed());
    assert_eq!(rig.says("status"), "10000 layers");
    let keeper = rig.number("keeper");
    eprintln!("keeper: {} KiB resident after the start", resident(keeper));
    let quiet = quiet(keeper);
    eprintln!("keeper: {quiet} KiB resident when all is quiet");
    assert!(quiet < LIMIT);
}

#[test]
fn the_death_of_the_keeper_alone_loses_nothing() {
    let Some(rig) = Rig::new() else { return };
    let front = rig.serve();
    let readers = Readers::start(&rig.path("merged"));
    for _ in 0..3 {
        let server = rig.server_pid().unwrap();
        let old = rig.number("keeper");
        let pid = Pid::from_raw(i32::try_from(old).unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
        rig.until("another keeper has the layer", || {
            ![0, old].contains(&rig.number("keeper")) && rig.number("layers") == 1
        });
        assert_eq!(rig.server_pid(), Some(server), "the server goes on");
        rig.signal_server(Signal::KILL);
        rig.until_replaced(server);
    }
    let seen = readers.end();
    eprintln!(
        "3 keepers and 3 servers killed, worst stall {:?}",
        seen.worst
    );
    assert!(seen.worst < STALL);
    // The front found the new keeper too.
    assert!(keeper::stop(&rig.folder).unwrap());
    assert_eq!(front.join().unwrap().unwrap(), 0);
}

#[test]
fn a_server_that_stands_still_recovers_or_is_replaced() {
    let Some(rig) = Rig::new() else { return };
    let _front = rig.serve();
    let readers = Readers::start(&rig.path("merged"));
    let pid = rig.signal_server(Signal::STOP);
    thread::sleep(Duration::from_secs(2));
    rig.signal_server(Signal::CONT);
    thread::sleep(Duration::from_millis(100));
    assert_eq!(rig.server_pid(), Some(pid));
    let seen = readers.end();
    assert!(seen.worst >= Duration::from_secs(1), "it did stand still");
    set_mode(rig.folder.root(), "watched");
    let pid = rig.signal_server(Signal::KILL);
    rig.until_replaced(pid);
    let readers = Readers::start(&rig.path("merged"));
    let pid = rig.signal_server(Signal::STOP);
    rig.until_replaced(pid);
    assert!(
        rig.says("last_error").contains("no sign of life"),
        "{}",
        rig.says("last_error")
    );
    let seen = readers.end();
    eprintln!(
        "a server that hangs is replaced: worst stall {:?}",
        seen.worst
    );
    assert!(seen.worst < Duration::from_secs(2));
}

#[test]
fn a_request_that_was_read_and_not_answered_waits_for_a_server_that_asks_for_it() {
    let Some(rig) = Rig::new() else { return };
    set_mode(rig.folder.root(), "deaf");
    let _front = rig.serve();
    let control = "/sys/fs/fuse/connections";
    rustix::mount::mount("fusectl", control, "fusectl", MountFlags::empty(), None).unwrap();
    let device = rustix::fs::stat(rig.path("layer")).unwrap().st_dev;
    let waiting = || adopt::waiting(rustix::fs::minor(device)).unwrap();
    assert_eq!(waiting(), 0);
    let path = rig.path("merged").join("d7/f15");
    let reader = thread::spawn(move || std::fs::read(path));
    rig.until("the server has the request", || waiting() > 0);
    // As on a kernel before 6.9: new requests are served, this one is only counted.
    set_mode(rig.folder.root(), "no-resend");
    let pid = rig.signal_server(Signal::KILL);
    rig.until_replaced(pid);
    let readers = Readers::start(&rig.path("merged"));
    thread::sleep(Duration::from_millis(200));
    readers.end();
    assert_eq!(waiting(), 1);
    assert!(!reader.is_finished());
    set_mode(rig.folder.root(), "serve");
    let pid = rig.signal_server(Signal::KILL);
    rig.until_replaced(pid);
    rig.until("it is answered", || reader.is_finished());
    assert_eq!(
        reader.join().unwrap().unwrap(),
        content(DEAF, 0, usize::MAX)
    );
    assert_eq!(waiting(), 0);
}

#[test]
fn a_server_that_keeps_dying_is_tried_later_and_later() {
    let Some(rig) = Rig::new() else { return };
    let _front = rig.serve();
    let readers = Readers::start(&rig.path("merged"));
    set_mode(rig.folder.root(), "die");
    rig.signal_server(Signal::KILL);
    let from = Instant::now();
    rig.until("the pause has grown", || rig.number("next_start_ms") > 600);
    let (starts, time) = (rig.number("starts"), from.elapsed());
    assert!((5..20).contains(&starts), "{starts} starts in {time:?}");
    assert_eq!(rig.says("phase"), "waiting");
    assert_eq!(rig.number("layers"), 1);
    assert!(
        rig.says("last_error").contains("exit code 3"),
        "{}",
        rig.says("last_error")
    );
    set_mode(rig.folder.root(), "serve");
    rig.until("it serves again", || rig.says("phase") == "ready");
    readers.end();
}

#[test]
fn an_upgrade_holds_and_a_bad_one_is_rolled_back() {
    let Some(rig) = Rig::new() else { return };
    let front = rig.serve();
    let readers = Readers::start(&rig.path("merged"));
    let program = || {
        let pid = rig.server_pid().unwrap().as_raw_nonzero();
        std::fs::read_link(format!("/proc/{pid}/exe")).unwrap()
    };
    let old = program();
    for bad in ["/bin/false", "/etc/hostname", "/no/such/program"] {
        let error = keeper::upgrade(&rig.folder, Path::new(bad)).unwrap_err();
        eprintln!("{bad}: {error}");
        rig.until("the old one serves", || rig.says("phase") == "ready");
        assert_eq!(program(), old);
    }
    let new = rig.path("new-server");
    std::fs::copy(&old, &new).unwrap();
    keeper::upgrade(&rig.folder, &new).unwrap();
    assert_eq!(program(), new);
    // Also the program that was replaced on the disk is the one to go back to, and to start again.
    std::fs::write(rig.path("other"), "no program").unwrap();
    std::fs::rename(rig.path("other"), &new).unwrap();
    let pid = rig.signal_server(Signal::KILL);
    rig.until_replaced(pid);
    assert!(
        program()
            .to_string_lossy()
            .ends_with("new-server (deleted)")
    );
    let seen = readers.end();
    eprintln!(
        "upgraded and rolled back: {} reads, worst stall {:?}",
        seen.reads, seen.worst
    );
    assert!(seen.worst < STALL);
    assert!(!front.is_finished());
}

#[test]
fn a_keeper_stays_with_its_layers_and_is_found_again() {
    let Some(rig) = Rig::new() else { return };
    let front = rig.serve();
    let keeper = rig.number("keeper");
    let second = rig.front().join().unwrap();
    assert!(second.unwrap_err().to_string().contains("running already"));
    let readers = Readers::start(&rig.path("merged"));
    thread::sleep(Duration::from_millis(100));
    assert!(keeper::stop(&rig.folder).unwrap());
    assert_eq!(front.join().unwrap().unwrap(), 0);
    assert_eq!(
        (rig.says("phase"), rig.number("layers")),
        ("stopped".to_owned(), 1)
    );
    let front = rig.front();
    rig.until("it serves again", || rig.says("phase") == "ready");
    readers.end();
    assert_eq!(rig.number("keeper"), keeper);
    // Stopped and unmounted by hand: the keeper sees it and leaves.
    assert!(keeper::stop(&rig.folder).unwrap());
    front.join().unwrap().unwrap();
    rig.unmount();
    rig.until("the keeper leaves", || keeper::state(&rig.folder).is_err());
    assert!(!rig.folder.control().exists() && !rig.folder.notify().exists());
    assert!(
        !keeper::stop(&rig.folder).unwrap(),
        "there is nothing to stop"
    );
}

#[test]
fn the_front_may_die_and_its_signals_reach_the_server() {
    let Some(rig) = Rig::new() else { return };
    let mut front = front_process(rig.folder.root());
    rig.until("the server is ready", || rig.says("phase") == "ready");
    rig.overlay();
    let readers = Readers::start(&rig.path("merged"));
    let server = rig.server_pid();
    front.kill().unwrap();
    front.wait().unwrap();
    thread::sleep(Duration::from_millis(100));
    let mut front = front_process(rig.folder.root());
    thread::sleep(Duration::from_millis(200));
    assert_eq!(
        (rig.server_pid(), rig.says("phase")),
        (server, "ready".to_owned())
    );
    assert_eq!(rig.number("starts"), 1);
    let pid = Pid::from_child(&front);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(front.wait().unwrap().code(), Some(0));
    assert_eq!(rig.says("phase"), "stopped");
    let mut front = front_process(rig.folder.root());
    rig.until("it serves again", || rig.says("phase") == "ready");
    readers.end();
    // To the keeper, SIGTERM says the same.
    let keeper = Pid::from_raw(rig.says("keeper").parse().unwrap()).unwrap();
    rustix::process::kill_process(keeper, Signal::TERM).unwrap();
    assert_eq!(front.wait().unwrap().code(), Some(0));
    assert_eq!(
        (rig.says("phase"), rig.number("layers")),
        ("stopped".to_owned(), 1)
    );
}

#[test]
fn a_first_start_that_fails_is_told_at_once() {
    let Some(rig) = Rig::new() else { return };
    set_mode(rig.folder.root(), "die");
    assert_eq!(rig.front().join().unwrap().unwrap(), 3);
    rig.until("the keeper leaves", || keeper::state(&rig.folder).is_err());
}
