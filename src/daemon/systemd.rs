//! A daemon that systemd keeps: which service it is, and how another program takes its place.
//!
//! systemd's own restart keeps the mounts, but starts whatever the unit names, again and again. So the unit
//! names a symlink (`deploy/crfs.service`), and an upgrade points it at the new program, restarts the
//! service, and points it back if the new program does not come up.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::daemon::Error;

/// The service of a running daemon.
#[derive(Debug, PartialEq, Eq)]
pub struct Service {
    unit: String,
    /// Of a user's systemd, as opposed to the machine's.
    is_user: bool,
    /// What the unit starts.
    program: PathBuf,
}

impl Service {
    /// The service that process `pid` is the main process of; `None`: systemd did not start it.
    pub fn of(pid: &str) -> Option<Self> {
        let process = Path::new("/proc").join(pid);
        let unit = unit(&fs::read_to_string(process.join("cgroup")).ok()?)?;
        let parent = parent(&fs::read_to_string(process.join("status")).ok()?)?;
        let manager = fs::read(format!("/proc/{parent}/cmdline")).ok()?;
        let mut manager = manager.split(|byte| *byte == 0);
        let name = Path::new(std::ffi::OsStr::from_bytes(manager.next()?)).file_name()?;
        if name != "systemd" && parent != "1" {
            return None;
        }
        let line = fs::read(process.join("cmdline")).ok()?;
        let program = line.split(|byte| *byte == 0).next()?;
        Some(Self {
            unit,
            is_user: manager.any(|word| word == b"--user"),
            program: Path::new(std::ffi::OsStr::from_bytes(program)).to_owned(),
        })
    }

    /// Its name, and the line that the daemon keeps for people.
    pub fn describe(&self) -> String {
        let shown = self.systemctl(&["show", "--value", "--property", "StatusText"]);
        let status = shown.unwrap_or_default();
        format!("service {}\nstatus {}\n", self.unit, status.trim())
    }

    /// Makes `program` what the unit starts, now. When it does not come up the one before is started
    /// again, and the error says so.
    ///
    /// # Errors
    /// The unit does not start a symlink, or the new program did not become ready.
    pub fn upgrade(&self, program: &Path) -> Result<(), Error> {
        let link = &self.program;
        let old = fs::read_link(link).map_err(|_| {
            Error::Service(format!(
                "{} starts {}, which is no symlink: there would be nothing to go back to (see deploy/crfs.service)",
                self.unit,
                link.display()
            ))
        })?;
        let fail = |error: io::Error| Error::Service(format!("{}: {error}", link.display()));
        point(link, program).map_err(fail)?;
        let Err(why) = self.systemctl(&["restart"]) else {
            return Ok(());
        };
        point(link, &old).map_err(fail)?;
        let back = match self.systemctl(&["restart"]) {
            Ok(_) => format!("{} serves again", old.display()),
            Err(error) => format!("{} does not either: {error}", old.display()),
        };
        let program = program.display();
        Err(Error::Service(format!(
            "{program} did not come up, {back} (journalctl -u {}): {why}",
            self.unit
        )))
    }

    /// What it printed, or why it failed.
    fn systemctl(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("systemctl");
        if self.is_user {
            command.arg("--user");
        }
        let done = command.args(arguments).arg(&self.unit).output();
        let done = done.map_err(|error| format!("systemctl: {error}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().replace('\n', " ");
        if done.status.success() {
            Ok(text(&done.stdout))
        } else {
            Err(text(&done.stderr))
        }
    }
}

/// Makes `link` a symlink to `target`, in one step.
fn point(link: &Path, target: &Path) -> io::Result<()> {
    let mut fresh = link.as_os_str().to_owned();
    fresh.push(".new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::os::unix::fs::symlink(target, &fresh)?;
    fs::rename(&fresh, link)
}

/// The unit in a `/proc/PID/cgroup`: the last folder of a path that ends in `.service`.
fn unit(cgroup: &str) -> Option<String> {
    let paths = cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let mut units =
        paths.filter_map(|path| path.rsplit('/').find(|name| name.ends_with(".service")));
    units.next().map(str::to_owned)
}

fn parent(status: &str) -> Option<String> {
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.map(|pid| pid.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_found_in_either_hierarchy() {
        for (text, found) in [
            ("0::/system.slice/crfs.service\n", Some("crfs.service")),
            (
                "4:memory:/system.slice/crfs.service\n1:name=systemd:/system.slice/crfs.service\n0::/\n",
                Some("crfs.service"),
            ),
            (
                "0::/user.slice/user-0.slice/user@0.service/app.slice/crfs.service",
                Some("crfs.service"),
            ),
            ("0::/user.slice/user-0.slice/session-2.scope\n", None),
            ("0::/\n", None),
            ("", None),
        ] {
            assert_eq!(unit(text).as_deref(), found, "{text}");
        }
    }

    #[test]
    fn a_link_is_pointed_elsewhere_and_back() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("current");
        for target in ["/bin/true", "/bin/false", "/bin/true"] {
            point(&link, Path::new(target)).unwrap();
            assert_eq!(fs::read_link(&link).unwrap(), Path::new(target));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
