//! A layer of very many files: how long until it is mounted, what memory that takes, how fast `find`
//! is on it.
//!
//! By hand, with the number of files (and `find` compared with the same tree on the host's disk):
//!
//! `CRFS_FILES=1000000 integration/run.sh --long many_files`

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crfs::oci::Digest;
use crfs::stargz::write::{Options, Written, write};
use serde_json::{Value, json};

use crate::bed::{self, Bed};
use crate::fs_layer::run;
use crate::serve::{self, Image, Serve};
use crate::tars::{Item, Tar};

/// How many files, unless it is said.
const FEW: usize = 60_000;
const MANY: usize = 1_000_000;
/// Files in a folder.
const FOLDER: usize = 1000;
/// Zeros that end a tar.
const END: usize = 1024;

fn name(number: usize) -> String {
    format!("srv/data/d{:04}/file-{number:07}", number / FOLDER)
}

fn body(number: usize) -> String {
    format!("{number:012}\n")
}

/// A tar of files of 13 bytes, written without holding it.
fn tar(path: &Path, files: usize) -> File {
    let mut out = BufWriter::new(File::create_new(path).unwrap());
    for number in 0..files {
        let item = Tar::of([Item::file(name(number), body(number))]).bytes();
        out.write_all(&item[..item.len() - END]).unwrap();
    }
    out.write_all(&[0; END]).unwrap();
    drop(out);
    File::open(path).unwrap()
}

/// Pushes two images of the same layer, so that the second finds its index made.
fn images(bed: &Bed, files: usize) -> [Image; 2] {
    let layout = bed.folder().join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let tar_path = bed.folder().join("tar");
    let tar = tar(&tar_path, files);
    let blob = bed.folder().join("blob");
    let begun = Instant::now();
    let written = write(
        &tar,
        File::create_new(&blob).unwrap(),
        &Options::default(),
        &|_| (),
    );
    let written = written.unwrap();
    fs::remove_file(tar_path).unwrap();
    println!(
        "{files} files: converted in {:.2?}, {} MB",
        begun.elapsed(),
        written.size >> 20
    );
    fs::rename(blob, blobs.join(written.digest.hex())).unwrap();
    ["first", "second"].map(|tag| {
        push(
            bed,
            &layout,
            &format!("many:{tag}"),
            std::slice::from_ref(&written),
        )
    })
}

/// Pushes an image of layers whose blobs are in the layout.
pub fn push(bed: &Bed, layout: &Path, name: &str, layers: &[Written]) -> Image {
    let blobs = layout.join("blobs/sha256");
    let diffs: Vec<_> = layers
        .iter()
        .map(|layer| layer.diff_id.to_string())
        .collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": diffs },
    });
    let config = add(&blobs, &config, "application/vnd.oci.image.config.v1+json");
    let descriptors: Vec<_> = layers.iter().map(descriptor).collect();
    let media = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media, "config": config, "layers": descriptors,
        "annotations": { "name": name },
    });
    let mut entry = add(&blobs, &manifest, media);
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    Image::of(bed, &bed.push(layout, name))
}

fn descriptor(layer: &Written) -> Value {
    json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        "digest": layer.digest.to_string(), "size": layer.size,
        "annotations": {
            "containerd.io/snapshot/stargz/toc.digest": layer.toc_digest.to_string(),
            "containerd.io/snapshot/crfs/toc.offset": layer.toc_offset.to_string(),
        },
    })
}

fn add(blobs: &Path, document: &Value, media: &str) -> Value {
    let bytes = document.to_string();
    let digest = Digest::of(bytes.as_bytes());
    fs::write(blobs.join(digest.hex()), &bytes).unwrap();
    json!({ "mediaType": media, "digest": digest.to_string(), "size": bytes.len() })
}

/// A field of a process's status, in KiB.
pub fn status(pid: u32, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.map_or(0, |number| number.parse().unwrap())
}

/// Looks at a process every few milliseconds for the most memory it has.
pub struct Peak {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u64, u64)>,
}

impl Peak {
    pub fn of(pid: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut all, mut anonymous) = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                all = status(pid, "VmRSS").max(all);
                anonymous = status(pid, "RssAnon").max(anonymous);
                std::thread::sleep(Duration::from_millis(3));
            }
            (all, anonymous)
        });
        Self { stop, thread }
    }

    /// The most of VmRSS and of RssAnon, in MiB.
    pub fn end(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let (all, anonymous) = self.thread.join().unwrap();
        (all >> 10, anonymous >> 10)
    }
}

/// A walk that needs names only, and one that asks for every file's attributes too.
const WALKS: [(&str, &str); 2] = [("find", ""), ("find + stat", "-newermt 2000-01-01")];

fn find(folder: &Path, files: usize, test: &str) -> Duration {
    let begun = Instant::now();
    let script = format!("find . -type f {test} | wc -l | grep -qx {files}");
    let status = Command::new("sh")
        .args(["-c", &script])
        .current_dir(folder)
        .status();
    assert!(status.unwrap().success());
    begun.elapsed()
}

fn drop_caches() {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

fn finds(label: &str, folder: &Path, files: usize) {
    for (walk, test) in WALKS {
        drop_caches();
        let cold = find(folder, files, test);
        let again = find(folder, files, test);
        println!("{label:28} {walk:12} page cache dropped {cold:7.2?}  again {again:7.2?}");
    }
}

/// An overlay whose only lower layer is `lower`, with an upper on the host's disk.
fn overlay(at: &Path, lower: &Path) -> PathBuf {
    let path = |name: &str| at.join(name).display().to_string();
    for name in ["upper", "work", "merged"] {
        fs::create_dir_all(at.join(name)).unwrap();
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        path("upper"),
        path("work")
    );
    run(
        "mount",
        &["-t", "overlay", "overlay", "-o", &options, &path("merged")],
    );
    at.join("merged")
}

async fn mounted(files: usize, compare: bool) {
    let bed = Bed::up("", &["--only", "registry"]);
    let [first, second] = images(&bed, files);
    let mut daemon = Serve::start(
        &bed.folder().join("node"),
        "[fetch]\nbackground = false\n",
        &[],
    );
    let client = daemon.client().await;
    let peak = Peak::of(daemon.pid());
    let begun = Instant::now();
    serve::pull(&client, &first, "one").await;
    let unknown = begun.elapsed();
    let (all, anonymous) = peak.end();
    let begun = Instant::now();
    serve::pull(&client, &second, "two").await;
    let known = begun.elapsed();
    println!(
        "{files} files: mounted in {unknown:.2?} (peak VmRSS {all} MiB, RssAnon {anonymous} MiB), in \
         {known:.2?} with its index known"
    );
    let lower = serve::lazy_mounts(&daemon.root()).remove(0);
    let merged = overlay(&bed.folder().join("overlay"), &lower);
    finds("overlay on crfs", &merged, files);
    println!(
        "after that: VmRSS {} MiB, RssAnon {} MiB",
        status(daemon.pid(), "VmRSS") >> 10,
        status(daemon.pid(), "RssAnon") >> 10
    );
    let some = format!("{}/{}", merged.display(), name(files / 3));
    assert_eq!(fs::read_to_string(some).unwrap(), body(files / 3));
    run("umount", &[&merged.display().to_string()]);
    if compare {
        let tree = bed.folder().join("tree");
        for number in 0..files {
            let path = tree.join(name(number));
            if number % FOLDER == 0 {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
            }
            fs::write(path, body(number)).unwrap();
        }
        let merged = overlay(&bed.folder().join("overlay-host"), &tree);
        finds("overlay on the host's disk", &merged, files);
        run("umount", &[&merged.display().to_string()]);
    }
    daemon.end(rustix::process::Signal::TERM);
    for mount in serve::lazy_mounts(&daemon.root()) {
        run("umount", &["-l", &mount.display().to_string()]);
    }
    let most = Duration::from_millis(500 + files as u64 * 3 / 1000);
    // Several times what is promised of a quiet machine.
    assert!(unknown < most * 4, "{unknown:?}");
    assert!(known < Duration::from_millis(250), "{known:?}");
    // What a daemon has that does anything, and 60 bytes for each file.
    assert!(
        anonymous < 28 + files as u64 * 60 / MANY as u64,
        "{anonymous} MiB"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_many_files_is_mounted_in_little_time_and_memory() {
    let asked = std::env::var("CRFS_FILES").ok();
    let asked = asked.map(|files| files.parse().unwrap());
    let files = asked.unwrap_or(if bed::long() { MANY } else { FEW });
    mounted(files, asked.is_some()).await;
}
