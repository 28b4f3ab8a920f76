//! `crfs mount` as a user types it: what is seen, how it ends, what is left.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::bed::{Bed, CRFS};
use crate::cli::small_image;
use crate::serve;

/// A `crfs mount` in a folder of its own; its temporary files are there too.
struct Look {
    child: Child,
    stderr: BufReader<ChildStderr>,
    folder: PathBuf,
}

impl Look {
    fn start(folder: &Path, image: &str, options: &[&str]) -> Self {
        for name in ["tmp", "target"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        let mut command = Command::new(CRFS);
        command
            .args(["mount", image])
            .arg(folder.join("target"))
            .args(options)
            .env("TMPDIR", folder.join("tmp"))
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self {
            child,
            stderr,
            folder: folder.to_owned(),
        }
    }

    /// Waits until it says that the image is mounted; gives the line.
    fn mounted(&mut self) -> String {
        let mut line = String::new();
        self.stderr.read_line(&mut line).unwrap();
        assert!(line.starts_with("mounted "), "{line}");
        line
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.folder.join("target").join(name)).ok()
    }

    /// Sends a signal; gives the exit code and what it said at last. Nothing may be left.
    fn end(mut self, signal: Signal) -> (Option<i32>, String) {
        let (status, took) = serve::end(&mut self.child, signal);
        assert!(took < Duration::from_secs(3), "{took:?}");
        self.finish(status.code())
    }

    /// Waits for its end; gives the exit code and what it said at last. Nothing may be left.
    fn fail(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().unwrap();
        self.finish(status.code())
    }

    fn finish(&mut self, code: Option<i32>) -> (Option<i32>, String) {
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let here = self.folder.to_str().unwrap();
        assert!(!mounts.contains(here), "left mounted:\n{mounts}");
        let left = fs::read_dir(self.folder.join("tmp")).unwrap().count();
        assert_eq!(left, 0, "temporary files are left");
        (code, said)
    }
}

#[test]
fn an_image_is_looked_into_until_ctrl_c() {
    let bed = Bed::up("", &["--only", "registry"]);
    let image = bed.convert(&small_image(bed.folder(), "small"), "small:lazy");
    for signal in [Signal::INT, Signal::TERM] {
        let mut look = Look::start(&bed.folder().join("look"), &image, &[]);
        let line = look.mounted();
        assert!(
            line.contains("3 layers") && line.contains("look/target"),
            "{line}"
        );
        assert!(line.contains("Ctrl-C"), "{line}");
        assert_eq!(look.read("etc/low").as_deref(), Some("replaced"));
        assert_eq!(look.read("etc/middle").as_deref(), Some("middle"));
        assert_eq!(look.read("etc/gone"), None, "a whiteout hides it");
        assert!(
            fs::write(bed.folder().join("look/target/new"), "").is_err(),
            "read-only"
        );
        // A shell that sits in the image does not keep it mounted.
        let inside = bed.folder().join("look/target/etc");
        let mut shell = Command::new("sleep")
            .arg("20")
            .current_dir(inside)
            .spawn()
            .unwrap();
        let (code, said) = look.end(signal);
        assert_eq!((code, said.as_str()), (Some(0), ""));
        shell.kill().unwrap();
        shell.wait().unwrap();
    }
}

#[test]
fn one_layer_is_looked_into_by_its_number() {
    let bed = Bed::up("", &["--only", "registry"]);
    let image = bed.convert(&small_image(bed.folder(), "small"), "small:lazy");
    let folder = bed.folder().join("look");
    let mut look = Look::start(&folder, &image, &["--layer", "0"]);
    assert!(look.mounted().contains("1 layer of"));
    assert_eq!(look.read("etc/low").as_deref(), Some("lowest"));
    assert_eq!(
        (look.read("etc/gone").is_some(), look.read("top")),
        (true, None)
    );
    assert_eq!(look.end(Signal::INT).0, Some(0));

    // What somebody else has mounted there before is there afterwards, also after a failure.
    let target = folder.join("target");
    let mount = |arguments: &[&str]| {
        assert!(
            Command::new("mount")
                .args(arguments)
                .status()
                .unwrap()
                .success()
        )
    };
    mount(&["-t", "tmpfs", "tmpfs", target.to_str().unwrap()]);
    fs::write(target.join("mine"), "").unwrap();
    let other = bed.folder().join("other");
    fs::create_dir(&other).unwrap();
    std::os::unix::fs::symlink(&target, other.join("target")).unwrap();
    let mut look = Look::start(&other, &image, &["--layer", "2"]);
    look.mounted();
    assert_eq!(look.read("top").as_deref(), Some("top"));
    assert_eq!(look.end(Signal::INT).0, Some(0));
    assert!(target.join("mine").exists());
    let (code, said) = Look::start(&other, &image, &["--layer", "3"]).fail();
    assert_eq!(code, Some(1));
    let told = ["small:lazy", "3 layers", "numbered from 0", "no layer 3"];
    assert!(told.iter().all(|word| said.contains(word)), "{said}");
    assert!(target.join("mine").exists());
}

#[test]
fn what_was_read_is_kept_on_request() {
    let bed = Bed::up("", &["--only", "registry"]);
    let image = bed.convert(&small_image(bed.folder(), "small"), "small:lazy");
    let cache = bed.folder().join("kept");
    let options = ["--cache", cache.to_str().unwrap()];
    let mut served = Vec::new();
    for _ in 0..2 {
        bed.relay("POST", "reset");
        let mut look = Look::start(&bed.folder().join("look"), &image, &options);
        look.mounted();
        let data = fs::read(bed.folder().join("look/target/data")).unwrap();
        assert!(data == serve::noise(1, 300_000));
        assert_eq!(look.end(Signal::INT).0, Some(0));
        served.push(bed.bytes_served());
    }
    assert!(
        served[0] > 300_000 && served[1] < 10_000,
        "only the manifest again: {served:?}"
    );
}

#[test]
fn what_cannot_be_mounted_says_why_and_leaves_nothing() {
    let bed = Bed::up("", &["--only", "registry"]);
    let layout = small_image(bed.folder(), "small");
    let plain = bed.push(&layout, "small:plain");
    let (code, said) = Look::start(&bed.folder().join("look"), &plain, &[]).fail();
    let layer = &serve::Image::of(&bed, &plain).layers[0];
    assert_eq!(code, Some(1));
    let told = ["layer 0", layer.as_str(), "crfs convert"];
    assert!(
        told.iter().all(|word| said.contains(word)),
        "{told:?}: {said}"
    );

    let none = format!("{}/small:none", bed.registry());
    let (code, said) = Look::start(&bed.folder().join("look"), &none, &[]).fail();
    assert_eq!(code, Some(1));
    assert!(
        said.contains("small:none") && said.contains("not found"),
        "{said}"
    );

    // Far away: Ctrl-C does not wait for the registry.
    let lazy = bed.convert(&layout, "small:lazy");
    bed.relay("POST", "link?rtt_ms=4000&mbit=0");
    let look = Look::start(&bed.folder().join("look"), &lazy, &[]);
    std::thread::sleep(Duration::from_millis(500));
    let start = Instant::now();
    let (code, said) = look.end(Signal::INT);
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(code, Some(1));
    assert!(
        said.contains("SIGINT") && said.contains("small:lazy"),
        "{said}"
    );
}
