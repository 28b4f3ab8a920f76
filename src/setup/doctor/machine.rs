//! The machine: kernel, file systems, limits, disk, clock.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, getrlimit};

use super::Finding;
use crate::config::Config;
use crate::fs::OpenMode;

/// Descriptors that a node with a few hundred layers needs: three a layer, and the cache's.
const DESCRIPTORS: u64 = 16_384;
/// Least free space that lets a node pull anything, in bytes.
const LEAST_FREE: u64 = 1 << 30;
/// `f_type` of overlayfs and tmpfs (`include/uapi/linux/magic.h`).
const OVERLAYFS: u64 = 0x794c_7630;
const TMPFS: u64 = 0x0102_1994;
/// State of an unsynchronised clock (adjtimex(2)).
const TIME_ERROR: i32 = 5;

pub(super) fn examine(config: &Config) -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let release = read("/proc/sys/kernel/osrelease");
    let file_systems = read("/proc/filesystems");
    let device = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    vec![
        user(rustix::process::geteuid().is_root()),
        kernel(release.trim()),
        fuse(device.map(drop).map_err(|error| error.to_string())),
        overlay(&file_systems),
        descriptors(getrlimit(Resource::Nofile).maximum),
        root(config),
        clock(),
    ]
}

fn user(is_root: bool) -> Finding {
    match is_root {
        true => Finding::ok("user", "root"),
        false => Finding::failure("user", "not root", "run crfs, and this, as root"),
    }
}

fn kernel(release: &str) -> Finding {
    const CHECK: &str = "kernel";
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|number| number.parse::<u32>().ok());
    let (Some(major), Some(minor)) = (next(), next()) else {
        return Finding::warning(
            CHECK,
            format!("{release:?}"),
            "crfs is made for Linux 5.15 and newer",
        );
    };
    if (major, minor) < (5, 15) {
        let remedy = "install Linux 5.15 or newer; 6.9 or newer is better";
        return Finding::failure(CHECK, release, remedy);
    }
    if (major, minor) < (6, 9) {
        let found =
            format!("{release}: requests that a killed daemon was at hang, and no passthrough");
        return Finding::warning(CHECK, found, "Linux 6.9 or newer repeats them");
    }
    match OpenMode::of_kernel(release) {
        OpenMode::Skip => Finding::ok(CHECK, release),
        OpenMode::Answer => {
            let found =
                format!("{release} has CVE-2025-68821: crfs answers every open, which is slower");
            Finding::warning(CHECK, found, "install 6.12.64, 6.18.3, 6.19 or newer")
        }
    }
}

fn fuse(opened: Result<(), String>) -> Finding {
    match opened {
        Ok(()) => Finding::ok("fuse", "/dev/fuse opens"),
        Err(why) => Finding::failure(
            "fuse",
            format!("/dev/fuse: {why}"),
            "modprobe fuse; in a container it needs --device /dev/fuse and --privileged",
        ),
    }
}

fn overlay(file_systems: &str) -> Finding {
    let known = file_systems.lines().any(|line| line.ends_with("\toverlay"));
    match known {
        true => Finding::ok("overlay", "the kernel has it"),
        false => Finding::failure(
            "overlay",
            "the kernel has not loaded it",
            "modprobe overlay, and name it in /etc/modules-load.d/crfs.conf",
        ),
    }
}

/// `None` is no limit.
fn descriptors(limit: Option<u64>) -> Finding {
    match limit {
        None => Finding::ok("limits", "descriptors without limit"),
        Some(limit) if limit >= DESCRIPTORS => {
            Finding::ok("limits", format!("{limit} descriptors"))
        }
        Some(limit) => Finding::warning(
            "limits",
            format!("at most {limit} descriptors, for three a layer"),
            "LimitNOFILE=1048576 in the unit (deploy/crfs.service has it), or ulimit -Hn",
        ),
    }
}

fn root(config: &Config) -> Finding {
    const CHECK: &str = "root folder";
    let root = &config.root;
    let there = root.ancestors().find(|path| path.exists());
    let there = there.unwrap_or(Path::new("/"));
    let Ok(stat) = rustix::fs::statfs(there) else {
        return Finding::failure(
            CHECK,
            format!("{} cannot be looked at", there.display()),
            "mount its disk",
        );
    };
    let kind = u64::try_from(stat.f_type).unwrap_or_default();
    let unit = u64::try_from(stat.f_bsize).unwrap_or_default();
    let (free, size) = (
        stat.f_bavail.saturating_mul(unit),
        stat.f_blocks.saturating_mul(unit),
    );
    judge_disk(
        &root.display().to_string(),
        kind,
        (free, size),
        config.cache.max_size.0,
    )
}

fn judge_disk(root: &str, kind: u64, (free, size): (u64, u64), cache: u64) -> Finding {
    const CHECK: &str = "root folder";
    let gb = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
    let found = format!("{root}: {} free of {}", gb(free), gb(size));
    match kind {
        OVERLAYFS => {
            let remedy = "point root to a real disk (a volume, in a container): no overlay stands on an overlay";
            return Finding::failure(CHECK, found + ", on overlayfs", remedy);
        }
        TMPFS => {
            let remedy =
                "point root to a disk: this one is forgotten at the next boot, and is memory";
            return Finding::warning(CHECK, found + ", on tmpfs", remedy);
        }
        _ => {}
    }
    if free < LEAST_FREE {
        return Finding::failure(CHECK, found, "make room, or point root to another disk");
    }
    if size < cache {
        let remedy = "set [cache] max_size to less than the disk has";
        return Finding::warning(
            CHECK,
            format!("{found}, the cache may take {}", gb(cache)),
            remedy,
        );
    }
    Finding::ok(CHECK, found)
}

/// Tokens and certificates are about time: a clock that is wrong makes registries refuse both.
fn clock() -> Finding {
    let changed = std::env::current_exe().and_then(|exe| exe.metadata()?.modified());
    judge_clock(SystemTime::now(), changed.ok(), is_synchronised())
}

fn judge_clock(now: SystemTime, program: Option<SystemTime>, synchronised: bool) -> Finding {
    const CHECK: &str = "clock";
    let remedy = "run a time service (systemctl enable --now systemd-timesyncd, or chrony)";
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let shown = httpdate::fmt_http_date(UNIX_EPOCH + seconds);
    if program.is_some_and(|program| program > now) {
        let found = format!("{shown} is before this program was installed");
        return Finding::failure(CHECK, found, format!("set the clock, and {remedy}"));
    }
    match synchronised {
        true => Finding::ok(CHECK, format!("{shown}, synchronised")),
        false => Finding::warning(CHECK, format!("{shown}, not synchronised"), remedy),
    }
}

fn is_synchronised() -> bool {
    // SAFETY: all zeros is a valid value of this struct of numbers, and asks for nothing to be set.
    let mut time: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a struct of the right type that outlives the call.
    let state = unsafe { libc::adjtimex(&raw mut time) };
    (0..TIME_ERROR).contains(&state)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Verdict::{self, Failure, Ok as Fine, Warning};
    use super::*;

    fn is(finding: &Finding, verdict: Verdict, words: &str) {
        assert_eq!(finding.verdict, verdict, "{finding:?}");
        assert!(finding.found.contains(words), "{words}: {finding:?}");
        assert_eq!(finding.remedy.is_empty(), verdict == Fine, "{finding:?}");
    }

    #[test]
    fn each_thing_that_can_be_wrong_with_a_machine_is_told_with_its_remedy() {
        is(&user(true), Fine, "root");
        is(&user(false), Failure, "not root");
        is(&kernel("6.18.44-fc"), Fine, "6.18.44");
        is(&kernel("6.12.63+deb13"), Warning, "CVE-2025-68821");
        is(&kernel("6.1.0-18-amd64"), Warning, "hang");
        is(&kernel("5.10.0"), Failure, "5.10.0");
        is(&kernel("plan9"), Warning, "plan9");
        is(
            &fuse(Err("no such file".to_owned())),
            Failure,
            "no such file",
        );
        is(&fuse(Ok(())), Fine, "opens");
        is(&overlay("nodev\toverlay\n\text4\n"), Fine, "has it");
        is(&overlay("nodev\tproc\n"), Failure, "not loaded");
        is(&descriptors(None), Fine, "without limit");
        is(&descriptors(Some(1024)), Warning, "at most 1024");
        is(&descriptors(Some(1 << 20)), Fine, "1048576");
    }

    #[test]
    fn a_root_folder_needs_a_real_disk_with_room() {
        let (gb, ext4) = (1 << 30, 0xef53);
        is(
            &judge_disk("/r", ext4, (50 * gb, 100 * gb), 20 * gb),
            Fine,
            "/r: 53.7 GB free",
        );
        is(
            &judge_disk("/r", OVERLAYFS, (50 * gb, 100 * gb), gb),
            Failure,
            "overlayfs",
        );
        is(
            &judge_disk("/r", TMPFS, (50 * gb, 100 * gb), gb),
            Warning,
            "tmpfs",
        );
        is(
            &judge_disk("/r", ext4, (gb / 2, 100 * gb), gb),
            Failure,
            "free",
        );
        is(
            &judge_disk("/r", ext4, (5 * gb, 10 * gb), 20 * gb),
            Warning,
            "the cache may take",
        );
    }

    #[test]
    fn a_clock_must_not_be_before_the_program() {
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let later = Some(now + Duration::from_secs(1));
        is(
            &judge_clock(now, later, true),
            Failure,
            "before this program",
        );
        is(&judge_clock(now, Some(now), true), Fine, "14 Nov 2023");
        is(&judge_clock(now, None, false), Warning, "not synchronised");
    }
}
