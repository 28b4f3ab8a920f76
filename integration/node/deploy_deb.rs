//! The Debian package on a real host: installed, used, upgraded under what uses it, removed.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::bed::{self, Bed};
use crate::deploy_binary;
use crate::deploy_host::Host;

/// Makes the package in this version, in the folder.
fn package(binary: &str, version: &str, folder: &Path) {
    let mut make = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/deb.sh"));
    make.args(["--binary", binary, "--version", version, "--output"]);
    let made = make.arg(folder).output().unwrap();
    assert!(made.status.success(), "{made:?}");
}

fn live_and_die_as_a_package(variable: &str) {
    let Some(binary) = deploy_binary::build() else {
        return;
    };
    let bed = Bed::up("", &["--no-crfs"]);
    let Some(host) = Host::boot(variable, bed.folder().join("host")) else {
        return;
    };
    for version in ["0.1.0", "0.1.1"] {
        package(&binary, version, &host.path("/root"));
    }
    let image = bed.convert(&bed::image("numpy"), "numpy:lazy");
    host.start_containerd(&bed);

    let said = host.run("dpkg --install /root/crfs_0.1.0_*.deb");
    assert!(!said.contains("warning"), "{said}");
    host.run("systemctl is-enabled crfs && systemctl is-active crfs && crfs config check");
    for (path, mode) in [
        ("/usr/bin/crfs", "755"),
        ("/lib/systemd/system/crfs.service", "644"),
        ("/lib/systemd/system/crfs.service.d/preserve.conf", "644"),
        ("/etc/crfs/config.toml", "644"),
        ("/usr/share/doc/crfs/copyright", "644"),
    ] {
        let line = format!("stat --format '%a %U' {path} && dpkg --search {path}");
        let said = host.run(&line);
        assert_eq!(said, format!("{mode} root\ncrfs: {path}\n"));
    }
    host.run("md5sum /etc/crfs/config.toml && dpkg --verify crfs");

    // The bare containerd is told, and something stands on a lazy layer.
    let said = host.run("crfs setup");
    assert!(
        said.contains("an image was pulled lazily and read"),
        "{said}"
    );
    host.run(&format!(
        "ctr image pull --plain-http --snapshotter crfs {image} && mkdir /root/mounted && \
         ctr image mount --snapshotter crfs {image} /root/mounted && ls /root/mounted"
    ));
    let read = |from, to| {
        let files = "find /root/mounted -xdev -type f -size -64k | sort";
        let line = format!("{files} | sed -n '{from},{to}p' | xargs -d '\\n' md5sum");
        host.run(&line)
    };
    let first = read(1, 200);

    // An upgrade: another process serves what the one before has mounted, and fetches what nobody has read.
    let before = host.server();
    host.run("dpkg --install /root/crfs_0.1.1_*.deb");
    assert_ne!(host.server(), before);
    let status = host.run("crfs status");
    assert!(
        status.contains("0 lost") && !status.contains(" 0 taken over"),
        "{status}"
    );
    assert_eq!(read(1, 200), first);
    read(201, 400);

    // Removed only when nothing stands on it; then nothing of it is left but its configuration.
    let before = host.server();
    let said = host.refuses("dpkg --remove crfs");
    assert!(said.contains(&image) && said.contains("in use"), "{said}");
    assert_eq!(host.server(), before);
    assert_eq!(read(1, 200), first);
    host.run("ctr image unmount --rm /root/mounted");
    // containerd tells crfs so in its own time.
    bed::wait_for("the view to be gone", 30, || {
        host.run("crfs layers --json | grep -c '\"users\": [1-9]' || true")
            .trim()
            == "0"
    });
    host.run("dpkg --remove crfs");
    host.refuses("grep -E ' - fuse[. ]|/var/lib/crfs' /proc/self/mountinfo");
    host.refuses("test -e /etc/containerd/config.toml");
    host.run("ctr version");
    host.run(
        "test -e /etc/crfs/config.toml && ! systemctl cat crfs && ! test -e /run/crfs/crfs.sock",
    );
    host.run("dpkg --purge crfs");
    assert_eq!(host.traces(), "");
    assert!(!host.run("dpkg --get-selections").contains("crfs"));
    assert_eq!(host.run("systemctl --failed --plain --no-legend"), "");
    fs::remove_dir_all(host.path("/root")).unwrap();
}

#[test]
fn the_package_comes_and_goes_and_is_upgraded_in_use() {
    live_and_die_as_a_package("CRFS_BED_HOST");
}

#[test]
fn the_package_comes_and_goes_on_an_older_debian() {
    if !bed::long() {
        return println!("skipped: only with --long");
    }
    live_and_die_as_a_package("CRFS_BED_HOST_OLDER");
}
