//! A real systemd as the keeper: `deploy/crfs.service` in a private user manager, with containers on top.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};

use rustix::process::{Signal, kill_process};

use crate::bed::{self, Bed, CRFS};
use crate::survivors::{Node, pause};
use crate::takeover_rig::kernel_repeats_requests;

const BED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/integration/bed");
const SYSTEMD: &str = "/lib/systemd/systemd";

impl Node {
    /// A command that speaks to this node's systemd.
    fn ask(&self, program: &str, arguments: &[&str]) -> Output {
        let run = format!("{}.systemd/run", self.bed.crfs_root().display());
        let mut command = Command::new("timeout");
        command.args(["60", program]).args(arguments);
        command.env("XDG_RUNTIME_DIR", run).output().unwrap()
    }
}

fn text(output: &Output) -> String {
    let parts = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    parts.concat()
}

#[test]
fn the_unit_is_as_systemd_wants_it() {
    if !Path::new("/usr/bin/systemd-analyze").exists() {
        return println!("skipped: systemd-analyze is not installed");
    }
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("crfs.service");
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/crfs.service"));
    let program = "/usr/local/lib/crfs/current";
    let text = text.unwrap();
    assert!(text.contains(program));
    fs::write(&unit, text.replace(program, CRFS)).unwrap();
    let mut verify = Command::new("systemd-analyze");
    let done = verify.arg("verify").arg(&unit).output().unwrap();
    assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
}

#[test]
fn containers_read_on_under_systemd() {
    if !kernel_repeats_requests() {
        return;
    }
    if !Path::new(SYSTEMD).exists() {
        return println!("skipped: systemd is not installed");
    }
    let server = format!("{BED}/systemd.sh {CRFS} {{config}} {{root}} {{socket}}");
    let config = "[fetch]\nbackground = false\n[cri]\nlisten = \"{node}/cri.sock\"\n";
    let bed = Bed::up(config, &["--server", &server]);
    let mut node = Node::on(bed, &bed::image("numpy"));
    node.start_reading("reader");
    node.bed.relay("POST", "link?rtt_ms=30&mbit=100");
    node.start("crfs", "cold", &["read", "/shared", "cold", "once"]);
    let root = node.bed.crfs_root().display().to_string();
    let kills = if bed::long() { 100 } else { 10 };
    node.same_numbers(|node| {
        let mut done = 0;
        while done < kills {
            let server = node
                .server()
                .filter(|pid| kill_process(*pid, Signal::KILL).is_ok());
            // The socket is systemd's to keep: who calls waits, and is not turned away.
            UnixStream::connect(node.bed.folder().join("node/cri.sock")).unwrap();
            if let Some(server) = server {
                node.wait_for_another(server);
                done += 1;
            }
            pause();
        }
    });
    node.bed.relay("POST", "link?rtt_ms=0&mbit=0");
    node.judge("killed under systemd");

    // How long these take is systemd's.
    node.start_reading("swapped");
    node.same_numbers(|node| {
        let old = node.server().unwrap();
        let restarted = node.ask("systemctl", &["--user", "restart", "crfs"]);
        assert!(restarted.status.success(), "{restarted:?}");
        node.wait_for_another(old);

        // An upgrade holds, and a bad one is taken back.
        let link = format!("{root}.systemd/current");
        let other = node.bed.folder().join("crfs-0.2");
        symlink(CRFS, &other).unwrap();
        let upgrade = |program: &str| node.ask(CRFS, &["upgrade", program, "--root", &root]);
        let done = upgrade(other.to_str().unwrap());
        assert!(done.status.success(), "{}", text(&done));
        assert_eq!(fs::read_link(&link).unwrap(), other);
        let fails = node.bed.folder().join("crfs-bad");
        bed::crfs_that_fails(&fails);
        let fails = fails.to_str().unwrap();
        for bad in [fails, "/bin/false", "/etc/hostname", "/no/such/program"] {
            let done = upgrade(bad);
            assert!(
                !done.status.success() && text(&done).contains(bad),
                "{}",
                text(&done)
            );
            assert_eq!(fs::read_link(&link).unwrap(), other);
        }
        let status = node.ask(CRFS, &["status", "--root", &root]);
        assert!(status.status.success(), "{}", text(&status));
        for words in ["crfs.service", "4 layers served, 4 taken over, 0 lost"] {
            assert!(text(&status).contains(words), "{}", text(&status));
        }
    });
    node.judge("restarted and upgraded under systemd");
}
