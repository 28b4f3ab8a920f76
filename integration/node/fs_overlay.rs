//! Layers below a real overlay, as a container sees them.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

use crfs::overlay::{Mounter as _, System};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Generation, INodeNo, ReplyAttr, ReplyEntry, Request,
    Session, SessionACL,
};
use parking_lot::Mutex;

use crate::fs_layer::{Content, Mount, Overlay, can_mount, short_memory};

fn layer_names(folder: &std::path::Path) -> String {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names.join(" ")
}

#[test]
fn whiteouts_and_opaque_folders_hide_what_is_below() {
    if !can_mount() {
        return;
    }
    let below = Content::default()
        .file("kept/a", "", b"below", 10)
        .file("kept/gone", "", b"below", 10)
        .file("hidden/b", "", b"below", 10)
        .file("shadowed", "", b"below", 10);
    let above = Content::default()
        .folder("kept")
        .file("kept/.wh.gone", "", b"", 1)
        .file("kept/c", "", b"above", 10)
        .folder("hidden")
        .file("hidden/.wh..wh..opq", "", b"", 1)
        .file("hidden/d", "", b"above", 10)
        .file("shadowed", "", b"above", 10);
    let (below, above) = (Mount::of(below).mount(), Mount::of(above).mount());
    let overlay = Overlay::over(&[&above, &below]);
    assert_eq!(layer_names(&overlay.path), "hidden kept shadowed");
    assert_eq!(layer_names(&overlay.at("kept")), "a c");
    assert_eq!(layer_names(&overlay.at("hidden")), "d");
    assert_eq!(fs::read(overlay.at("shadowed")).unwrap(), b"above");
    assert_eq!(fs::read(overlay.at("kept/a")).unwrap(), b"below");
    let gone = fs::read(overlay.at("kept/gone")).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
}

#[test]
fn a_file_is_copied_up_whole_with_or_without_attributes() {
    if !can_mount() {
        return;
    }
    let content = vec![7; 3_000_000];
    for xattrs in ["", r#","xattrs":{"user.k":"dg=="}"#] {
        let layer = Content::default().file("d/f", xattrs, &content, 1 << 20);
        let layer = Mount::of(layer).mount();
        let overlay = Overlay::over(&[&layer]);
        let mut file = File::options()
            .append(true)
            .open(overlay.at("d/f"))
            .unwrap();
        std::io::Write::write_all(&mut file, b"more").unwrap();
        drop(file);
        let read = fs::read(overlay.at("d/f")).unwrap();
        assert_eq!(read.len(), content.len() + 4);
        assert!(read.starts_with(&content));
        // Not stale either when the kernel has forgotten the layer's inode and looks for what the
        // file was copied from (which it does with xino=on).
        for _ in 0..3 {
            forget();
            for _ in 0..2 {
                assert_eq!(
                    fs::metadata(overlay.at("d/f")).unwrap().len(),
                    read.len() as u64
                );
            }
        }
        let mut value = [0; 10];
        let got = rustix::fs::getxattr(overlay.at("d/f"), "user.k", &mut value[..]);
        assert_eq!(got.is_ok(), !xattrs.is_empty(), "{got:?}");
        assert_eq!(fs::read(layer.at("d/f")).unwrap().len(), content.len());
    }
}

/// Makes the kernel forget the names and inodes that nobody uses.
fn forget() {
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

/// The project began with this: a container over lazy layers in which, seconds after its start,
/// every `ls` failed with "stale file handle".
#[test]
fn no_file_handle_ever_goes_stale() {
    if !can_mount() {
        return;
    }
    let long = std::env::var_os("CRFS_LONG").is_some();
    let layers: Vec<_> = (0..4)
        .map(|number| {
            let name = format!("shared/from-{number}");
            let own = format!("own-{number}/deep/file");
            let content = Content::default()
                .folder("shared")
                .file(&name, "", b"content", 10)
                .file(&own, "", b"content", 10);
            Mount::of(content).with(short_memory).mount()
        })
        .collect();
    let overlay = Overlay::over(&layers.iter().collect::<Vec<_>>());
    let mut inside = std::process::Command::new("sh")
        .args(["-c", "exec 3<file; while sleep 0.3; do ls -la .. . >/dev/null && cat <&3 file || exit 9; done"])
        .current_dir(overlay.at("own-2/deep"))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(if long { 60 } else { 6 });
    let mut rounds = 0;
    while Instant::now() < end {
        for number in 0..4 {
            assert_eq!(
                fs::read(overlay.at(&format!("shared/from-{number}"))).unwrap(),
                b"content"
            );
            assert_eq!(layer_names(&overlay.at(&format!("own-{number}"))), "deep");
        }
        assert_eq!(
            layer_names(&overlay.at("shared")),
            "from-0 from-1 from-2 from-3"
        );
        assert_eq!(
            inside.try_wait().unwrap(),
            None,
            "the process in the tree failed"
        );
        if rounds % 3 == 2 {
            forget();
        }
        rounds += 1;
        std::thread::sleep(Duration::from_millis(400));
    }
    inside.kill().unwrap();
    inside.wait().unwrap();
    for layer in &layers {
        assert_eq!(layer.served.as_ref().unwrap().counts().failures, 0);
    }
}

/// What crfs must never be: a file system that makes a new node at each look-up.
#[derive(Default)]
struct NewNodes {
    nodes: Mutex<HashMap<u64, FileType>>,
    next: AtomicU64,
}

fn attributes(ino: u64, kind: FileType) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: 0o755,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

const SECOND: Duration = Duration::from_secs(1);

impl fuser::Filesystem for NewNodes {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let kind = match name.to_str() {
            Some("folder") if parent.0 == 1 => FileType::Directory,
            Some("file") if parent.0 != 1 => FileType::RegularFile,
            _ => return reply.error(Errno::ENOENT),
        };
        let ino = self.next.fetch_add(1, Ordering::Relaxed) + 2;
        self.nodes.lock().insert(ino, kind);
        reply.entry(&SECOND, &attributes(ino, kind), Generation(0));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let kind = self.nodes.lock().get(&ino.0).copied();
        let kind = kind.unwrap_or(FileType::Directory);
        reply.attr(&SECOND, &attributes(ino.0, kind));
    }
}

/// The twin of the test above: shows that it would fail if node ids were not stable.
#[test]
fn new_nodes_at_each_look_up_do_go_stale() {
    if !can_mount() {
        return;
    }
    let good = Mount::of(Content::default().folder("folder")).mount();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mnt");
    fs::create_dir(&path).unwrap();
    let mount = System.mount_fuse(&path, "new nodes").unwrap();
    let config = fuser::Config::default();
    let session = Session::from_fd(NewNodes::default(), mount.fd, SessionACL::All, config);
    let thread = std::thread::spawn(|| session.unwrap().run());
    let merged = folder.path().join("merged");
    fs::create_dir(&merged).unwrap();
    let lower = format!("lowerdir={}:{}", path.display(), good.path.display());
    let target = merged.to_str().unwrap();
    crate::fs_layer::run("mount", &["-t", "overlay", "overlay", "-o", &lower, target]);
    let end = Instant::now() + Duration::from_secs(10);
    let mut stale = false;
    while !stale && Instant::now() < end {
        let found = fs::metadata(merged.join("folder/file"));
        stale = found.is_err_and(|error| error.kind() == ErrorKind::StaleNetworkFileHandle);
        std::thread::sleep(Duration::from_millis(300));
    }
    System.unmount(&merged, true).unwrap();
    System.unmount(&path, true).unwrap();
    drop(good);
    thread.join().unwrap().unwrap();
    assert!(stale, "this kernel no longer shows what crfs was begun for");
}

#[test]
fn an_open_file_survives_a_lazy_unmount() {
    if !can_mount() {
        return;
    }
    let content = Content::default().file("f", "", &[1; 300_000], 100_000);
    let mut layer = Mount::of(content).mount();
    let mut file = File::open(layer.at("f")).unwrap();
    System.unmount(&layer.path, true).unwrap();
    let served = layer.served.take().unwrap();
    assert!(!served.is_over());
    let mut read = Vec::new();
    file.read_to_end(&mut read).unwrap();
    assert_eq!(read, [1; 300_000]);
    drop(file);
    served.join().unwrap();
}
