//! Pull and run through a stock containerd: what is downloaded, what works without laziness, what a
//! restart keeps. Laziness is proven by the bytes that left the registry, never by log lines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bed::{self, Bed};
use crate::serve;

const FOREGROUND_ONLY: &str = "[fetch]\nbackground = false\n";

#[test]
fn an_image_runs_with_a_fraction_of_it_downloaded() {
    let bed = Bed::up(FOREGROUND_ONLY, &[]);
    let image = bed.convert(&bed::image("numpy"), "numpy:lazy");
    let whole = manifest_size(&bed, &image);
    bed.relay("POST", "reset");

    bed.pull("crfs", &image);
    let pulled = bed.bytes_served();
    let said = bed.run(&image, "first", &["python3", "/app/main.py"]);
    assert!(said.contains("numpy"), "{said}");
    let ran = bed.bytes_served();
    println!("{whole} bytes of image, {pulled} to pull, {ran} to run");
    assert!(
        pulled * 100 < whole * 5,
        "the pull alone took {pulled} of {whole} bytes"
    );
    assert!(
        ran * 100 < whole * 30,
        "the run took {ran} of {whole} bytes"
    );

    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let lazy = mounts
        .lines()
        .filter(|line| line.contains(" fuse") && line.contains("crfs:"));
    assert_eq!(lazy.count(), 4, "one mount a layer:\n{mounts}");

    bed.run(&image, "second", &["python3", "/app/main.py"]);
    assert_eq!(
        bed.bytes_served(),
        ran,
        "a second container downloads nothing"
    );
}

/// containerd reads the manifest; what crfs needs to know of it it can have from there.
#[test]
fn what_containerd_has_of_an_image_is_not_asked_for_again() {
    let mut bed = Bed::up(FOREGROUND_ONLY, &[]);
    let numpy = bed.convert(&bed::image("numpy"), "numpy:lazy");
    let busybox = bed.convert(&bed::image("busybox"), "busybox:lazy");
    let read = |bed: &Bed| bed.relay("GET", "counts")["manifests"].as_u64().unwrap();
    // How often the manifest is sent for a pull, beside once to this test.
    let times_sent = |bed: &Bed, image: &str| {
        bed.relay("POST", "reset");
        manifest(bed, image);
        let once = read(bed);
        bed.pull("crfs", image);
        (read(bed) - once) as f64 / once as f64
    };
    let root = bed.crfs_root();
    let unknown = times_sent(&bed, &busybox);
    assert_eq!(unknown, 2.0, "it is not known where containerd is");
    let lazy = serve::lazy_mounts(&root).len();

    let (config, socket) = (bed.value("CRFS_CONFIG"), bed.value("CONTAINERD_SOCKET"));
    let said = format!("{FOREGROUND_ONLY}[containerd]\naddress = \"{socket}\"\n");
    fs::write(config, said).unwrap();
    bed.tell("crfs stop");
    bed.tell("crfs start");
    bed.wait_for_crfs();
    assert_eq!(times_sent(&bed, &numpy), 1.0, "{}", bed.crfs_log());
    assert_eq!(serve::lazy_mounts(&root).len(), lazy + 4);
}

#[test]
fn the_background_fetch_brings_the_rest() {
    let bed = Bed::up("[fetch]\nbackground = true\n", &[]);
    let image = bed.convert(&bed::image("numpy"), "numpy:lazy");
    let whole = manifest_size(&bed, &image);
    bed.relay("POST", "reset");
    bed.pull("crfs", &image);
    bed::wait_for("the whole image", 60, || {
        bed.bytes_served() * 100 > whole * 97
    });
    assert!(
        bed.bytes_served() * 100 < whole * 110,
        "hardly a byte twice"
    );
    bed.relay("POST", "down?on=1");
    let said = bed.run(&image, "offline", &["python3", "/app/main.py"]);
    assert!(
        said.contains("numpy"),
        "a complete image needs no registry: {said}"
    );
}

#[test]
fn a_registry_without_ranges_sends_each_layer_once() {
    let bed = Bed::up("", &[]);
    let image = bed.convert(&bed::image("numpy"), "numpy:lazy");
    let whole = manifest_size(&bed, &image);
    bed.relay("POST", "reset");
    bed.relay("POST", "whole?on=1");
    bed.pull("crfs", &image);
    let said = bed.run(&image, "whole", &["python3", "/app/main.py"]);
    assert!(said.contains("numpy"), "{said}");
    let log = bed.crfs_log();
    assert!(
        log.contains("is served lazily") && !log.contains("not lazy"),
        "{log}"
    );
    // What of further answers had been sent until they were given up lay on its way.
    let served = bed.bytes_served();
    println!("{served} bytes served of an image of {whole}");
    assert!(served < whole * 2);
    bed.relay("POST", "down?on=1");
    let said = bed.run(&image, "offline", &["python3", "/app/main.py"]);
    assert!(said.contains("numpy"), "{said}");
}

#[test]
fn an_ordinary_image_works_and_the_log_says_why_it_is_not_lazy() {
    let bed = Bed::up(FOREGROUND_ONLY, &[]);
    let image = bed.push(&bed::image("numpy"), "numpy:plain");
    bed.pull("crfs", &image);
    let said = bed.run(&image, "plain", &["python3", "/app/main.py"]);
    assert!(said.contains("numpy"), "{said}");
    let log = bed.crfs_log();
    for layer in layers(&bed, &image) {
        let lines = log
            .lines()
            .filter(|line| line.contains(&layer) && line.contains("not lazy"));
        assert_eq!(
            lines.count(),
            1,
            "one line says that {layer} is not lazy:\n{log}"
        );
    }
}

#[test]
fn a_registry_in_trouble_makes_a_pull_eager_not_impossible() {
    let bed = Bed::up(
        "[fetch]\nbackground = false\n[registry]\nretries = 0\n",
        &[],
    );
    let image = bed.convert(&bed::image("numpy"), "numpy:lazy");
    // The layers' ends cannot be read, but whole blobs can: ranges are answered 503.
    bed.relay("POST", "fail?status=503&count=1000000&ranges=1");
    bed.pull("crfs", &image);
    bed.relay("POST", "fail?status=503&count=0");
    let said = bed.run(&image, "eager", &["python3", "/app/main.py"]);
    assert!(said.contains("numpy"), "{said}");
    assert!(bed.crfs_log().contains("503"), "{}", bed.crfs_log());
}

#[test]
fn a_restart_keeps_mounts_numbers_and_content() {
    let mut bed = Bed::up(FOREGROUND_ONLY, &[]);
    let image = bed.convert(&bed::image("numpy"), "numpy:lazy");
    bed.pull("crfs", &image);
    bed.run(&image, "before", &["python3", "/app/main.py"]);
    let before = inode_numbers(&bed.crfs_root());
    assert!(before.len() > 1000, "{} files", before.len());
    bed.relay("POST", "reset");

    bed.tell("crfs stop");
    bed.tell("crfs start");
    bed.wait_for_crfs();
    bed::wait_for("the layers to be mounted again", 10, || {
        lazy_roots(&bed.crfs_root()).len() == 4
    });
    assert_eq!(inode_numbers(&bed.crfs_root()), before);
    let said = bed.run(&image, "after", &["python3", "/app/main.py"]);
    assert!(said.contains("numpy"), "{said}");
    assert_eq!(bed.bytes_served(), 0, "nothing is downloaded again");
}

#[test]
fn a_restart_needs_no_registry() {
    let mut bed = Bed::up(FOREGROUND_ONLY, &[]);
    let image = bed.convert(&bed::image("numpy"), "numpy:lazy");
    bed.pull("crfs", &image);
    bed.run(&image, "before", &["python3", "/app/main.py"]);
    bed.tell("crfs kill");
    bed.relay("POST", "down?on=1");
    bed.tell("crfs start");
    bed.wait_for_crfs();
    let said = bed.run(&image, "after", &["python3", "/app/main.py"]);
    assert!(said.contains("numpy"), "{said}");
}

/// Compressed size of an image, from its manifest.
fn manifest_size(bed: &Bed, image: &str) -> u64 {
    let manifest = manifest(bed, image);
    let sizes = manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["size"].as_u64().unwrap());
    sizes.sum()
}

fn layers(bed: &Bed, image: &str) -> Vec<String> {
    let manifest = manifest(bed, image);
    let digests = manifest["layers"].as_array().unwrap().iter();
    digests
        .map(|layer| layer["digest"].as_str().unwrap().to_owned())
        .collect()
}

fn manifest(bed: &Bed, image: &str) -> serde_json::Value {
    let (name, tag) = image.split_once('/').unwrap().1.rsplit_once(':').unwrap();
    let url = format!("http://{}/v2/{name}/manifests/{tag}", bed.registry());
    let accept = "Accept: application/vnd.oci.image.manifest.v1+json";
    let mut curl = Command::new("curl");
    let done = curl
        .args(["-fsS", "--noproxy", "*", "-H", accept, &url])
        .output()
        .unwrap();
    serde_json::from_slice(&done.stdout).unwrap()
}

/// Where lazy layers are mounted.
pub fn lazy_roots(root: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let lazy = mounts.lines().filter(|line| line.contains(" - fuse"));
    let targets = lazy.map(|line| PathBuf::from(line.split(' ').nth(4).unwrap()));
    let mut targets: Vec<_> = targets.filter(|target| target.starts_with(root)).collect();
    targets.sort();
    targets
}

/// Every path on the layer mounts with its inode number.
pub fn inode_numbers(root: &Path) -> Vec<String> {
    let mut find = Command::new("find");
    find.args(lazy_roots(root)).args(["-printf", "%p %i\n"]);
    let found = String::from_utf8_lossy(&find.output().unwrap().stdout).into_owned();
    let mut lines: Vec<_> = found.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}
