//! A whole Debian with a systemd of its own, as a machine that crfs is installed on.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use crate::bed::Bed;

const BED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/integration/bed");

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const CONTAINERD: &str = "\
[Service]
Type=notify
ExecStart=/usr/local/bin/containerd
Delegate=yes
KillMode=process
[Install]
WantedBy=multi-user.target
";

/// A booted Debian, in namespaces of its own but for the network. It ends with this value.
pub struct Host {
    folder: PathBuf,
    script: Child,
    init: String,
}

impl Host {
    /// Boots the Debian that the environment variable names; `None`, and says so, where there is none.
    pub fn boot(variable: &str, folder: PathBuf) -> Option<Self> {
        let Some(tar) = std::env::var_os(variable) else {
            println!("skipped: no Debian could be put together for a host ({variable})");
            return None;
        };
        let mut script = Command::new(format!("{BED}/host.sh"));
        script.arg(tar).arg(&folder);
        let script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut script = script.unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(script.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        let init = line.trim().to_owned();
        assert!(!init.is_empty(), "{:?}", script.wait());
        Some(Self {
            folder,
            script,
            init,
        })
    }

    /// A path on the host as the test sees it.
    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.join(path.trim_start_matches('/'))
    }

    /// Starts the bed's containerd on the host, with no configuration at all.
    pub fn start_containerd(&self, bed: &Bed) {
        let ctr = bed.real_ctr();
        for name in ["containerd", "ctr", "containerd-shim-runc-v2"] {
            let to = self.path("/usr/local/bin").join(name);
            fs::copy(ctr.with_file_name(name), to).unwrap();
        }
        let unit = self.path("/etc/systemd/system/containerd.service");
        fs::write(unit, CONTAINERD).unwrap();
        self.run("systemctl enable --now containerd");
    }

    /// Runs a line of shell on the host, whatever comes of it.
    pub fn try_run(&self, line: &str) -> Output {
        let mut enter = Command::new("nsenter");
        enter.args(["--all", "--target", &self.init, "sh", "-c", line]);
        // The test's own TMPDIR and the like name nothing there.
        enter.env_clear().env("PATH", PATH);
        enter.stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a line of shell on the host and insists that it succeeds; gives all that it printed.
    pub fn run(&self, line: &str) -> String {
        let done = self.try_run(line);
        let text = text(&done);
        let log = || self::text(&self.try_run("journalctl -n 40 --no-pager"));
        assert!(done.status.success(), "{line}: {text}\n{}", log());
        text
    }

    /// Runs a line of shell that has to fail; gives all that it printed.
    pub fn refuses(&self, line: &str) -> String {
        let done = self.try_run(line);
        assert!(!done.status.success(), "{line}: {}", text(&done));
        text(&done)
    }

    /// The process that serves.
    pub fn server(&self) -> String {
        self.run("systemctl show --value --property MainPID crfs")
    }

    /// Files of crfs on the host's own disk, but for what lies in `/root`.
    pub fn traces(&self) -> String {
        self.run("find / -xdev -path /root -prune -o -path /var/lib/containerd -prune -o -iname '*crfs*' -print")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.script.stdin.take());
        self.script.wait().unwrap();
    }
}

/// Both of what a command printed.
pub fn text(output: &Output) -> String {
    let parts = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    parts.concat()
}
