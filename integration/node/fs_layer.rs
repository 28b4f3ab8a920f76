//! A layer made of nothing but memory, mounted for real.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use crfs::blob::cache::{Cache, Verified};
use crfs::blob::fetch::{self, Fetcher};
use crfs::blob::{Blob, ChunkId, InMemory, LayerMap as _, ReadAt};
use crfs::fs::kept::Device;
use crfs::fs::{Index, LayerFs, OpenMode, ServeOptions, Served, index, serve};
use crfs::oci::Digest;
use crfs::overlay::{Mounter as _, System};
use crfs::stargz::{Limits, Toc};
use tokio::runtime::Runtime;

/// One for all mounts, as in the daemon.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

/// Where chunks of the made-up blob end.
const DATA_END: u64 = 1 << 40;

/// Entries of a TOC, and the content of their files.
#[derive(Default, Clone)]
pub struct Content {
    entries: String,
    chunks: Vec<Bytes>,
}

impl Content {
    /// Adds an entry: `fields` is JSON without the braces.
    pub fn entry(mut self, fields: &str) -> Self {
        let comma = if self.entries.is_empty() { "" } else { "," };
        write!(self.entries, "{comma}{{{fields}}}").unwrap();
        self
    }

    /// Adds a folder.
    pub fn folder(self, name: &str) -> Self {
        self.entry(&format!(r#""name":"{name}","type":"dir","mode":493"#))
    }

    /// Adds a file whose content is cut into chunks of `size` bytes.
    pub fn file(mut self, name: &str, fields: &str, content: &[u8], size: usize) -> Self {
        let len = content.len();
        let mut head = format!(r#""name":"{name}","type":"reg","size":{len}{fields}"#);
        for (number, chunk) in content.chunks(size).enumerate() {
            let (at, digest) = (number * size, Digest::of(chunk));
            let offset = self.chunks.len() + 1;
            self.chunks.push(Bytes::copy_from_slice(chunk));
            write!(
                head,
                r#","offset":{offset},"chunkOffset":{at},"chunkSize":{},"chunkDigest":"{digest}""#,
                chunk.len()
            )
            .unwrap();
            self = self.entry(&head);
            head = format!(r#""name":"{name}","type":"chunk""#);
        }
        if content.is_empty() {
            self.entry(&head)
        } else {
            self
        }
    }

    fn toc(&self) -> Toc {
        let json = format!(r#"{{"version":1,"entries":[{}]}}"#, self.entries);
        let digest = Digest::of(json.as_bytes());
        Toc::verify(json.into_bytes(), &digest).unwrap()
    }
}

/// A served mount; unmounted when dropped.
pub struct Mounted {
    /// Where it is mounted.
    pub path: PathBuf,
    /// Its serving end.
    pub served: Option<Served>,
    folder: tempfile::TempDir,
}

/// What is served how.
pub struct Mount {
    content: Content,
    options: Box<dyn Fn(&mut ServeOptions)>,
    instead: Option<Arc<dyn ReadAt>>,
    cache: Option<Arc<Cache>>,
}

impl Mount {
    /// A mount of this content with the default options.
    pub fn of(content: Content) -> Self {
        Self {
            content,
            options: Box::new(|_| ()),
            instead: None,
            cache: None,
        }
    }

    /// Changes the options.
    pub fn with(mut self, options: impl Fn(&mut ServeOptions) + 'static) -> Self {
        self.options = Box::new(options);
        self
    }

    /// Reads content from somewhere else.
    pub fn reading(mut self, content: Arc<dyn ReadAt>) -> Self {
        self.instead = Some(content);
        self
    }

    /// Puts the content into a cache and reads it from there.
    pub fn cached(mut self, cache: &Arc<Cache>) -> Self {
        self.cache = Some(Arc::clone(cache));
        self
    }

    /// Builds the index, mounts and serves.
    pub fn mount(self) -> Mounted {
        let folder = tempfile::tempdir().unwrap();
        let toc = self.content.toc();
        let file = folder.path().join("index");
        let blob = Digest::of(b"blob");
        index::build(&toc, &Limits::default(), DATA_END, blob, &file).unwrap();
        let index = Arc::new(Index::open(&file, toc.digest()).unwrap());
        let mut options = ServeOptions::new(RUNTIME.handle().clone());
        (self.options)(&mut options);
        let content = match (self.instead, &self.cache) {
            (Some(content), _) => content,
            (None, Some(cache)) => {
                let pass = options.passes_through(&index.summary());
                in_cache(cache, &index, &self.content.chunks, pass)
            }
            (None, None) => Arc::new(InMemory::new(self.content.chunks)),
        };
        let fs = Arc::new(LayerFs::new(index, content));
        let path = folder.path().join("mnt");
        std::fs::create_dir(&path).unwrap();
        let mount = System.mount_fuse(&path, "a test's layer").unwrap();
        let device = Device::unkept(mount).unwrap();
        let served = serve(&device, fs, &options).unwrap();
        Mounted {
            path,
            served: Some(served),
            folder,
        }
    }
}

/// A layer all of which the cache holds, and whose registry has nothing.
fn in_cache(
    cache: &Arc<Cache>,
    index: &Arc<Index>,
    chunks: &[Bytes],
    pass_through: bool,
) -> Arc<dyn ReadAt> {
    for (number, chunk) in chunks.iter().enumerate() {
        let info = index.chunk(ChunkId(number as u32)).unwrap();
        cache.insert(&[Verified::check(&info.proof, info.size, chunk).unwrap()]);
    }
    let runtime = RUNTIME.handle().clone();
    let fetcher = Fetcher::new(Arc::clone(cache), fetch::Config::default(), runtime);
    let source = Arc::new(crate::cache::NoRegistry);
    let blob = Blob::new(&fetcher, source, Arc::clone(index) as _);
    if pass_through {
        blob.pass_through();
    }
    Arc::new(blob)
}

impl Mounted {
    /// A path in the mount.
    pub fn at(&self, path: &str) -> PathBuf {
        self.path.join(path)
    }

    /// Unmounts and waits for the threads to end. Another mount namespace of this machine, made
    /// while the mount was there, may hold a copy of it: then the connection is cut.
    pub fn unmount(mut self) -> std::io::Result<()> {
        System.unmount(&self.path, false)?;
        let served = self.served.take().unwrap();
        let over = |limit| {
            let wait = async { tokio::time::timeout(limit, served.over()).await.is_ok() };
            RUNTIME.block_on(wait)
        };
        if !over(Duration::from_secs(3)) {
            let minor = served.device().minor;
            std::fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1")?;
            assert!(over(Duration::from_secs(20)));
        }
        served.join()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.served.is_some() {
            // Whatever happened, nothing of a test stays mounted.
            let _ = System.unmount(&self.path, true);
        }
        let _ = self.folder.path();
    }
}

/// An overlay over some layers, the first on top; unmounted when dropped.
pub struct Overlay {
    /// Where it is mounted.
    pub path: PathBuf,
    folder: tempfile::TempDir,
}

impl Overlay {
    /// Mounts an overlay with an upper folder of its own, on a tmpfs: the folder for temporary
    /// files may itself be an overlay, which cannot be an upper one.
    pub fn over(layers: &[&Mounted]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        run("mount", &["-t", "tmpfs", "tmpfs", &text(folder.path())]);
        for name in ["upper", "work", "merged"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let lower: Vec<_> = layers.iter().map(|layer| text(&layer.path)).collect();
        let at = |name: &str| text(&folder.path().join(name));
        let options = format!(
            // xino makes overlayfs look for where a copied-up file came from, by file handle.
            "lowerdir={},upperdir={},workdir={},xino=on",
            lower.join(":"),
            at("upper"),
            at("work")
        );
        let path = folder.path().join("merged");
        run(
            "mount",
            &["-t", "overlay", "overlay", "-o", &options, &text(&path)],
        );
        Self { path, folder }
    }

    /// A path in the overlay.
    pub fn at(&self, path: &str) -> PathBuf {
        self.path.join(path)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = System.unmount(&self.path, true);
        let _ = System.unmount(self.folder.path(), true);
    }
}

/// Runs a program that must succeed.
pub fn run(program: &str, arguments: &[&str]) {
    let status = std::process::Command::new(program).args(arguments).status();
    assert!(status.unwrap().success(), "{program} {arguments:?}");
}

/// A path as text.
pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Whether this machine can mount FUSE; says why not.
pub fn can_mount() -> bool {
    let reason = if !rustix::process::geteuid().is_root() {
        "not root"
    } else if !Path::new("/dev/fuse").exists() {
        "no /dev/fuse"
    } else {
        return true;
    };
    println!("skipped: {reason}");
    false
}

/// Options for a test of what the kernel asks again: it remembers nothing for long.
pub fn short_memory(options: &mut ServeOptions) {
    options.entry_timeout = Some(Duration::from_secs(1));
}

/// Options with OPEN answered.
pub fn with_open(options: &mut ServeOptions) {
    options.open = OpenMode::Answer;
}
