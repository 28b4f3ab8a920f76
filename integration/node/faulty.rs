//! A container whose image comes from a registry that does as a test tells it.
//!
//! The image is BusyBox and a layer of files of known content, each alone in its part of the layer's
//! blob. The container stays up while one case follows another, each on a file that was not read
//! before; what it reads it hashes itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crfs::oci::Digest;
use serde_json::Value;
use tempfile::TempDir;

use crate::bed::{self, Bed};
use crate::fake_registry::{FakeRegistry, Gatekeeper, Reply, Seen};
use crate::serve;

/// The image's name. There is no such host: `hosts.toml` says where it is.
pub const IMAGE: &str = "faults.test/data/img:1";
/// Size of each file: more than what shares a member of the blob, and less than a chunk.
pub const SIZE: usize = 256 << 10;
/// After this a read has failed, with what the kernel and this test need.
pub const DEADLINE: Duration = Duration::from_secs(3);
/// Longer than a mount remembers a failure for the kernel's second question.
pub const FORGOTTEN: Duration = Duration::from_millis(120);

const CONFIG: &str = "[fetch]\nbackground = false\nprefetch = false\nreadahead = 0\ncorrupt_retries = 2\n\
    [fuse]\nread_deadline = \"3s\"\n[registry]\nconnect_timeout = \"1s\"\nprogress_timeout = \"700ms\"\n\
    deadline = \"2500ms\"\nmax_pause = \"1s\"\nallow_private = [\"127.0.0.2\", \"127.0.0.3\"]\n";

/// The container, its node, and the registry they depend on.
pub struct Ward {
    pub bed: Bed,
    pub home: FakeRegistry,
    /// The whole blob that holds the files.
    pub blob: Vec<u8>,
    /// Where it is served.
    pub path: String,
    layout: PathBuf,
    certs: TempDir,
    docker: PathBuf,
    files: Vec<String>,
    container: String,
    next: AtomicUsize,
    runs: AtomicUsize,
}

/// What came of reads in the container.
#[derive(Debug)]
pub struct Outcome {
    pub ok: bool,
    pub said: String,
    /// By the container's own clock: how long it takes to get in and out says nothing about crfs.
    pub took: Duration,
}

impl Ward {
    /// Brings all up with `count` files. The registry asks for `user:pass`, by tokens.
    pub fn up(count: usize) -> Self {
        let certs = TempDir::with_prefix("certs-").unwrap();
        let docker = certs.path().join("docker.json");
        let config = format!(
            "{CONFIG}config_path = \"{}\"\ndocker_config = \"{}\"\n",
            certs.path().display(),
            docker.display()
        );
        let bed = Bed::up(&config, &[]);
        let layout = image(&bed, count);
        let home = FakeRegistry::start();
        let (path, blob) = fill(&layout, &home, "/v2");
        let mut ward = Self {
            blob,
            path,
            files: (0..count)
                .map(|n| Digest::of(&content(n)).hex().to_string())
                .collect(),
            container: format!("{}-faults", bed.value("NAMESPACE")),
            next: AtomicUsize::new(0),
            runs: AtomicUsize::new(0),
            bed,
            home,
            layout,
            certs,
            docker,
        };
        ward.home.guard(bearer("dXNlcjpwYXNz"));
        ward.login("user:pass");
        ward.hosts(&format!("server = \"{}\"", ward.home.url("")));
        ward.run();
        ward
    }

    /// Puts the image into a registry.
    pub fn fill(&self, registry: &FakeRegistry) {
        self.fill_at(registry, "/v2");
    }

    /// The same, where the registry's repositories are below another path.
    pub fn fill_at(&self, registry: &FakeRegistry, root: &str) {
        fill(&self.layout, registry, root);
    }

    /// Writes the image's `hosts.toml`. crfs looks at it once a second.
    pub fn hosts(&self, text: &str) {
        let folder = self.certs.path().join("faults.test");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("new"), text).unwrap();
        fs::rename(folder.join("new"), folder.join("hosts.toml")).unwrap();
    }

    /// The folder of the image's `hosts.toml`.
    pub fn folder(&self) -> PathBuf {
        self.certs.path().join("faults.test")
    }

    /// The password that crfs has for the registry, and no other.
    pub fn login(&self, login: &str) {
        self.logins(&[(&self.home.host(), login)]);
    }

    /// The passwords that crfs has, by host.
    pub fn logins(&self, all: &[(&str, &str)]) {
        use base64::Engine as _;
        let encode = |login| base64::engine::general_purpose::STANDARD.encode(login);
        let auths = all.iter().map(|(host, login)| {
            let auth = serde_json::json!({ "auth": encode(login) });
            ((*host).to_owned(), auth)
        });
        let auths: serde_json::Map<_, _> = auths.collect();
        let json = serde_json::json!({ "auths": auths });
        fs::write(&self.docker, json.to_string()).unwrap();
    }

    fn run(&mut self) {
        let certs = self.certs.path().to_str().unwrap();
        self.bed.ctr(&[
            "image",
            "pull",
            "--hosts-dir",
            certs,
            "--user",
            "user:pass",
            "--snapshotter",
            "crfs",
            IMAGE,
        ]);
        assert_eq!(
            serve::lazy_mounts(&self.bed.crfs_root()).len(),
            2,
            "{}",
            self.bed.crfs_log()
        );
        self.bed.ctr(&[
            "run",
            "-d",
            "--null-io",
            "--snapshotter",
            "crfs",
            IMAGE,
            &self.container,
            "busybox",
            "sleep",
            "100000",
        ]);
        // BusyBox is here from now on.
        assert!(self.shell("true").ok);
    }

    /// Ends crfs and starts it again; the container reads on.
    pub fn restart(&mut self) {
        self.bed.tell("crfs stop");
        self.bed.tell("crfs start");
        self.bed.wait_for_crfs();
    }

    /// A file that was not read before.
    pub fn fresh(&self) -> usize {
        let next = self.next.fetch_add(1, Ordering::SeqCst);
        assert!(next < self.files.len(), "more files are needed");
        next
    }

    /// Runs a command in the container.
    pub fn shell(&self, command: &str) -> Outcome {
        let run = self.runs.fetch_add(1, Ordering::SeqCst);
        let id = format!("x{run}");
        let clock = "read clock rest </proc/uptime; echo \"clock $clock\"";
        let timed = format!("{clock}; {command}\nresult=$?; {clock}; exit $result");
        let done = self.bed.try_ctr(&[
            "task",
            "exec",
            "--exec-id",
            &id,
            &self.container,
            "busybox",
            "sh",
            "-c",
            &timed,
        ]);
        let all = [done.stdout, done.stderr].concat();
        let all = String::from_utf8_lossy(&all);
        let (clock, said): (Vec<_>, Vec<_>) =
            all.lines().partition(|line| line.starts_with("clock "));
        let clock = clock.iter().map(|line| line[6..].parse().unwrap());
        let clock: Vec<f64> = clock.collect();
        assert_eq!(clock.len(), 2, "{all}\n{}", self.bed.crfs_log());
        Outcome {
            ok: done.status.success(),
            said: said.join("\n"),
            took: Duration::from_secs_f64(clock[1] - clock[0]),
        }
    }

    /// Has files hashed in the container, all at once. It is well if all have the right content, and
    /// wrong content is no outcome at all.
    pub fn read(&self, files: &[usize]) -> Outcome {
        let each = files
            .iter()
            .map(|file| format!("busybox sha256sum /data/f{file} &"));
        let each: Vec<_> = each.collect();
        let outcome = self.shell(&format!("{} wait", each.join(" ")));
        let mut right = 0;
        for line in outcome.said.lines() {
            let Some((hash, name)) = line.split_once("  /data/f") else {
                assert!(line.contains("Input/output error"), "{line}");
                continue;
            };
            let file: usize = name.trim().parse().unwrap();
            assert_eq!(hash, self.files[file], "wrong content of f{file}");
            right += 1;
        }
        Outcome {
            ok: right == files.len(),
            ..outcome
        }
    }

    /// Lets `script` answer requests for the blob; it gets how many came before since now.
    pub fn script(&self, script: impl Fn(&Seen, usize) -> Option<Reply> + Send + Sync + 'static) {
        self.home.reset();
        let path = self.path.clone();
        self.home
            .script(move |seen, before| match seen.path() == path {
                true => script(seen, before),
                false => None,
            });
    }

    /// Requests for the blob since the script was set.
    pub fn asked(&self) -> usize {
        self.home.count(&self.path)
    }
}

/// Puts the image of a layout into a registry, whose repositories are below `root`; gives path and content of
/// the blob of its second layer.
pub fn fill(layout: &Path, registry: &FakeRegistry, root: &str) -> (String, Vec<u8>) {
    let (top, manifest) = (digest(&index(layout)["manifests"][0]), manifest(layout));
    let data = digest(&manifest["layers"][1]);
    let mut found = None;
    for entry in fs::read_dir(layout.join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(path).unwrap();
        let digest = Digest::of(&bytes).to_string();
        let path = format!("{root}/data/img/blobs/{digest}");
        registry.add(&path, "application/octet-stream", &bytes);
        let kind = "application/vnd.oci.image.manifest.v1+json";
        registry.add(&format!("{root}/data/img/manifests/{digest}"), kind, &bytes);
        if digest == top {
            registry.add(&format!("{root}/data/img/manifests/1"), kind, &bytes);
        }
        if digest == data {
            found = Some((path, bytes));
        }
    }
    found.unwrap()
}

/// Tokens for an hour, for who shows this login (base64).
pub fn bearer(login: &str) -> Gatekeeper {
    Gatekeeper::Bearer {
        realm: None,
        life: Duration::from_secs(3600),
        login: Some(login.to_owned()),
    }
}

/// The right answer to a request for a part of `blob`.
pub fn part(blob: &[u8], seen: &Seen) -> Reply {
    let (start, end) = seen.range().unwrap();
    Reply::part(blob, start, end)
}

fn content(file: usize) -> Vec<u8> {
    serve::noise(1000 + file as u64, SIZE)
}

fn image(bed: &Bed, count: usize) -> PathBuf {
    let at = |name: &str| bed.folder().join(name);
    let files: Vec<_> = (0..count)
        .map(|n| (format!("data/f{n}"), content(n)))
        .collect();
    let files: Vec<_> = files
        .iter()
        .map(|(name, data)| (name.as_str(), &data[..]))
        .collect();
    let data = serve::tar(&at("data.tar"), &files);
    let data = bed::image_of(&[&data], &at("data"));
    let plain = serve::compose(&at("plain"), &[(&bed::image("busybox"), 0), (&data, 0)]);
    let lazy = at("lazy");
    let (from, to) = (plain.display(), lazy.display());
    bed::crfs(&[
        "convert",
        &format!("oci:{from}:latest"),
        &format!("oci:{to}:latest"),
    ]);
    lazy
}

fn index(layout: &Path) -> Value {
    serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap()
}

fn manifest(layout: &Path) -> Value {
    let name = digest(&index(layout)["manifests"][0]).replace(':', "/");
    serde_json::from_slice(&fs::read(layout.join("blobs").join(name)).unwrap()).unwrap()
}

fn digest(descriptor: &Value) -> String {
    descriptor["digest"].as_str().unwrap().to_owned()
}
