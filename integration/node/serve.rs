//! `crfs serve` as a process of its own, without containerd, and small images to give it.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tonic::Code;

use crate::bed::{self, Bed, CRFS};
use crate::snapshots_client::Client;
use crate::tars::{Item, Tar};

/// A running daemon; killed when dropped.
pub struct Serve {
    child: Child,
    folder: PathBuf,
}

impl Serve {
    /// Starts one in `folder`, which may hold the root of an earlier one, and waits until it serves.
    pub fn start(folder: &Path, config: &str, options: &[&str]) -> Self {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("crfs.toml"), config).unwrap();
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.join("log"))
            .unwrap();
        let mut command = Command::new(CRFS);
        command
            .arg("serve")
            .args(Self::flags(folder))
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command.spawn().unwrap();
        let mut serve = Self {
            child,
            folder: folder.to_owned(),
        };
        bed::wait_for("crfs serve", 20, || {
            let ended = serve.child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", serve.log());
            UnixStream::connect(serve.socket()).is_ok()
        });
        serve
    }

    /// The flags that keep a daemon in `folder`.
    pub fn flags(folder: &Path) -> Vec<String> {
        let path = |name: &str| folder.join(name).display().to_string();
        let (config, root, address) = (path("crfs.toml"), path("root"), path("run/crfs.sock"));
        ["--config", &config, "--root", &root, "--address", &address]
            .map(str::to_owned)
            .to_vec()
    }

    pub fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("run/crfs.sock")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }

    /// The process that serves.
    pub fn pid(&self) -> u32 {
        let pid = fs::read_to_string(self.root().join("server.pid")).unwrap();
        pid.trim().parse().unwrap()
    }

    /// The process that was started, and stands for the daemon.
    pub fn front(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub async fn client(&self) -> Client {
        Client::new(&self.socket()).await.unwrap()
    }

    /// Sends a signal and waits for the end; says how it ended and how long that took.
    pub fn end(&mut self, signal: Signal) -> (ExitStatus, Duration) {
        end(&mut self.child, signal)
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let root = self.root().display().to_string();
        let mut stop = Command::new(CRFS);
        let _ = stop.args(["stop", "--force", "--root", &root]).output();
        // Both fail only if it has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a child and waits for its end; says how it ended and how long that took.
pub fn end(child: &mut Child, signal: Signal) -> (ExitStatus, Duration) {
    let start = Instant::now();
    kill_process(Pid::from_child(child), signal).unwrap();
    let mut ended = None;
    bed::wait_for("the end", 30, || {
        ended = child.try_wait().unwrap();
        ended.is_some()
    });
    (ended.unwrap(), start.elapsed())
}

/// Asks for every layer of an image as containerd does, one after the other. Gives the names of the
/// committed snapshots, lowest first; panics if one is not lazy.
pub async fn pull(client: &Client, image: &Image, namespace: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for number in 0..image.layers.len() {
        let parent = names.last().cloned().unwrap_or_default();
        names.push(pull_layer(client, image, number, &parent, namespace).await);
    }
    names
}

/// Asks for one layer of an image. Gives the name of its committed snapshot.
pub async fn pull_layer(
    client: &Client,
    image: &Image,
    number: usize,
    parent: &str,
    namespace: &str,
) -> String {
    let layer = &image.layers[number];
    let target = format!("sha256:chain-of-{}-{number}", image.manifest);
    let labels = [
        ("containerd.io/snapshot.ref", target.as_str()),
        ("containerd.io/snapshot/cri.image-ref", &image.name),
        (
            "containerd.io/snapshot/cri.manifest-digest",
            &image.manifest,
        ),
        ("containerd.io/snapshot/cri.layer-digest", layer),
    ];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let key = format!("{namespace}/{number}/extract {layer}");
    let refused = client.prepare(&key, parent, labels.into()).await;
    let status = refused.expect_err("the answer is lazy");
    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
    let filter =
        format!("labels.\"containerd.io/snapshot.ref\"==\"{target}\",parent==\"{parent}\"");
    let mut found = client.list(&[filter]).await.unwrap();
    assert_eq!(found.len(), 1, "one snapshot of layer {number}: {found:?}");
    found.remove(0).name
}

/// An image in the registry.
pub struct Image {
    pub name: String,
    pub manifest: String,
    pub layers: Vec<String>,
}

impl Image {
    /// Looks an image up in the bed's registry.
    pub fn of(bed: &Bed, name: &str) -> Self {
        let (path, tag) = name.split_once('/').unwrap().1.rsplit_once(':').unwrap();
        let url = format!("http://{}/v2/{path}/manifests/{tag}", bed.registry());
        let accept = "Accept: application/vnd.oci.image.manifest.v1+json";
        let mut curl = Command::new("curl");
        curl.args(["-fsS", "--noproxy", "*", "-H", accept, &url]);
        let bytes = curl.output().unwrap().stdout;
        let manifest: Value = serde_json::from_slice(&bytes).unwrap();
        let layers = manifest["layers"].as_array().unwrap().iter();
        Self {
            name: name.to_owned(),
            manifest: crfs::oci::Digest::of(&bytes).to_string(),
            layers: layers.map(|layer| text(&layer["digest"])).collect(),
        }
    }

    /// Bytes that left the registry of each layer since the counts were reset.
    pub fn served(&self, bed: &Bed) -> Vec<u64> {
        let counts = bed.relay("GET", "counts");
        let layers = self.layers.iter();
        layers
            .map(|layer| counts["blobs"][layer.as_str()].as_u64().unwrap_or(0))
            .collect()
    }
}

/// A tar file of regular files.
pub fn tar(path: &Path, files: &[(&str, &[u8])]) -> PathBuf {
    let items = files.iter().map(|(name, data)| Item::file(name, *data));
    Tar::of(items).write(path);
    path.to_owned()
}

/// Bytes that do not compress, the same in every run.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = crate::snapshots_client::Random(seed);
    (0..len)
        .map(|_| u8::try_from(random.below(256)).unwrap())
        .collect()
}

/// An image with layers of others: each pick is an OCI layout and the number of a layer in it.
pub fn compose(out: &Path, picks: &[(&Path, usize)]) -> PathBuf {
    let blobs = out.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let (mut layers, mut diffs, mut config) = (Vec::new(), Vec::new(), Value::Null);
    for (layout, number) in picks {
        let index = read(&layout.join("index.json"));
        let manifest = read(&blob(layout, &index["manifests"][0]));
        config = read(&blob(layout, &manifest["config"]));
        let layer = manifest["layers"][number].clone();
        fs::copy(blob(layout, &layer), blob(out, &layer)).unwrap();
        diffs.push(config["rootfs"]["diff_ids"][number].clone());
        layers.push(layer);
    }
    config["rootfs"]["diff_ids"] = json!(diffs);
    config["history"] = json!([]);
    let config = add(out, &config, "application/vnd.oci.image.config.v1+json");
    let media = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media, "config": config, "layers": layers,
    });
    let mut entry = add(out, &manifest, media);
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    fs::write(out.join("index.json"), index.to_string()).unwrap();
    fs::write(out.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    out.to_owned()
}

/// The mounts of lazy layers at or below `root`.
pub fn lazy_mounts(root: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let lazy = mounts.lines().filter(|line| line.contains(" - fuse.crfs "));
    let targets = lazy.map(|line| PathBuf::from(line.split(' ').nth(4).unwrap()));
    targets.filter(|target| target.starts_with(root)).collect()
}

fn add(layout: &Path, document: &Value, media: &str) -> Value {
    let bytes = document.to_string();
    let digest = crfs::oci::Digest::of(bytes.as_bytes()).to_string();
    let descriptor = json!({ "mediaType": media, "digest": digest, "size": bytes.len() });
    fs::write(blob(layout, &descriptor), bytes).unwrap();
    descriptor
}

fn blob(layout: &Path, descriptor: &Value) -> PathBuf {
    let digest = text(&descriptor["digest"]);
    layout.join("blobs").join(digest.replace(':', "/"))
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// Pushes an index of images that are in the registry, each with its processor; gives its name.
pub fn push_index(bed: &Bed, images: &[(&str, &str)], name: &str) -> String {
    let url = |name: &str| {
        let (path, tag) = name.rsplit_once(':').unwrap();
        format!("http://{}/v2/{path}/manifests/{tag}", bed.registry())
    };
    let curl = |arguments: &[&str]| {
        let mut curl = Command::new("curl");
        let done = curl
            .args(["-fsS", "--noproxy", "*"])
            .args(arguments)
            .output();
        let done = done.unwrap();
        assert!(done.status.success(), "curl {arguments:?}: {done:?}");
        done.stdout
    };
    let media = "application/vnd.oci.image.manifest.v1+json";
    let accept = format!("Accept: {media}");
    let entries = images.iter().map(|(image, processor)| {
        let path = image.split_once('/').unwrap().1;
        let bytes = curl(&["-H", &accept, &url(path)]);
        json!({
            "mediaType": media, "size": bytes.len(), "digest": crfs::oci::Digest::of(&bytes),
            "platform": { "os": "linux", "architecture": processor },
        })
    });
    let index = "application/vnd.oci.image.index.v1+json";
    let document = json!({
        "schemaVersion": 2, "mediaType": index, "manifests": entries.collect::<Vec<_>>(),
    });
    let media = format!("Content-Type: {index}");
    let put = ["-X", "PUT", "-H", &media, "-d", &document.to_string()];
    curl(&[&put[..], &[&url(name)]].concat());
    format!("{}/{name}", bed.registry())
}
