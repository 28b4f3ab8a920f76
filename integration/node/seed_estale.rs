//! What the project began with: a container over lazy layers in which, seconds after its start,
//! every `ls` failed with "Stale file handle", because each look-up made a new node.
//!
//! The same watch is kept over a real node's image, which must never fail, and over a twin of it
//! whose layers differ only in where node numbers come from, which must: else the watch is blind.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{DirEntryExt as _, FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use crfs::overlay::{Mounter as _, System};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr,
    ReplyData, ReplyDirectory, ReplyEntry, Request, Session, SessionACL,
};
use parking_lot::Mutex;

use crate::bed::{self, Bed};
use crate::fs_layer::{can_mount, run, text};
use crate::tars::{Item, Tar};
use crate::trees;

const LAYERS: usize = 4;
const SECOND: Duration = Duration::from_secs(1);

/// What one of the four layers holds: a folder that all have, and one of its own.
fn layer(number: usize) -> Tar {
    let own = format!("own-{number}");
    Tar::of([
        Item::folder("shared"),
        Item::file(format!("shared/from-{number}"), "shared content"),
        Item::folder(&own),
        Item::folder(format!("{own}/deep")),
        Item::file(format!("{own}/deep/file"), "own content"),
    ])
}

/// Looks at a tree of the four layers every second, and from a process that lives in it, while the
/// kernel forgets what it can. What goes wrong first, or nothing.
fn watch(tree: &Path, time: Duration) -> Option<String> {
    let said = tempfile::NamedTempFile::new().unwrap();
    let mut inside = Command::new("sh")
        .args(["-c", "exec 3<file; while sleep 0.7; do ls -la . .. ../../shared && stat . file ../../shared/* && cat file <&3 || exit 9; done"])
        .current_dir(tree.join("own-2/deep"))
        .stdout(Stdio::null())
        .stderr(said.reopen().unwrap())
        .spawn()
        .unwrap();
    let end = Instant::now() + time;
    let mut wrong = None;
    while wrong.is_none() && Instant::now() < end {
        std::thread::sleep(SECOND);
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        let ls = Command::new("ls").arg("-lR").arg(tree).output().unwrap();
        let mut stat = Command::new("find");
        let stat = stat.arg(tree).args(["-exec", "stat", "{}", "+"]);
        let stat = stat.output().unwrap();
        for seen in [&ls, &stat] {
            let listed = String::from_utf8_lossy(&seen.stdout);
            let all = listed.contains("from-0") && listed.contains("from-3");
            if !seen.status.success() || !all {
                wrong = Some(String::from_utf8_lossy(&seen.stderr).into_owned());
            }
        }
        if inside.try_wait().unwrap().is_some() {
            wrong = Some(fs::read_to_string(said.path()).unwrap());
        }
    }
    let _ = inside.kill();
    inside.wait().unwrap();
    wrong
}

fn never_stale(config: &str) {
    let bed = Bed::up(config, &[]);
    let tars: Vec<_> = (0..LAYERS)
        .map(|number| {
            let path = bed.folder().join(format!("{number}.tar"));
            layer(number).write(&path);
            path
        })
        .collect();
    let tars: Vec<_> = tars.iter().map(PathBuf::as_path).collect();
    let layout = bed::image_of(&tars, &bed.folder().join("layout"));
    let image = bed.convert(&layout, "four:lazy");
    bed.pull("crfs", &image);
    assert_eq!(trees::lazy_mounts(&bed.crfs_root()), LAYERS);
    let mounted = trees::mount_image(&bed, "crfs", &image, &["--rw"]);
    let time = Duration::from_secs(if bed::long() { 100 } else { 15 });
    assert_eq!(watch(&mounted.path, time), None);
    // What is copied up while the kernel forgets must not go stale either.
    let own = mounted.path.join("own-1/deep/file");
    fs::write(&own, "changed").unwrap();
    assert_eq!(watch(&mounted.path, Duration::from_secs(3)), None);
    assert_eq!(fs::read(&own).unwrap(), b"changed");
}

#[test]
fn never_stale_when_names_are_asked_for_each_second() {
    never_stale("[fetch]\nbackground = false\n[fuse]\nentry_timeout = \"1s\"\n");
}

#[test]
fn never_stale_by_default() {
    never_stale("[fetch]\nbackground = false\n");
}

/// A folder, served under node numbers that are either one for each file or new at each look-up.
struct Copy {
    folder: PathBuf,
    new_nodes: bool,
    state: Mutex<Nodes>,
}

#[derive(Default)]
struct Nodes {
    paths: Vec<PathBuf>,
    numbers: HashMap<PathBuf, u64>,
}

impl Copy {
    fn of(folder: PathBuf, new_nodes: bool) -> Self {
        let root = folder.clone();
        let copy = Self {
            folder,
            new_nodes,
            state: Mutex::default(),
        };
        copy.number(root);
        copy
    }

    /// The node number of a file: the heart of the matter.
    fn number(&self, path: PathBuf) -> u64 {
        let mut state = self.state.lock();
        if let Some(known) = state.numbers.get(&path).filter(|_| !self.new_nodes) {
            return *known;
        }
        state.paths.push(path.clone());
        let number = state.paths.len() as u64;
        state.numbers.insert(path, number);
        number
    }

    fn path(&self, ino: INodeNo) -> PathBuf {
        let at = usize::try_from(ino.0).unwrap() - 1;
        let state = self.state.lock();
        state.paths.get(at).unwrap_or(&self.folder).clone()
    }
}

fn attributes(ino: u64, path: &Path) -> std::io::Result<FileAttr> {
    let meta = fs::symlink_metadata(path)?;
    let kind = match meta.is_dir() {
        true => FileType::Directory,
        false => FileType::RegularFile,
    };
    let time = SystemTime::UNIX_EPOCH;
    Ok(FileAttr {
        ino: INodeNo(ino),
        size: meta.size(),
        blocks: meta.blocks(),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm: 0o755,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    })
}

impl fuser::Filesystem for Copy {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let path = self.path(parent).join(name);
        if fs::symlink_metadata(&path).is_err() {
            return reply.error(Errno::ENOENT);
        }
        let ino = self.number(path.clone());
        let found = attributes(ino, &path).unwrap();
        reply.entry(&SECOND, &found, Generation(0));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&SECOND, &attributes(ino.0, &self.path(ino)).unwrap());
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut buffer = vec![0; size as usize];
        let file = File::open(self.path(ino)).unwrap();
        let read = file.read_at(&mut buffer, offset).unwrap();
        reply.data(&buffer[..read]);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let mut names: Vec<_> = fs::read_dir(self.path(ino))
            .unwrap()
            .map(|entry| entry.unwrap())
            .collect();
        names.sort_by_key(fs::DirEntry::file_name);
        for (at, entry) in names.iter().enumerate().skip(offset as usize) {
            let kind = match entry.file_type().unwrap().is_dir() {
                true => FileType::Directory,
                false => FileType::RegularFile,
            };
            let number = INodeNo(entry.ino());
            if reply.add(number, at as u64 + 1, kind, entry.file_name()) {
                break;
            }
        }
        reply.ok();
    }
}

/// The four layers served by [`Copy`] below an overlay, watched.
fn watch_twin(new_nodes: bool, time: Duration) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    run("mount", &["-t", "tmpfs", "tmpfs", &text(folder.path())]);
    let at = |name: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(&path).unwrap();
        text(&path)
    };
    let mut mounts = Vec::new();
    for number in (0..LAYERS).rev() {
        let (files, mount) = (at(&format!("files-{number}")), at(&format!("mnt-{number}")));
        let tar = folder.path().join("layer.tar");
        layer(number).write(&tar);
        run("tar", &["-C", &files, "-xf", &text(&tar)]);
        let copy = Copy::of(files.into(), new_nodes);
        let fuse = System.mount_fuse(Path::new(&mount), "twin").unwrap();
        let session = Session::from_fd(copy, fuse.fd, SessionACL::All, fuser::Config::default());
        let session = std::thread::spawn(|| session.unwrap().run());
        mounts.push((mount, session));
    }
    let lower: Vec<_> = mounts.iter().map(|(mount, _)| mount.as_str()).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        at("upper"),
        at("work")
    );
    let merged = at("merged");
    run(
        "mount",
        &["-t", "overlay", "overlay", "-o", &options, &merged],
    );
    let wrong = watch(Path::new(&merged), time);
    for target in [&merged].into_iter().chain(mounts.iter().map(|(m, _)| m)) {
        System.unmount(Path::new(target), true).unwrap();
    }
    for (_, session) in mounts {
        session.join().unwrap().unwrap();
    }
    System.unmount(folder.path(), true).unwrap();
    wrong
}

#[test]
fn the_twin_with_new_nodes_goes_stale() {
    if !can_mount() {
        return;
    }
    let wrong = watch_twin(true, Duration::from_secs(20)).unwrap_or_default();
    assert!(wrong.contains("Stale file handle"), "seen: {wrong:?}");
}

#[test]
fn the_twin_with_lasting_nodes_does_not() {
    if !can_mount() {
        return;
    }
    assert_eq!(watch_twin(false, Duration::from_secs(8)), None);
}
