//! What a lazily pulled image lacks, and `crfs complete`, which fetches it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::bed::{self, Bed};
use crate::pull::{command, done, index, left, refused, told};
use crate::serve::{self, Image, lazy_mounts, tar};

const FOREGROUND_ONLY: &str = "[fetch]\nbackground = false\n";

/// A lazy image of two layers with 2 MiB each, in the registry.
fn lazy(bed: &Bed, name: &str) -> String {
    let at = |name: &str| bed.folder().join(name);
    let (one, two) = (serve::noise(1, 2 << 20), serve::noise(2, 2 << 20));
    let tars = [
        tar(&at("1.tar"), &[("one", &one)]),
        tar(&at("2.tar"), &[("two", &two)]),
    ];
    let tars: Vec<&Path> = tars.iter().map(|tar| tar.as_path()).collect();
    let layout = bed::image_of(&tars, &at("layout"));
    bed.convert(&layout, name)
}

/// Unpacks what `ctr image export` wrote; gives the digests of the blobs in it, each of which is right.
fn exported(bed: &Bed, image: &str, options: &[&str]) -> BTreeSet<String> {
    let folder = bed.folder().join("exported");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("image.tar");
    // By itself: the end of what containerd's transfer service sends may be lost (containerd 12968).
    let export = [
        &["image", "export", "--local"],
        options,
        &[file.to_str().unwrap(), image],
    ];
    bed.ctr(&export.concat());
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(&file).arg("-C").arg(&folder);
    assert!(tar.status().unwrap().success());
    let blobs = fs::read_dir(folder.join("blobs/sha256")).unwrap();
    let digests = blobs.map(|blob| {
        let path = blob.unwrap().path();
        let own = crfs::oci::Digest::of(&fs::read(&path).unwrap());
        assert_eq!(own.hex(), path.file_name().unwrap().to_str().unwrap());
        own.to_string()
    });
    digests.collect()
}

#[test]
fn what_was_never_downloaded_is_completed_and_then_exported_and_pushed() {
    let bed = Bed::up(FOREGROUND_ONLY, &[]);
    let single = lazy(&bed, "app:lazy");
    let image = Image::of(&bed, &single);
    let both = index(&bed, &single);
    bed.pull("crfs", &both);
    bed.pull("crfs", &single);
    assert_eq!(lazy_mounts(&bed.crfs_root()).len(), 2);
    let out = bed.folder().join("refused.tar");
    // The same registry by another name: as one that does not have the blobs of the image's repository.
    let elsewhere = format!(
        "{}/elsewhere:new",
        bed.value("REGISTRY_DIRECT")
            .replace("127.0.0.1", "localhost")
    );
    let platform = ["--plain-http", "--platform", "linux/amd64"];
    let push = [&["image", "push"], &platform[..], &[&elsewhere, &single]].concat();
    let export = ["image", "export", out.to_str().unwrap(), &both];
    for command in [&export[..], &push[..]] {
        let failed = bed.try_ctr(command);
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        println!("ctr {command:?}: {}: {said}", failed.status);
        assert!(
            !failed.status.success() && said.contains("not found"),
            "{said}"
        );
    }
    // Where it came from, nothing needs to be sent.
    let beside = format!("{}/beside:new", bed.registry());
    bed.ctr(&[&["image", "push"], &platform[..], &[&beside, &single]].concat());

    bed.relay("POST", "reset");
    let completed = told(&bed, "complete", &[&both]);
    let fetched = completed["fetched"].as_array().unwrap().iter();
    let fetched: BTreeSet<_> = fetched
        .map(|blob| blob["digest"].as_str().unwrap())
        .collect();
    let layers: BTreeSet<_> = image.layers.iter().map(String::as_str).collect();
    assert_eq!(
        (fetched, &completed["blobs"]),
        (layers.clone(), &Value::from(3))
    );
    let served = bed.bytes_served();
    assert!(served > 4 << 20 && served < 5 << 20, "{served}");

    // Nothing is left to be done, and nothing is asked for.
    bed.relay("POST", "reset");
    let again = done(&bed, "complete", &[&both]);
    assert!(again.contains("nothing is missing, all 3 blobs"), "{again}");
    assert_eq!(bed.requests_served(), 0);

    // Garbage collection keeps it, as it keeps the image.
    bed.ctr(&["image", "tag", &both, "other"]);
    bed.ctr(&["image", "rm", "--sync", "other"]);
    let blobs = exported(&bed, &both, &[]);
    for layer in &image.layers {
        assert!(blobs.contains(layer), "{layer}: {blobs:?}");
    }
    bed.ctr(&push);
    assert_eq!(lazy_mounts(&bed.crfs_root()).len(), 2, "it is still lazy");

    let all = told(&bed, "complete", &["--all-platforms", &both]);
    assert_eq!(all["blobs"], 5);
    let more = exported(&bed, &both, &["--all-platforms"]);
    assert_eq!(more.len(), 8, "index, two manifests, five blobs: {more:?}");

    bed.ctr(&["image", "rm", "--sync", &both, &single]);
    bed::wait_for("nothing to be left", 20, || left(&bed).is_empty());
}

/// What `nerdctl commit` and all others that make a layer of a container begin with.
#[test]
fn what_a_container_has_written_is_a_layer() {
    let bed = Bed::up(FOREGROUND_ONLY, &[]);
    let base = bed.convert(&bed::image("busybox"), "base:lazy");
    bed.pull("crfs", &base);
    let key = format!("{}-written", bed.value("NAMESPACE"));
    let write = "echo more > /usr/share/doc/busybox-static/copyright; echo new > /new";
    let run = ["run", "--snapshotter", "crfs", &base, &key];
    bed.ctr(&[&run[..], &["busybox", "sh", "-c", write]].concat());
    let file = bed.folder().join("diff.tar.gz");
    let shell = format!(
        "'{}' snapshots --snapshotter crfs diff {key} > '{}'",
        bed.value("CTR"),
        file.display()
    );
    let diff = Command::new("sh").args(["-c", &shell]).output().unwrap();
    assert!(diff.status.success(), "{diff:?}");
    let listed = Command::new("tar").arg("-tzf").arg(&file).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let files: Vec<_> = listed.lines().filter(|name| !name.ends_with('/')).collect();
    assert!(files.contains(&"new"), "{files:?}");
    let changed = "usr/share/doc/busybox-static/copyright";
    assert!(
        files.contains(&changed) && !files.contains(&"usr/bin/busybox"),
        "{files:?}"
    );
}

#[test]
fn completing_goes_on_where_it_was_killed() {
    let bed = Bed::up(FOREGROUND_ONLY, &[]);
    let name = lazy(&bed, "app:lazy");
    let image = Image::of(&bed, &name);
    bed.pull("crfs", &name);
    bed.relay("POST", "reset");
    bed.relay("POST", "link?rtt_ms=1&mbit=8");
    let mut begun = command(&bed, "complete", &[&name]).spawn().unwrap();
    bed::wait_for("a part of it", 30, || bed.bytes_served() > 2 << 20);
    serve::end(&mut begun, Signal::KILL);
    bed.relay("POST", "link?rtt_ms=0&mbit=0");
    let active = bed.ctr(&["content", "active"]);
    assert!(active.contains(&image.layers[0]), "{active}");
    bed.relay("POST", "reset");
    done(&bed, "complete", &[&name]);
    let rest = bed.bytes_served();
    assert!(rest > 0 && rest < 3 << 20, "{rest} of 4 MiB are left");
    assert_eq!(bed.ctr(&["leases", "ls", "-q"]), "");
    let blobs = exported(&bed, &name, &[]);
    assert!(image.layers.iter().all(|layer| blobs.contains(layer)));
}

#[test]
fn what_cannot_be_completed_is_said() {
    let bed = Bed::up("[registry]\nretries = 1\ndeadline = \"3s\"\n", &[]);
    let config = bed.value("CRFS_CONFIG").to_owned();
    let fail = |name: &str| {
        let arguments = ["--config", &config, name];
        refused(&command(&bed, "complete", &arguments).output().unwrap())
    };
    let name = lazy(&bed, "app:lazy");
    let said = fail(&name);
    assert!(
        said.contains(&name) && said.contains("pull it first"),
        "{said}"
    );
    bed.pull("crfs", &name);
    bed.relay("POST", "down?on=1");
    let said = fail(&name);
    assert!(said.contains(bed.registry()), "{said}");
    bed.relay("POST", "down?on=0");
    // Other bytes than the manifest promises are not taken.
    let image = Image::of(&bed, &name);
    let registry = bed.folder().join("registry");
    let data = find(&registry, image.layers[0].trim_start_matches("sha256:"));
    let mut bytes = fs::read(&data).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&data, bytes).unwrap();
    let said = fail(&name);
    assert!(
        said.contains(&image.layers[0]) && said.contains("other bytes"),
        "{said}"
    );
    assert!(!bed.ctr(&["content", "ls", "-q"]).contains(&image.layers[0]));
}

/// The file of a blob in the registry's folder.
fn find(folder: &Path, digest: &str) -> std::path::PathBuf {
    let mut find = Command::new("find");
    let found = find
        .arg(folder)
        .args(["-path", &format!("*/{digest}/data")]);
    let found = String::from_utf8(found.output().unwrap().stdout).unwrap();
    found.lines().next().unwrap().into()
}
