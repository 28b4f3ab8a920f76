//! Layers that are not lazy are verified and read all the same, and a registry that fails crfs alone does
//! not fail the image.

use std::fs;
use std::path::{Path, PathBuf};

use crfs::oci::Digest;
use tempfile::TempDir;

use crate::bed::{self, Bed};
use crate::fake_registry::{FakeRegistry, Reply};
use crate::faulty::{IMAGE, SIZE, fill, part};
use crate::serve;

const CONFIG: &str =
    "[fetch]\nbackground = false\n[registry]\nprogress_timeout = \"700ms\"\ndeadline = \"2s\"\n";

/// A node, a registry in front of an image of BusyBox and a file, and the file's hash.
struct Scene {
    bed: Bed,
    home: FakeRegistry,
    certs: TempDir,
    /// Path and content of the blob with the file.
    blob: (String, Vec<u8>),
    hash: String,
}

impl Scene {
    fn up(lazy: bool) -> Self {
        let certs = TempDir::with_prefix("certs-").unwrap();
        let own = certs.path().join("faults.test");
        let home = FakeRegistry::start();
        fs::create_dir(&own).unwrap();
        let server = format!("server = \"{}\"", home.url(""));
        fs::write(own.join("hosts.toml"), server).unwrap();
        let config = format!("{CONFIG}config_path = \"{}\"\n", certs.path().display());
        let bed = Bed::up(&config, &[]);
        let content = serve::noise(7, SIZE);
        let layout = image(&bed, &content, lazy);
        let blob = fill(&layout, &home, "/v2");
        Self {
            bed,
            home,
            certs,
            blob,
            hash: Digest::of(&content).hex().to_string(),
        }
    }

    fn pull(&self) -> std::process::Output {
        let certs = self.certs.path().to_str().unwrap();
        let pull = [
            "image",
            "pull",
            "--hosts-dir",
            certs,
            "--snapshotter",
            "crfs",
            IMAGE,
        ];
        self.bed.try_ctr(&pull)
    }

    /// What a container reads is right.
    fn runs(&self, name: &str) {
        let command = ["busybox", "sha256sum", "/data/file"];
        let said = self.bed.run(IMAGE, name, &command);
        assert!(said.starts_with(&self.hash), "{said}");
    }
}

fn image(bed: &Bed, content: &[u8], lazy: bool) -> PathBuf {
    let at = |name: &str| bed.folder().join(name);
    let data = serve::tar(&at("data.tar"), &[("data/file", content)]);
    let data = bed::image_of(&[&data], &at("data"));
    let plain = serve::compose(&at("plain"), &[(&bed::image("busybox"), 0), (&data, 0)]);
    let layout = |path: &Path| format!("oci:{}:latest", path.display());
    if lazy {
        bed::crfs(&["convert", &layout(&plain), &layout(&at("lazy"))]);
        return at("lazy");
    }
    plain
}

#[test]
fn a_layer_that_is_unpacked_has_its_digest_or_is_no_layer() {
    let scene = Scene::up(false);
    // H23: crfs cannot serve it, containerd fetches all of it, and gets something else.
    let (path, mut wrong) = scene.blob.clone();
    let middle = wrong.len() / 2;
    wrong[middle] ^= 1;
    scene.home.script(move |seen, _| {
        let is_blob = seen.path() == path && seen.method == "GET";
        is_blob.then(|| match seen.range() {
            Some(_) => part(&wrong, seen),
            None => Reply::new(200).body(&*wrong),
        })
    });
    let refused = scene.pull();
    assert!(!refused.status.success());
    let list = ["snapshots", "--snapshotter", "crfs", "ls"];
    let committed = scene.bed.ctr(&list).matches("Committed").count();
    assert!(committed <= 1, "only the layer below may be there");
    scene.home.reset();
    // containerd keeps what it fetched, wrong as it is, until its garbage is collected.
    scene.bed.ctr(&["leases", "create", "--id", "sweep"]);
    scene.bed.ctr(&["leases", "delete", "--sync", "sweep"]);
    let pulled = scene.pull();
    assert!(
        pulled.status.success(),
        "{pulled:?}\n{}",
        scene.bed.crfs_log()
    );
    assert_eq!(scene.bed.ctr(&list).matches("Committed").count(), 2);
    scene.runs("right");
}

#[test]
fn a_registry_that_fails_crfs_alone_does_not_fail_the_image() {
    let scene = Scene::up(true);
    // H21: nobody answers crfs while the image is mounted; containerd is answered.
    scene.home.script(|seen, _| {
        let ours = seen
            .header("user-agent")
            .is_some_and(|who| who.starts_with("crfs/"));
        ours.then(|| Reply {
            raw: Some(Vec::new()),
            reset: true,
            ..Reply::default()
        })
    });
    let pulled = scene.pull();
    let log = scene.bed.crfs_log();
    assert!(pulled.status.success(), "{pulled:?}\n{log}");
    assert_eq!(serve::lazy_mounts(&scene.bed.crfs_root()).len(), 0);
    assert!(log.contains("reason=\"unreachable\""), "{log}");
    scene.home.reset();
    scene.runs("eager");
    assert_eq!(scene.home.seen().len(), 0, "all of it is here");
}
