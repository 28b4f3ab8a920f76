//! What is planned for configurations of all kinds.

use crate::setup::containerd::Containerd;
use crate::setup::plan::{Edit, Error, Wish, plan};

struct Bed {
    folder: tempfile::TempDir,
    wish: Wish,
}

impl Bed {
    fn new(main: Option<&str>, version: (u32, u32)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        if let Some(text) = main {
            std::fs::write(&file, text).unwrap();
        }
        let wish = Wish {
            file,
            version,
            address: "/run/crfs/crfs.sock".into(),
            root: "/var/lib/crfs".into(),
            cri: false,
            platform: "linux/amd64".to_owned(),
        };
        Self { folder, wish }
    }

    /// Plans, applies, and insists that nothing is left to do and nothing is wrong.
    fn apply(&self) -> Vec<Edit> {
        let edits = plan(&self.wish).unwrap();
        for edit in &edits {
            std::fs::create_dir_all(edit.path.parent().unwrap()).unwrap();
            std::fs::write(&edit.path, &edit.after).unwrap();
        }
        assert_eq!(plan(&self.wish).unwrap(), [], "once is enough");
        let read = Containerd::read(&self.wish.file).unwrap();
        let harmful = read
            .flaws(&self.wish.address)
            .into_iter()
            .filter(|flaw| !flaw.is_harmless);
        if self.wish.version >= (2, 1) {
            assert_eq!(harmful.collect::<Vec<_>>(), []);
        }
        edits
    }

    fn paths(&self, edits: &[Edit]) -> Vec<String> {
        let base = self.folder.path();
        let paths = edits
            .iter()
            .map(|edit| edit.path.strip_prefix(base).unwrap());
        paths.map(|path| path.display().to_string()).collect()
    }
}

#[test]
fn without_a_configuration_there_is_one_that_imports_a_drop_in() {
    let bed = Bed::new(None, (2, 1));
    let edits = bed.apply();
    assert_eq!(bed.paths(&edits), ["conf.d/crfs.toml", "config.toml"]);
    assert!(
        edits[0].after.starts_with("version = 3\n"),
        "{}",
        edits[0].after
    );
    assert!(
        edits[1].after.contains("conf.d/*.toml"),
        "{}",
        edits[1].after
    );
    let diff = edits[0].to_string();
    assert!(
        diff.contains("--- /dev/null") && diff.contains("+[proxy_plugins.crfs]"),
        "{diff}"
    );
}

#[test]
fn what_is_there_keeps_its_comments_and_only_gets_an_import() {
    let main = "# ours\nversion = 3\nimports = [\"/etc/other.toml\"] # theirs\n\n[grpc]\n  address = \"/x.sock\"\n";
    let bed = Bed::new(Some(main), (2, 2));
    let main = main.replace(
        "/etc/other.toml",
        &bed.folder.path().join("other.toml").display().to_string(),
    );
    std::fs::write(&bed.wish.file, &main).unwrap();
    std::fs::write(bed.folder.path().join("other.toml"), "version = 3\n").unwrap();
    let edits = bed.apply();
    assert_eq!(bed.paths(&edits), ["config.toml", "conf.d/crfs.toml"]);
    let diff = edits[0].to_string();
    let added: Vec<_> = diff.lines().filter(|line| line.starts_with('+')).collect();
    assert_eq!(added.len(), 2, "the heading and one line: {diff}");
    assert!(edits[0].after.starts_with("# ours\n") && edits[0].after.contains("# theirs"));
}

#[test]
fn a_file_that_imports_the_folder_already_is_left_alone() {
    let bed = Bed::new(Some("version = 3\nimports = [\"conf.d/*.toml\"]\n"), (2, 2));
    assert_eq!(bed.paths(&bed.apply()), ["conf.d/crfs.toml"]);
}

#[test]
fn a_section_that_somebody_wrote_is_completed_where_it_stands() {
    let main = "version = 3\n[plugins.\"io.containerd.transfer.v1.local\"]\n  max_concurrent_downloads = 7\n\
                [[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n  snapshotter = \"overlayfs\"\n  differ = \"mine\"\n\
                [proxy_plugins.crfs]\n  type = \"snapshot\"\n  address = \"/old.sock\"\n  capabilities = [\"rebase\"]\n";
    let bed = Bed::new(Some(main), (2, 1));
    let edits = bed.apply();
    assert_eq!(bed.paths(&edits), ["config.toml"], "no drop-in is needed");
    let after = &edits[0].after;
    for kept in [
        "max_concurrent_downloads = 7",
        "differ = \"mine\"",
        "address = \"/run/crfs/crfs.sock\"",
    ] {
        assert!(after.contains(kept), "{kept}: {after}");
    }
    assert!(
        !after.contains("rebase") && after.matches("snapshotter = \"overlayfs\"").count() == 1,
        "{after}"
    );
}

#[test]
fn the_readme_s_configuration_says_all_that_it_should() {
    let readme = include_str!("../../README.md");
    let (_, text) = readme.split_once("```toml\nversion = 3\n").unwrap();
    let (text, _) = text.split_once("```").unwrap();
    let bed = Bed::new(Some(&format!("version = 3\n{text}")), (2, 1));
    assert_eq!(plan(&bed.wish).unwrap(), []);
}

#[test]
fn what_has_to_change_keeps_its_indentation_and_its_comment() {
    let main = |socket: &str| {
        format!(
            "version = 2\n[proxy_plugins.crfs]\n  type = 'snapshot' # ours\n  address = \"{socket}\" # of the daemon\n\
             \x20 [proxy_plugins.crfs.exports]\n    root = \"/var/lib/crfs\"\n\
             \x20   enable_remote_snapshot_annotations = \"true\" # images\n"
        )
    };
    let bed = Bed::new(Some(&main("/old.sock")), (1, 7));
    let edits = bed.apply();
    assert_eq!(edits[0].after, main("/run/crfs/crfs.sock"));
}

#[test]
fn pods_get_crfs_by_the_section_of_the_file_s_version() {
    for (main, version, section) in [
        (None, (2, 1), "io.containerd.cri.v1.images"),
        (None, (1, 7), "io.containerd.grpc.v1.cri"),
        (Some("version = 2\n"), (1, 7), "io.containerd.grpc.v1.cri"),
        (Some("version = 2\n"), (2, 1), "io.containerd.cri.v1.images"),
    ] {
        let mut bed = Bed::new(main, version);
        bed.wish.cri = true;
        let edits = bed.apply();
        let drop_in = edits
            .iter()
            .find(|edit| edit.path.ends_with("conf.d/crfs.toml"))
            .unwrap();
        assert!(drop_in.after.contains(section), "{}", drop_in.after);
        assert!(drop_in.after.contains("snapshotter = \"crfs\""));
        assert_eq!(drop_in.after.contains("unpack_config"), version >= (2, 1));
    }
    assert!(matches!(
        plan(&Bed::new(None, (1, 6)).wish),
        Err(Error::TooOld(1, 6))
    ));
    let odd = Bed::new(Some("version = 3\n[proxy_plugins]\ncrfs = 7\n"), (2, 1));
    assert!(plan(&odd.wish).is_err());
}

#[test]
fn a_file_without_a_version_keeps_being_of_version_1_for_a_containerd_that_takes_it_so() {
    let docker = "disabled_plugins = [\"cri\"]\n";
    let drop_in = |main: &str, version| {
        let mut bed = Bed::new(Some(main), version);
        bed.wish.cri = true;
        let edits = bed.apply();
        let drop_in = edits
            .iter()
            .find(|edit| edit.path.ends_with("conf.d/crfs.toml"));
        (bed, drop_in.unwrap().after.clone())
    };
    for main in [docker, "version = 1\n[grpc]\n  gid = 1\n"] {
        let (bed, text) = drop_in(main, (1, 7));
        assert!(!text.contains("version"), "{text}");
        assert!(text.contains("[proxy_plugins.crfs]") && text.contains("[plugins.cri.containerd]"));
        let main = std::fs::read_to_string(&bed.wish.file).unwrap();
        assert!(main.contains("imports = "), "{main}");
    }
    let other = "imports = [\"other.toml\"]\n[grpc]\n  gid = 1\n";
    let bed = Bed::new(Some(other), (1, 7));
    std::fs::write(bed.folder.path().join("other.toml"), "version = 2\n").unwrap();
    let text = bed.apply().remove(1).after;
    assert!(text.starts_with("version = 2\n"), "of all files: {text}");
    for (main, version) in [("", (1, 7)), (docker, (2, 1))] {
        let text = drop_in(main, version).1;
        assert!(text.starts_with("version = 2\n"), "{main}: {text}");
    }
}

#[test]
fn what_somebody_told_the_cri_is_not_hidden_by_a_section_of_another_file() {
    let old = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"ours\"\n";
    let first = "[plugins.cri]\n  sandbox_image = \"ours\"\n";
    let own =
        "  [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n    snapshotter = \"native\"\n";
    let both = format!("{old}{own}");
    let new = "[plugins.\"io.containerd.cri.v1.images\"]";
    for (main, version, section) in [
        (
            old,
            (1, 7),
            "[plugins.\"io.containerd.grpc.v1.cri\".containerd]",
        ),
        (first, (1, 7), "[plugins.cri.containerd]"),
        (old, (2, 1), new),
        (both.as_str(), (2, 1), new),
    ] {
        let mut bed = Bed::new(Some(main), version);
        bed.wish.cri = true;
        let edits = bed.apply();
        let [main, drop_in] = &*edits else {
            panic!("{edits:?}");
        };
        assert!(main.after.contains("sandbox_image = \"ours\""));
        assert!(main.after.contains(section), "{}", main.after);
        assert!(main.after.contains("snapshotter = \"crfs\""));
        assert!(!main.after.contains("native"), "{}", main.after);
        assert!(!drop_in.after.contains("cri"), "{}", drop_in.after);
    }
}
