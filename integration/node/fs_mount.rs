//! One layer on a real FUSE mount: what the kernel shows is what the index says.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use bytes::Bytes;
use crfs::blob::{ChunkId, ReadAt, ReadError, Space};
use crfs::fs::NoXattrs;
use crfs::oci::Digest;
use crfs::overlay::{Mounter as _, System};
use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::fs_layer::{Content, Mount, Mounted, can_mount, with_open};

fn everything() -> Content {
    Content::default()
        .entry(r#""name":"","type":"dir","mode":493,"uid":7,"modtime":"2001-02-03T04:05:06.5Z""#)
        .folder("d")
        .file(
            "d/setuid",
            r#","mode":2541,"uid":70000,"gid":80000"#,
            b"#!/bin/sh\nid -u\n",
            4,
        )
        .file("secret", r#","mode":384"#, b"secret", 100)
        .file("empty", "", b"", 1)
        .entry(
            r#""name":"d/second","type":"hardlink","linkName":"d/setuid","mode":2541,"uid":70000,"gid":80000"#,
        )
        .entry(r#""name":"link","type":"symlink","linkName":"d/setuid""#)
        .entry(r#""name":"null","type":"char","mode":438,"devMajor":1,"devMinor":3"#)
        .entry(r#""name":"pipe","type":"fifo","mode":420"#)
        .entry(r#""name":"marked","type":"reg","size":0,"xattrs":{"user.k":"dg=="}"#)
        .entry(r#""name":"d/.wh.gone","type":"reg","size":0"#)
}

#[test]
fn a_mounted_layer_is_the_tree_of_its_toc() {
    if !can_mount() {
        return;
    }
    let layer = Mount::of(everything()).mount();
    let names = |path: &str| {
        let entries = fs::read_dir(layer.at(path)).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
            .into_iter()
            .map(|n| n.into_string().unwrap())
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(names(""), "d empty link marked null pipe secret");
    assert_eq!(names("d"), "gone second setuid");
    let stat = |path: &str| fs::symlink_metadata(layer.at(path)).unwrap();
    let root = stat("");
    assert_eq!(
        (root.ino(), root.mode(), root.uid(), root.nlink()),
        // The root's owner is the runtime's own, as when containerd unpacks.
        (1, 0o40755, 0, 3)
    );
    assert_eq!(
        (root.mtime(), root.mtime_nsec()),
        (981_173_106, 500_000_000)
    );
    let setuid = stat("d/setuid");
    assert_eq!(
        (setuid.mode(), setuid.uid(), setuid.gid()),
        (0o104_755, 70_000, 80_000)
    );
    assert_eq!((setuid.nlink(), setuid.size(), setuid.blocks()), (2, 16, 1));
    assert_eq!(stat("d/second").ino(), setuid.ino());
    assert_eq!(
        fs::read_link(layer.at("link")).unwrap(),
        Path::new("d/setuid")
    );
    assert_eq!(stat("null").rdev(), 0x103);
    assert!(stat("pipe").file_type().is_fifo());
    let gone = stat("d/gone");
    assert!(gone.file_type().is_char_device());
    assert_eq!((gone.rdev(), gone.mode() & 0o7777), (0, 0));
    assert_eq!(fs::read(layer.at("link")).unwrap(), b"#!/bin/sh\nid -u\n");
    assert_eq!(fs::read(layer.at("empty")).unwrap(), b"");
    let missing = fs::read(layer.at("d/nothing")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let long = fs::metadata(layer.at(&"x".repeat(256))).unwrap_err();
    assert_eq!(long.kind(), ErrorKind::InvalidFilename);
    let disk = rustix::fs::statvfs(&layer.path).unwrap();
    assert_eq!(
        (disk.f_blocks, disk.f_bavail, disk.f_namemax),
        (1 << 28, 1 << 26, 255)
    );
    let device = File::open(layer.at("null")).unwrap_err();
    assert_eq!(device.kind(), ErrorKind::PermissionDenied);
    let written = fs::write(layer.at("empty"), b"x").unwrap_err();
    assert_eq!(written.kind(), ErrorKind::ReadOnlyFilesystem);
    layer.unmount().unwrap();
}

/// Runs a program as nobody in a folder of root's; what it prints, if it succeeds.
fn as_nobody(layer: &Mounted, program: &Path, argument: &str) -> Option<String> {
    use std::os::unix::process::CommandExt as _;
    // The folder for temporary files is root's alone.
    let above = layer.path.parent().unwrap();
    fs::set_permissions(above, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new(program);
    command
        .current_dir(&layer.path)
        .arg(argument)
        .uid(65_534)
        .gid(65_534);
    let output = command.output().unwrap();
    output
        .status
        .success()
        .then(|| String::from_utf8(output.stdout).unwrap())
}

#[test]
fn permissions_are_the_kernels_to_check_and_setuid_works() {
    if !can_mount() {
        return;
    }
    let id = fs::read("/usr/bin/id").unwrap();
    let content = everything().file("id", r#","mode":2541,"uid":1234"#, &id, 10_000);
    let layer = Mount::of(content).mount();
    let cat = |path| as_nobody(&layer, Path::new("cat"), path);
    assert!(cat("d/setuid").is_some());
    assert!(cat("secret").is_none());
    let run = as_nobody(&layer, &layer.at("id"), "-u");
    assert_eq!(run.as_deref(), Some("1234\n"));
    let options = &System.mounts_below(&layer.path).unwrap()[0].options;
    assert!(options.starts_with("ro,nodev"), "{options}");
    assert!(
        !options.contains("nosuid") && options.contains("default_permissions"),
        "{options}"
    );
}

/// An ACL (`include/uapi/linux/posix_acl_xattr.h`): owner rw, user 65534 `r`, all others nothing.
fn acl() -> String {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (0x01_u16, 6_u16, u32::MAX),
        (0x02, 4, 65_534),
        (0x04, 0, u32::MAX),
        (0x10, 4, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[test]
fn an_acl_is_kept_to() {
    if !can_mount() {
        return;
    }
    let with = format!(
        r#","mode":416,"xattrs":{{"system.posix_acl_access":"{}"}}"#,
        acl()
    );
    let content = Content::default()
        .file("with", &with, b"open to one", 100)
        .file("without", r#","mode":416"#, b"open to none", 100);
    let layer = Mount::of(content).mount();
    let cat = |path| as_nobody(&layer, Path::new("cat"), path);
    assert_eq!(cat("with").as_deref(), Some("open to one"));
    assert_eq!(cat("without"), None);
}

#[test]
fn attributes_beyond_stat_are_there_or_said_not_to_be() {
    if !can_mount() {
        return;
    }
    let get = |path: &Path, name: &str, size: usize| {
        let mut value = vec![0; size];
        let len = rustix::fs::lgetxattr(path, name, value.as_mut_slice())?;
        value.truncate(len);
        Ok::<_, rustix::io::Errno>(value)
    };
    use rustix::io::Errno;
    let layer = Mount::of(everything()).mount();
    assert_eq!(get(&layer.at("marked"), "user.k", 100).unwrap(), b"v");
    assert_eq!(get(&layer.at("marked"), "user.k", 1).unwrap(), b"v");
    let mut names = [0; 100];
    let len = rustix::fs::llistxattr(layer.at("marked"), &mut names[..]).unwrap();
    assert_eq!(&names[..len], b"user.k\0");
    assert_eq!(get(&layer.at("marked"), "user.l", 100), Err(Errno::NODATA));
    assert_eq!(get(&layer.at("empty"), "user.k", 100), Err(Errno::NODATA));
    for (no_xattrs, said) in [
        (NoXattrs::Absent, Errno::NODATA),
        (NoXattrs::Unsupported, Errno::OPNOTSUPP),
    ] {
        let bare = Mount::of(Content::default().file("f", "", b"x", 1));
        let bare = bare
            .with(move |options| options.no_xattrs = no_xattrs)
            .mount();
        assert_eq!(get(&bare.at("f"), "user.k", 100), Err(said));
        let listed = rustix::fs::llistxattr(bare.at("f"), &mut names[..]);
        let none = match no_xattrs {
            NoXattrs::Absent => Ok(0),
            NoXattrs::Unsupported => Err(said),
        };
        assert_eq!(listed, none);
    }
    let with_some = Mount::of(everything()).with(|o| o.no_xattrs = NoXattrs::Unsupported);
    let with_some = with_some.mount();
    assert_eq!(get(&with_some.at("marked"), "user.k", 100).unwrap(), b"v");
}

#[test]
fn a_layer_has_the_same_numbers_on_every_mount() {
    if !can_mount() {
        return;
    }
    let numbers = || {
        let layer = Mount::of(everything()).mount();
        let mut found = BTreeMap::new();
        for folder in ["", "d"] {
            for entry in fs::read_dir(layer.at(folder)).unwrap() {
                let entry = entry.unwrap();
                let ino = fs::symlink_metadata(entry.path()).unwrap().ino();
                let name = entry.path().strip_prefix(&layer.path).unwrap().to_owned();
                found.insert(name, ino);
            }
        }
        layer.unmount().unwrap();
        found
    };
    let first = numbers();
    assert_eq!(first.len(), 10);
    assert_eq!(first, numbers());
}

#[test]
fn a_large_file_is_read_in_large_pieces_with_and_without_open() {
    if !can_mount() {
        return;
    }
    let content: Vec<u8> = (0..9_000_000_u32).map(|i| (i % 251) as u8).collect();
    for open in [false, true] {
        let file = Content::default().file("big", "", &content, 1 << 20);
        let mount = Mount::of(file).with(move |options| {
            if open {
                with_open(options);
            }
        });
        let layer = mount.mount();
        let device = layer.served.as_ref().unwrap().device();
        let set = fs::read_to_string(format!("/sys/class/bdi/{device}/read_ahead_kb")).unwrap();
        assert_eq!(set.trim(), "1024");
        let mut file = File::open(layer.at("big")).unwrap();
        let mut read = Vec::new();
        file.read_to_end(&mut read).unwrap();
        assert_eq!(read.len(), content.len());
        assert!(read == content);
        let mut piece = [0; 1000];
        file.read_exact_at(&mut piece, 5_000_123).unwrap();
        assert_eq!(piece, content[5_000_123..5_001_123]);
        assert_eq!(file.read_at(&mut piece, 9_000_000).unwrap(), 0);
        let counts = layer.served.as_ref().unwrap().counts();
        let requests = counts.hits + counts.misses;
        assert!(requests < 30, "{requests} requests for 9 MB");
        assert!(counts.misses >= 1 && counts.failures == 0, "{counts:?}");
        drop(file);
        layer.unmount().unwrap();
    }
}

#[test]
fn many_entries_are_listed_once_each() {
    if !can_mount() {
        return;
    }
    let mut content = Content::default();
    for number in 0..5000 {
        let name = format!("many/{number}-{}", "x".repeat(number % 200));
        content = content.file(&name, "", b"", 1);
    }
    let layer = Mount::of(content).mount();
    for _ in 0..2 {
        let listed: Vec<_> = fs::read_dir(layer.at("many"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        let distinct: std::collections::HashSet<_> = listed.iter().collect();
        assert_eq!((listed.len(), distinct.len()), (5000, 5000));
    }
}

/// Content that fails in a way of its own for each chunk.
struct Broken;

impl ReadAt for Broken {
    fn try_read(&self, chunk: ChunkId, _: u32, _: &mut [u8]) -> Result<bool, ReadError> {
        assert_ne!(chunk.0, 0, "a panic on the fuse thread");
        Ok(false)
    }

    fn fetch(&self, chunk: ChunkId, _: Range<u32>) -> BoxFuture<'static, Result<Bytes, ReadError>> {
        let blob = Digest::of(b"blob");
        match chunk.0 {
            1 => async { panic!("a panic on the runtime") }.boxed(),
            2 => futures::future::pending().boxed(),
            3 => async move { Err(ReadError::Closed { blob }) }.boxed(),
            _ => async { Ok(Bytes::from_static(b"good")) }.boxed(),
        }
    }

    fn will_read(&self, _: Range<u32>, _: Range<u32>) {}

    fn space(&self) -> Space {
        Space::default()
    }
}

#[test]
fn a_read_that_fails_costs_one_eio_and_nothing_else() {
    if !can_mount() {
        return;
    }
    let names = ["panic", "panic-later", "never", "closed", "good"];
    let mut content = Content::default();
    for name in names {
        content = content.file(name, "", b"good", 4);
    }
    let mount = Mount::of(content).reading(Arc::new(Broken));
    let layer = mount
        .with(|options| options.read_deadline = Duration::from_millis(300))
        .mount();
    for _ in 0..2 {
        for name in &names[..4] {
            let begun = Instant::now();
            let error = fs::read(layer.at(name)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(5), "{name}");
            assert!(begun.elapsed() < Duration::from_secs(5), "{name}");
        }
        assert_eq!(fs::read(layer.at("good")).unwrap(), b"good");
        // A failure is remembered for the kernel, which asks twice, and not for who tries again.
        std::thread::sleep(Duration::from_millis(120));
    }
    let counts = layer.served.as_ref().unwrap().counts();
    assert!(counts.panics >= 2 && counts.deadlines == 2, "{counts:?}");
    layer.unmount().unwrap();
}
