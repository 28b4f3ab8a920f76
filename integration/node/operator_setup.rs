//! `crfs setup` on a real containerd: shown, made, tried, and taken back.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::bed::{Bed, CRFS};
use crate::pull::has_no_old_containerd;

/// A bed whose containerd knows nothing of crfs, and what `crfs setup` has to be told of it.
struct Node {
    bed: Bed,
    main: PathBuf,
    flags: Vec<String>,
}

impl Node {
    fn up(options: &[&str]) -> Self {
        let mut bed = Bed::up(
            "[containerd]\naddress = \"{node}/containerd.sock\"\n",
            options,
        );
        let main = bed.folder().join("node/containerd.toml");
        let text = fs::read_to_string(&main).unwrap();
        let before = text.split_once("[proxy_plugins.crfs]").unwrap().0;
        fs::write(&main, before).unwrap();
        bed.tell("containerd stop");
        bed.tell("containerd start");
        let ctr = bed.real_ctr();
        let path = |path: PathBuf| path.to_str().unwrap().to_owned();
        let flags = [
            "--containerd-config".to_owned(),
            path(main.clone()),
            "--containerd".to_owned(),
            path(ctr.with_file_name("containerd")),
            "--ctr".to_owned(),
            path(ctr),
            "--journal".to_owned(),
            path(bed.folder().join("etc/setup.json")),
            "--config".to_owned(),
            bed.value("CRFS_CONFIG").to_owned(),
            "--root".to_owned(),
            path(bed.crfs_root()),
        ];
        let flags = flags.to_vec();
        Self { bed, main, flags }
    }

    fn setup(&self, more: &[&str]) -> (i32, String) {
        let mut crfs = Command::new(CRFS);
        crfs.arg("setup").args(&self.flags).args(more);
        let done = crfs.stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        let error = String::from_utf8_lossy(&done.stderr);
        (done.status.code().unwrap(), text + &error)
    }

    fn restart(&mut self) {
        self.bed.tell("containerd stop");
        self.bed.tell("containerd start");
    }
}

#[test]
fn containerd_is_told_of_crfs_and_the_set_up_is_tried_and_taken_back() {
    let mut node = Node::up(&[]);
    let before = fs::read_to_string(&node.main).unwrap();
    let drop_in = node.main.with_file_name("conf.d").join("crfs.toml");
    let (code, text) = node.setup(&["--verify"]);
    assert!(
        code == 1 && text.contains("crfs"),
        "containerd does not know crfs yet: {text}"
    );

    let (code, diff) = node.setup(&["--dry-run"]);
    assert_eq!(code, 0, "{diff}");
    for line in [
        "+[proxy_plugins.crfs]",
        "+enable_remote_snapshot_annotations = \"true\"",
        "+imports = ",
    ] {
        assert!(diff.contains(line), "{line}: {diff}");
    }
    assert!(
        !diff
            .lines()
            .any(|line| line.starts_with('-') && !line.starts_with("---")),
        "{diff}"
    );
    assert!(
        !drop_in.exists() && fs::read_to_string(&node.main).unwrap() == before,
        "only shown"
    );

    // A restart that fails leaves everything as it was.
    let (code, text) = node.setup(&[
        "--restart",
        "test ! -e /proc/self/none && test -e /nonexistent",
    ]);
    assert_eq!(code, 1, "{text}");
    assert!(
        !drop_in.exists() && fs::read_to_string(&node.main).unwrap() == before,
        "{text}"
    );

    // So does a trial that fails: this containerd was not restarted and does not know crfs.
    let (code, text) = node.setup(&["--restart", "true"]);
    assert!(
        code == 1 && text.contains("all changes were taken back"),
        "{text}"
    );
    assert!(
        !drop_in.exists() && fs::read_to_string(&node.main).unwrap() == before,
        "{text}"
    );

    let (code, text) = node.setup(&["--no-restart"]);
    assert!(code == 0 && text.contains("restart containerd"), "{text}");
    node.restart();
    let (code, text) = node.setup(&["--verify"]);
    assert_eq!(
        (code, text.as_str()),
        (0, "an image was pulled lazily and read\n")
    );
    assert!(
        !node
            .bed
            .ctr(&["--namespace", "crfs-setup", "image", "ls", "-q"])
            .contains("crfs-setup")
    );
    assert_eq!(node.setup(&["--dry-run"]).0, 0);
    let (_, again) = node.setup(&["--dry-run"]);
    assert!(again.contains("says all that it should"), "{again}");

    // What is there but wrong is noticed by trying it.
    let right = fs::read_to_string(&drop_in).unwrap();
    fs::write(&drop_in, right.replace("\"true\"", "\"false\"")).unwrap();
    node.restart();
    let (code, text) = node.setup(&["--verify"]);
    assert!(code == 1 && text.contains("not lazy (labels)"), "{text}");
    let (code, text) = node.setup(&["--undo", "--no-restart"]);
    assert!(code == 1 && text.contains("was changed since"), "{text}");
    fs::write(&drop_in, right).unwrap();
    let (code, text) = node.setup(&["--undo", "--no-restart"]);
    assert_eq!(code, 0, "{text}");
    assert!(!drop_in.exists() && fs::read_to_string(&node.main).unwrap() == before);
    node.restart();
}

#[test]
fn an_older_containerd_is_told_and_tried_by_a_pull_of_our_own() {
    if has_no_old_containerd() {
        return;
    }
    let mut node = Node::up(&["--containerd", "1.7"]);
    let before = fs::read_to_string(&node.main).unwrap();
    let (code, diff) = node.setup(&["--dry-run"]);
    assert!(
        code == 0 && diff.contains("+[proxy_plugins.crfs]") && !diff.contains("unpack_config"),
        "{diff}"
    );
    let (code, text) = node.setup(&["--no-restart"]);
    assert_eq!(code, 0, "{text}");
    node.restart();
    let (code, text) = node.setup(&["--verify"]);
    assert!(
        code == 0 && text.contains("pulled lazily by crfs pull and read"),
        "{text}"
    );
    let images = ["--namespace", "crfs-setup", "image", "ls", "-q"];
    assert!(!node.bed.ctr(&images).contains("crfs-setup"));
    let (code, text) = node.setup(&["--undo", "--no-restart"]);
    assert_eq!(code, 0, "{text}");
    assert!(fs::read_to_string(&node.main).unwrap() == before);
    node.restart();
}
