//! Whole trees, every attribute and byte, and how two of them differ; and ways to an image's tree.
//!
//! Not compared, because no two file systems agree on them: the size and the number of links of a
//! folder, inode numbers themselves (which names are one file is), access and change times.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io::{ErrorKind, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crfs::oci::{Digest, Hasher};

use crate::bed::{self, Bed, CRFS};

/// How many differences are shown.
const SHOWN: usize = 12;

/// Everything that a tree says of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Type and permissions.
    pub mode: String,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Extended attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Size, number of links and the first name of the same file; nothing for a folder.
    pub file: Option<(u64, u64, String)>,
    /// Major and minor number of a device.
    pub device: u64,
    /// Target of a symlink.
    pub target: Option<String>,
    /// What a file holds.
    pub content: Option<Digest>,
}

/// A tree by its names, which are shown with escapes; the root's is empty.
pub type Tree = BTreeMap<String, Facts>;

/// Reads all of a tree.
pub fn read(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut first_names = HashMap::new();
    let mut paths = vec![root.to_owned()];
    while let Some(path) = paths.pop() {
        let meta = match fs::symlink_metadata(&path) {
            // Overlayfs lists the whiteouts of a folder that is in one layer only.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            meta => meta.unwrap_or_else(|error| panic!("{path:?}: {error}")),
        };
        if meta.is_dir() {
            let mut below: Vec<_> = fs::read_dir(&path)
                .unwrap_or_else(|error| panic!("{path:?}: {error}"))
                .map(|entry| entry.unwrap().path())
                .collect();
            below.sort_by(|a, b| b.cmp(a));
            paths.extend(below);
        }
        let name = escaped(path.strip_prefix(root).unwrap().as_os_str());
        let inode = (meta.dev(), meta.ino());
        let first: &mut String = first_names.entry(inode).or_insert_with(|| name.clone());
        let kind = meta.file_type();
        let facts = Facts {
            mode: format!("{:o}", meta.mode()),
            owner: (meta.uid(), meta.gid()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            xattrs: xattrs(&path),
            file: (!meta.is_dir()).then(|| (meta.size(), meta.nlink(), first.clone())),
            device: match kind.is_char_device() || kind.is_block_device() {
                true => meta.rdev(),
                false => 0,
            },
            target: meta
                .is_symlink()
                .then(|| escaped(fs::read_link(&path).unwrap().as_os_str())),
            content: meta.is_file().then(|| content(&path)),
        };
        tree.insert(name, facts);
    }
    tree
}

/// A name as it is shown.
pub fn escaped(name: &OsStr) -> String {
    name.as_bytes().escape_ascii().to_string()
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 1 << 16];
    let len = match rustix::fs::llistxattr(path, &mut names[..]) {
        // A layer in which nothing has an attribute may say that it knows of none.
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        len => len.unwrap_or_else(|error| panic!("{path:?}: {error}")),
    };
    names.truncate(len);
    let names = names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 1 << 16];
        let name = OsStr::from_bytes(name);
        let len = rustix::fs::lgetxattr(path, name, &mut value[..])
            .unwrap_or_else(|error| panic!("{path:?} lists {name:?} but: {error}"));
        value.truncate(len);
        value
    };
    names
        .map(|name| (String::from_utf8_lossy(name).into_owned(), value(name)))
        .collect()
}

fn content(path: &Path) -> Digest {
    let mut file = fs::File::open(path).unwrap();
    let (mut hasher, mut buffer) = (Hasher::new(), vec![0; 1 << 18]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return hasher.finish(),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) => panic!("{path:?}: {error}"),
        }
    }
}

/// Insists that two trees are the same.
pub fn assert_same(what: &str, expected: &Tree, found: &Tree) {
    let mut differences = Vec::new();
    for name in expected.keys().chain(found.keys()) {
        let pair = (expected.get(name), found.get(name));
        if pair.0 != pair.1 {
            let show = |facts: Option<&Facts>| facts.map_or("nothing".into(), |f| format!("{f:?}"));
            differences.push(format!(
                "{name:?}\n  expected {}\n  found    {}",
                show(pair.0),
                show(pair.1)
            ));
        }
    }
    differences.sort();
    differences.dedup();
    let shown = &differences[..differences.len().min(SHOWN)];
    assert!(
        differences.is_empty(),
        "{what}: {} of {} names differ:\n{}",
        differences.len(),
        expected.len(),
        shown.join("\n")
    );
}

/// Something mounted; unmounted when dropped.
pub struct Mounted {
    /// Where.
    pub path: PathBuf,
    ending: Ending,
}

enum Ending {
    /// `ctr image unmount`, which also removes the snapshot.
    Ctr(Command),
    /// SIGTERM to `crfs mount`.
    Server(Child),
}

impl Mounted {
    /// All of the mounted tree.
    pub fn tree(&self) -> Tree {
        read(&self.path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        match &mut self.ending {
            Ending::Ctr(unmount) => {
                let _ = unmount.status();
            }
            Ending::Server(server) => {
                let pid = rustix::process::Pid::from_child(server);
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                let _ = server.wait();
            }
        }
    }
}

/// Mounts an image that was pulled through this snapshotter, as containerd stacks its layers.
pub fn mount_image(bed: &Bed, snapshotter: &str, image: &str, how: &[&str]) -> Mounted {
    let path = tempfile::Builder::new()
        .prefix("tree-")
        .tempdir_in(bed.folder().join("node"))
        .unwrap()
        .keep();
    let target = path.to_str().unwrap();
    let mut arguments = vec!["image", "mount", "--snapshotter", snapshotter];
    arguments.extend(how);
    arguments.extend([image, target]);
    bed.ctr(&arguments);
    let mut unmount = Command::new("timeout");
    unmount
        .args(["60", bed.value("CTR"), "image", "unmount", "--rm"])
        .args(["--snapshotter", snapshotter, target])
        .stdout(Stdio::null());
    let ending = Ending::Ctr(unmount);
    Mounted { path, ending }
}

/// Pulls an image through a snapshotter and reads its whole tree.
pub fn tree_of(bed: &Bed, snapshotter: &str, image: &str) -> Tree {
    bed.pull(snapshotter, image);
    mount_image(bed, snapshotter, image, &[]).tree()
}

/// `crfs mount` of one layer of an image, counted from the lowest.
pub fn mount_layer(bed: &Bed, image: &str, layer: usize) -> Mounted {
    let path = bed.folder().join(format!("node/layer-{layer}"));
    fs::create_dir_all(&path).unwrap();
    let mut mount = Command::new(CRFS);
    mount
        .args(["mount", "--layer", &layer.to_string(), image])
        .arg(&path)
        .stdin(Stdio::null());
    let ending = Ending::Server(mount.spawn().unwrap());
    let mounted = Mounted { path, ending };
    bed::wait_for("crfs mount", 20, || {
        lazy_mounts(&mounted.path) == 1 && fs::read_dir(&mounted.path).is_ok()
    });
    mounted
}

/// How many lazy layers are mounted at or below a folder, but for what views have for themselves.
pub fn lazy_mounts(below: &Path) -> usize {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let lazy = mounts.lines().filter(|line| {
        let target = Path::new(line.split(' ').nth(4).unwrap());
        let is_views = target
            .parent()
            .is_some_and(|folder| folder.ends_with("lower"));
        line.contains(" - fuse") && target.starts_with(below) && !is_views
    });
    lazy.count()
}
