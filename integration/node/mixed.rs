//! Images of odd layers through a stock containerd: some lazy and some not, the same twice, empty
//! ones, many; a second namespace; and what is left when they are removed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::bed::{self, Bed};
use crate::serve::{self, Image, compose, lazy_mounts, tar};

const FOREGROUND_ONLY: &str = "[fetch]\nbackground = false\n";
/// What a database may have grown by.
const SLACK: u64 = 1 << 20;

/// An OCI layout of tar files.
fn layout(bed: &Bed, name: &str, tars: &[PathBuf]) -> PathBuf {
    let tars: Vec<_> = tars.iter().map(PathBuf::as_path).collect();
    bed::image_of(&tars, &bed.folder().join(name))
}

/// The same layout converted.
fn converted(plain: &Path) -> PathBuf {
    let lazy = plain.with_extension("lazy");
    let source = format!("oci:{}:latest", plain.display());
    bed::crfs(&[
        "convert",
        &source,
        &format!("oci:{}:latest", lazy.display()),
    ]);
    lazy
}

/// Bytes of layers that left the registry since the counts were reset.
fn layer_bytes(bed: &Bed, image: &Image) -> u64 {
    // One that the image has twice is counted once.
    let layers: BTreeMap<_, _> = image.layers.iter().zip(image.served(bed)).collect();
    layers.values().sum()
}

/// Disk use of crfs in bytes.
fn disk_use(bed: &Bed) -> u64 {
    let mut du = Command::new("du");
    du.args(["-sx", "--block-size=1"]).arg(bed.crfs_root());
    let out = String::from_utf8(du.output().unwrap().stdout).unwrap();
    out.split('\t').next().unwrap().parse().unwrap()
}

/// The snapshots of a namespace by kind, and their number.
fn snapshots(bed: &Bed, namespace: &str) -> usize {
    let all = [
        "--namespace",
        namespace,
        "snapshots",
        "--snapshotter",
        "crfs",
        "ls",
    ];
    bed.ctr(&all)
        .lines()
        .filter(|line| line.contains("Committed"))
        .count()
}

/// Everything in an image by path, with the content of files, as a read-only mount shows it.
fn tree(bed: &Bed, image: &str) -> Vec<String> {
    let target = bed.folder().join("mounted");
    fs::create_dir_all(&target).unwrap();
    let at = target.to_str().unwrap();
    bed.ctr(&["image", "mount", "--snapshotter", "crfs", image, at]);
    let mut found = Vec::new();
    let mut folders = vec![target.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let content = fs::read(&path).unwrap();
            let name = path.strip_prefix(&target).unwrap().display().to_string();
            found.push(format!("{name}={}", String::from_utf8_lossy(&content)));
        }
    }
    bed.ctr(&["image", "unmount", "--snapshotter", "crfs", "--rm", at]);
    found.sort();
    found
}

#[test]
fn lazy_and_plain_layers_make_one_image() {
    let bed = Bed::up(FOREGROUND_ONLY, &[]);
    let at = |name: &str| bed.folder().join(name);
    let noise = serve::noise(1, 2 << 20);
    let files = [
        tar(&at("1.tar"), &[("m/one", b"one"), ("m/both", b"lower")]),
        tar(
            &at("2.tar"),
            &[("m/two", b"two"), ("m/both", b"upper"), ("m/noise", &noise)],
        ),
    ];
    let files = layout(&bed, "files", &files);
    let base = bed::image("numpy");
    let base = compose(&at("base"), &[(&base, 0), (&files, 0), (&files, 1)]);
    let lazy = converted(&base);
    let mixed = compose(&at("mixed"), &[(&lazy, 0), (&base, 1), (&lazy, 2)]);
    let name = bed.push(&mixed, "mixed:tag");
    let image = Image::of(&bed, &name);
    bed.relay("POST", "reset");

    bed.pull("crfs", &name);
    let mounts = lazy_mounts(&bed.crfs_root());
    assert_eq!(mounts.len(), 2, "the first and the last: {mounts:?}");
    let log = bed.crfs_log();
    let why = log.lines().filter(|line| line.contains("not lazy"));
    let why: Vec<_> = why.collect();
    assert_eq!(why.len(), 1, "{why:?}");
    assert!(why[0].contains(&image.layers[1]), "{why:?}");
    let said = bed.run(
        &name,
        "mixed",
        &["/bin/sh", "-c", "cat /m/one /m/two /m/both"],
    );
    assert_eq!(said, "onetwoupper");

    // A second namespace unpacks the plain layer again, and downloads nothing of any layer.
    let before = layer_bytes(&bed, &image);
    let pull = [
        "image",
        "pull",
        "--plain-http",
        "--snapshotter",
        "crfs",
        &name,
    ];
    bed.ctr(&[&["--namespace", "second"], &pull[..]].concat());
    assert_eq!(layer_bytes(&bed, &image), before);
    assert_eq!(snapshots(&bed, "second"), 3);
}

#[test]
fn twice_the_same_layer_empty_layers_and_forty_of_them() {
    let bed = Bed::up(FOREGROUND_ONLY, &[]);
    let at = |name: &str| bed.folder().join(name);
    let (file, gone) = (
        ("d/file", b"content".as_slice()),
        ("d/.wh.file", b"".as_slice()),
    );
    let (a, b, empty) = (
        tar(&at("a"), &[file]),
        tar(&at("b"), &[gone]),
        tar(&at("e"), &[]),
    );
    let odd = [&a, &empty, &b, &a, &empty].map(Clone::clone);
    let odd = bed.convert(&layout(&bed, "odd", &odd), "odd:tag");
    let image = Image::of(&bed, &odd);
    assert_eq!(image.layers[0], image.layers[3], "it is the same layer");
    bed.pull("crfs", &odd);
    assert_eq!(
        lazy_mounts(&bed.crfs_root()).len(),
        5,
        "one mount for each of them"
    );
    assert_eq!(tree(&bed, &odd), ["d/file=content"]);

    let forty: Vec<_> = (0..40)
        .map(|n| {
            let own = format!("n/{n}");
            let files = [(own.as_str(), own.as_bytes()), ("n/top", own.as_bytes())];
            tar(&at(&format!("forty{n}")), &files)
        })
        .collect();
    let forty = bed.convert(&layout(&bed, "forty", &forty), "forty:tag");
    bed.relay("POST", "reset");
    bed.pull("crfs", &forty);
    let namespace = bed.value("NAMESPACE");
    assert_eq!(snapshots(&bed, namespace), 45);
    assert_eq!(lazy_mounts(&bed.crfs_root()).len(), 45);
    let mut expected: Vec<_> = (0..40).map(|n| format!("n/{n}=n/{n}")).collect();
    expected.push("n/top=n/39".to_owned());
    expected.sort();
    assert_eq!(tree(&bed, &forty), expected);

    let image = Image::of(&bed, &forty);
    let before = layer_bytes(&bed, &image);
    let pull = [
        "image",
        "pull",
        "--plain-http",
        "--snapshotter",
        "crfs",
        &forty,
    ];
    bed.ctr(&[&["--namespace", "second"], &pull[..]].concat());
    assert_eq!(snapshots(&bed, "second"), 40);
    // The folder of a view that was removed goes a little later.
    bed::wait_for("one snapshot of each layer", 10, || folders(&bed) == 45);
    assert_eq!(lazy_mounts(&bed.crfs_root()).len(), 45);
    assert_eq!(
        layer_bytes(&bed, &image),
        before,
        "nothing is downloaded again"
    );
    assert!(!bed.crfs_log().contains("not lazy"), "{}", bed.crfs_log());
}

fn folders(bed: &Bed) -> usize {
    fs::read_dir(bed.crfs_root().join("snapshots"))
        .unwrap()
        .count()
}

#[test]
fn what_images_held_is_given_back() {
    let bed = Bed::up("[fetch]\nbackground = true\n", &[]);
    let at = |name: &str| bed.folder().join(name);
    let (shared, own) = (serve::noise(1, 5 << 20), serve::noise(2, 3 << 20));
    let noise = serve::noise(3, 40 << 20);
    let tars = [
        tar(&at("0.tar"), &[("shared", &shared)]),
        tar(&at("1.tar"), &[("large", &noise)]),
        tar(&at("2.tar"), &[("own", &own)]),
    ];
    let plain = layout(&bed, "plain", &tars);
    let lazy = converted(&plain);
    let large = compose(&at("large"), &[(&lazy, 0), (&lazy, 1)]);
    let small = compose(&at("small"), &[(&lazy, 0), (&lazy, 2)]);
    let large = bed.push(&large, "large:tag");
    let small = bed.push(&small, "small:tag");
    let mixed = compose(&at("with-plain"), &[(&lazy, 1), (&plain, 2), (&lazy, 0)]);
    let mixed = bed.push(&mixed, "with-plain:tag");

    let empty = disk_use(&bed);
    for image in [&large, &small, &mixed] {
        bed.pull("crfs", image);
    }
    bed::wait_for("the whole of both images", 30, || {
        disk_use(&bed) > empty + (50 << 20)
    });
    let full = disk_use(&bed);

    bed.ctr(&["image", "rm", "--sync", &large]);
    bed.ctr(&["image", "rm", "--sync", &mixed]);
    bed::wait_for("two layers", 20, || {
        lazy_mounts(&bed.crfs_root()).len() == 2
    });
    let kept = (shared.len() + own.len()) as u64;
    let limit = empty + kept + SLACK;
    bed::wait_for("the disk space of two images", 20, || {
        disk_use(&bed) < limit
    });
    assert!(
        disk_use(&bed) > empty + kept,
        "what the third one holds stays"
    );
    bed.relay("POST", "down?on=1");
    let read: u64 = tree(&bed, &small)
        .iter()
        .map(|file| file.len() as u64)
        .sum();
    assert!(read > kept, "and is read without the registry: {read}");
    bed.relay("POST", "down?on=0");

    bed.ctr(&["image", "rm", "--sync", &small]);
    let start = Instant::now();
    bed::wait_for("the rest", 20, || disk_use(&bed) < empty + SLACK);
    println!("{full} bytes given back, the last in {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(20));
    assert_eq!(lazy_mounts(&bed.crfs_root()), Vec::<PathBuf>::new());
    assert_eq!(folders(&bed), 0);
    let indexes = fs::read_dir(bed.crfs_root().join("indexes")).unwrap();
    assert_eq!(indexes.count(), 0);

    bed.pull("crfs", &small);
    assert_eq!(tree(&bed, &small).len(), 2, "and it can be had again");
}
