//! Layers of other writers: the first stargz, which has no digests, and the reference library's
//! eStargz; and what that library makes of ours.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crfs::oci::Digest;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::bed::{self, Bed};
use crate::tars::{Item, Tar};
use crate::trees;

const FOREGROUND_ONLY: &str = "[fetch]\nbackground = false\n";
/// Chunks of the layer that is made here; the usual ones are 4 MiB.
const CHUNK: usize = 100_000;
const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// What the layers of this file hold. Times in whole seconds: others round them.
fn items() -> Vec<Item> {
    let long: Vec<u8> = (0..250_000_u32)
        .flat_map(|at| (at / 3).to_le_bytes())
        .collect();
    vec![
        Item::folder("etc/").mode(0o750),
        Item::file("etc/hosts", "127.0.0.1 localhost\n").owner(1000, 1001),
        Item::file("etc/empty", ""),
        Item::file("etc/long", long)
            .mode(0o600)
            .at(1_234_567_890, 0),
        Item::symlink("etc/link", "hosts"),
        Item::hard_link("etc/hard", "etc/hosts"),
        Item::file("etc/attributed", "x").xattr("user.a", "1"),
        Item::device(b'3', "null", 1, 3).mode(0o666),
        Item::fifo("pipe"),
        Item::file("last", "the end").mode(0o4755),
    ]
}

/// A layer as google/crfs wrote it: each chunk of each file starts a gzip member, no digests, a
/// footer of 47 bytes. Gives the blob and the digest of its tar.
fn legacy_stargz(items: Vec<Item>) -> (Vec<u8>, Digest) {
    let kinds = [
        (b'0', "reg"),
        (b'5', "dir"),
        (b'2', "symlink"),
        (b'1', "hardlink"),
    ];
    let kinds = [&kinds[..], &[(b'3', "char"), (b'6', "fifo")]].concat();
    let tar = Tar::of(items.clone());
    let whole = tar.bytes();
    let plain = &whole[..whole.len() - 1024];
    let (mut blob, mut done, mut entries) = (Vec::new(), 0, Vec::new());
    let mut data = tar.data_at.iter();
    for item in items {
        let kind = kinds.iter().find(|(flag, _)| *flag == item.flag).unwrap().1;
        let name = String::from_utf8(item.name.clone()).unwrap();
        let mut entry = json!({
            "name": name, "type": kind, "mode": item.mode, "size": item.data.len(),
            "uid": item.owner.0, "gid": item.owner.1, "linkName": String::from_utf8(item.link).unwrap(),
            "modtime": if item.mtime.0 == 1_234_567_890 { "2009-02-13T23:31:30Z" } else { "2023-11-14T22:13:20Z" },
        });
        if kind == "char" {
            entry["devMajor"] = 1.into();
            entry["devMinor"] = 3.into();
        }
        if name == "etc/attributed" {
            entry["xattrs"] = json!({ "user.a": "MQ==" });
        }
        if item.data.is_empty() {
            entries.push(entry);
            continue;
        }
        let (_, start) = data.next().unwrap();
        for (number, chunk) in item.data.chunks(CHUNK).enumerate() {
            let at = start + number * CHUNK;
            blob.extend_from_slice(&gzip(&plain[done..at]));
            done = at;
            let head = match number {
                0 => entry.clone(),
                _ => json!({ "name": name, "type": "chunk" }),
            };
            let place = json!({ "offset": blob.len(), "chunkOffset": number * CHUNK, "chunkSize": chunk.len() });
            entries.push(merged(head, place));
        }
    }
    blob.extend_from_slice(&gzip(&plain[done..]));
    let toc = json!({ "version": 1, "entries": entries }).to_string();
    let toc = Tar::of([Item::file("stargz.index.json", toc)]).bytes();
    let toc_at = blob.len();
    blob.extend_from_slice(&gzip(&toc));
    // An empty member whose extra field says where the TOC is.
    blob.extend_from_slice(&[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 22, 0]);
    blob.extend_from_slice(format!("{toc_at:016x}STARGZ").as_bytes());
    blob.extend_from_slice(&[1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    (blob, Digest::of(&[plain, &toc].concat()))
}

fn merged(mut head: Value, more: Value) -> Value {
    let more = more.as_object().unwrap().clone();
    head.as_object_mut().unwrap().extend(more);
    head
}

/// An OCI layout with one layer, as it is.
fn layout(out: &Path, blob: &[u8], diff_id: Digest, annotations: Value) -> PathBuf {
    let blobs = out.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let add = |data: &[u8], media: &str| {
        let digest = Digest::of(data);
        fs::write(blobs.join(digest.hex()), data).unwrap();
        let media = format!("application/vnd.oci.image.{media}");
        json!({ "mediaType": media, "digest": digest.to_string(), "size": data.len() })
    };
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let platform = json!({ "architecture": architecture, "os": "linux" });
    let rootfs = json!({ "type": "layers", "diff_ids": [diff_id.to_string()] });
    let config = merged(platform.clone(), json!({ "config": {}, "rootfs": rootfs }));
    let config = add(config.to_string().as_bytes(), "config.v1+json");
    let layer = add(blob, "layer.v1.tar+gzip");
    let layer = merged(layer, json!({ "annotations": annotations }));
    let media = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": media, "config": config, "layers": [layer] });
    let manifest = add(manifest.to_string().as_bytes(), "manifest.v1+json");
    let tag = json!({ "org.opencontainers.image.ref.name": "latest" });
    let manifest = merged(
        manifest,
        json!({ "platform": platform, "annotations": tag }),
    );
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(out.join("index.json"), index.to_string()).unwrap();
    fs::write(out.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    out.to_owned()
}

/// The tree that an image made of [`items`] has, without what the formats add.
fn expected(bed: &Bed) -> trees::Tree {
    let tar = bed.folder().join("plain.tar");
    Tar::of(items()).write(&tar);
    let plain = bed::image_of(&[&tar], &bed.folder().join("plain"));
    let plain = bed.push(&plain, "plain:1");
    without_root(trees::tree_of(bed, "overlayfs", &plain))
}

fn without_root(mut tree: trees::Tree) -> trees::Tree {
    tree.remove("").unwrap();
    tree
}

#[test]
fn legacy_stargz_is_lazy_only_where_the_configuration_names_it() {
    let mut bed = Bed::up(FOREGROUND_ONLY, &[]);
    let (blob, diff_id) = legacy_stargz(items());
    let layout = layout(&bed.folder().join("legacy"), &blob, diff_id, json!({}));
    let (trusted, other) = ("library/trusted", "library/trusted-not");
    let images = [trusted, other].map(|name| bed.push(&layout, &format!("{name}:1")));
    let allowed = format!("{}/{trusted}", bed.registry());
    let expected = expected(&bed);

    // By default nothing without digests is lazy, and the log says why.
    let eager = without_root(trees::tree_of(&bed, "crfs", &images[0]));
    assert_eq!(trees::lazy_mounts(&bed.crfs_root()), 0);
    let log = bed.crfs_log();
    let refused = log.lines().filter(|line| {
        line.contains(&Digest::of(&blob).to_string())
            && line.contains("not lazy")
            && line.contains("no_toc_digest")
            && line.contains("cannot be verified")
    });
    assert_eq!(refused.count(), 1, "{log}");
    let eager: trees::Tree = eager
        .into_iter()
        .filter(|(name, _)| name != "stargz.index.json")
        .collect();
    trees::assert_same("eager", &expected, &eager);
    for image in &images {
        let _ = bed.try_ctr(&["image", "rm", "--sync", image]);
    }

    bed.tell("crfs stop");
    let config = format!("{FOREGROUND_ONLY}[layers]\nallow_unverified = [\"{allowed}\"]\n");
    fs::write(bed.value("CRFS_CONFIG"), config).unwrap();
    bed.tell("crfs start");
    bed.relay("POST", "reset");
    let lazy = without_root(trees::tree_of(&bed, "crfs", &images[0]));
    assert_eq!(
        trees::lazy_mounts(&bed.crfs_root()),
        1,
        "{}",
        bed.crfs_log()
    );
    trees::assert_same("lazy", &expected, &lazy);
    let _ = bed.try_ctr(&["image", "rm", "--sync", &images[0]]);

    // Another repository is not meant, whatever it is called.
    bed::wait_for("the snapshot to be collected", 20, || {
        trees::lazy_mounts(&bed.crfs_root()) == 0
    });
    bed.pull("crfs", &images[1]);
    assert_eq!(trees::lazy_mounts(&bed.crfs_root()), 0);
}

/// The reference library's program, built once for this test; says so and gives nothing where Go
/// is missing.
fn reference(bed: &Bed) -> Option<PathBuf> {
    let missing = std::env::var_os("CRFS_NO_GO").is_some()
        || !Command::new("go")
            .arg("version")
            .output()
            .is_ok_and(|done| done.status.success());
    if missing {
        println!("skipped: Go is missing or older than integration/conformance/go.mod asks for");
        return None;
    }
    let program = bed.folder().join("reference");
    let mut build = Command::new("go");
    let build = build
        .current_dir(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/integration/conformance"
        ))
        .args(["build", "-p", "1", "-o"])
        .arg(&program)
        .arg("./cmd/reference");
    assert!(build.status().unwrap().success(), "go build");
    Some(program)
}

fn run(program: &Path, arguments: &[&str]) -> String {
    let done = Command::new(program).args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{arguments:?}: {stderr}");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

#[test]
fn an_estargz_of_the_reference_library_is_lazy() {
    let bed = Bed::up(FOREGROUND_ONLY, &[]);
    let Some(program) = reference(&bed) else {
        return;
    };
    let (tar, out) = (bed.folder().join("in.tar"), bed.folder().join("out"));
    Tar::of(items()).write(&tar);
    let (tar, out) = (tar.to_str().unwrap(), out.to_str().unwrap());
    let toc = run(&program, &["build", tar, out]);
    let blob = fs::read(out).unwrap();
    let mut unpacked = Vec::new();
    std::io::Read::read_to_end(
        &mut flate2::read::MultiGzDecoder::new(&blob[..]),
        &mut unpacked,
    )
    .unwrap();
    let annotations = json!({ TOC_DIGEST: toc.trim() });
    let folder = bed.folder().join("layout");
    let layout = layout(&folder, &blob, Digest::of(&unpacked), annotations);
    let image = bed.push(&layout, "reference:1");
    let lazy = without_root(trees::tree_of(&bed, "crfs", &image));
    assert_eq!(
        trees::lazy_mounts(&bed.crfs_root()),
        1,
        "{}",
        bed.crfs_log()
    );
    trees::assert_same("reference", &expected(&bed), &lazy);
}

#[test]
fn the_reference_library_verifies_what_convert_writes() {
    let bed = Bed::up("", &["--only", "registry"]);
    let Some(program) = reference(&bed) else {
        return;
    };
    let odd = bed.folder().join("odd.tar");
    Tar::of(items()).write(&odd);
    let odd = bed::image_of(&[&odd], &bed.folder().join("odd"));
    for (name, source) in [("odd", odd), ("perl", bed::image("perl"))] {
        let converted = bed.folder().join(format!("{name}-converted"));
        let out = converted.to_str().unwrap();
        let source = format!("oci:{}:latest", source.display());
        bed::crfs(&["convert", &source, &format!("oci:{out}:latest")]);
        let checked = run(&program, &["check", out, "latest"]);
        assert!(checked.contains("chunks verified"), "{checked}");
    }
    // A check that cannot fail would prove nothing.
    let blobs = bed.folder().join("odd-converted/blobs/sha256");
    let largest = fs::read_dir(blobs)
        .unwrap()
        .map(|entry| entry.unwrap())
        .max_by_key(|entry| entry.metadata().unwrap().len())
        .unwrap();
    let mut blob = fs::read(largest.path()).unwrap();
    let middle = blob.len() / 2;
    blob[middle] ^= 1;
    fs::write(largest.path(), blob).unwrap();
    let damaged = bed.folder().join("odd-converted");
    let check = ["check", damaged.to_str().unwrap(), "latest"];
    let done = Command::new(&program).args(check).output().unwrap();
    assert!(!done.status.success());
}
