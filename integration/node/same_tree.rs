//! Differential tests: a lazy tree is the tree that others unpack, every attribute and byte.
//!
//! The others are containerd with its overlayfs snapshotter, stacking all layers of an image, and
//! `tar -x`, unpacking one. What is meant to differ is taken out of the expectation, each in a
//! function that says why; what [`trees`] never compares is listed there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use crate::bed::{self, Bed};
use crate::random_tree;
use crate::tars::{Item, Tar};
use crate::trees::{self, Tree};

const FOREGROUND_ONLY: &str = "[fetch]\nbackground = false\n";

/// `struct vfs_cap_data` with CAP_NET_RAW permitted and effective.
const NET_RAW: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// Bytes that no chunk repeats.
fn bytes(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// A layer with every kind of entry and attribute.
fn every_feature() -> Vec<Item> {
    let long = "n".repeat(255);
    vec![
        Item::folder("./").at(1_600_000_000, 5),
        Item::folder("bin").at(1_600_000_001, 0),
        Item::file("bin/su", bytes(3000, 1)).mode(0o4755),
        Item::file("bin/wall", "x").mode(0o2755).owner(0, 5),
        Item::file("bin/ping", bytes(70_000, 2))
            .mode(0o755)
            .xattr("security.capability", NET_RAW),
        Item::folder("tmp").mode(0o1777).at(-5, 250_000_000),
        Item::file("tmp/empty", "").at(0, 1),
        Item::file("tmp/before-the-epoch", "old").at(-86_400, 0),
        Item::file("big", bytes(9_000_001, 3)).at(1_700_000_000, 123_456_789),
        Item::file("zeros", vec![0; 5 << 20]),
        Item::hard_link("big-too", "big"),
        Item::hard_link("big-chained", "./big-too"),
        Item::symlink("link", "big"),
        Item::symlink("dangling", "/no/where").owner(7, 8).at(9, 10),
        Item::symlink("long-link", format!("/{}", "t/".repeat(500))),
        Item::hard_link("link-linked", "link"),
        Item::folder("dev"),
        Item::device(b'3', "dev/null", 1, 3).mode(0o666),
        Item::device(b'3', "dev/wide", 259, 70_000).mode(0o600),
        Item::device(b'4', "dev/disk", 8, 17)
            .mode(0o660)
            .owner(0, 6),
        Item::fifo("dev/pipe").mode(0o622).at(11, 12),
        Item::hard_link("dev/pipe-too", "dev/pipe"),
        Item::folder("owned")
            .owner(70_000, 4_000_000_000)
            .mode(0o700),
        Item::file("owned/by-many", "x").owner(4_294_967_294, 65_536),
        Item::file("attributes", "x")
            .xattr("user.one", "1")
            .xattr("user.binary", [0, 255, b'\n', b'='])
            .xattr("user.empty", "")
            .xattr("trusted.overlay.redirect", "/etc")
            .xattr("trusted.other", "x"),
        Item::folder("attributed")
            .xattr("user.folder", "yes")
            .xattr("trusted.overlay.opaque", "y"),
        Item::folder("names"),
        Item::file("names/new\nline", "1"),
        Item::file("names/\u{1}\u{7f}\t\\ control", "2"),
        Item::file("names/größe \u{1f980}", "3"),
        Item::file("names/-rf *", "4"),
        Item::file("names/back\\slash", "5"),
        Item::file("names/\"quoted\"", "6"),
        Item::file(format!("names/{long}"), "7"),
        Item::folder(format!("names/d{}", &long[1..])),
        Item::file(format!("names/d{}/{long}", &long[1..]), "8"),
        Item::file("./names//.//slashes", "9"),
        Item::file("/names/absolute", "10"),
        Item::folder("twice").mode(0o700),
        Item::file("twice/kept", "kept"),
        Item::file("twice/file", "first").mode(0o600),
        Item::file("twice/file", "second, longer").mode(0o640),
        Item::symlink("twice/kind", "elsewhere"),
        Item::file("twice/kind", "a file now"),
        Item::folder("twice").mode(0o750).owner(3, 4).at(20, 21),
        Item::file("implied/by/this", "no entries for the folders"),
    ]
}

/// Layers that hide and change what [`every_feature`] has.
fn changes() -> [Vec<Item>; 2] {
    let whiteout = |name: &str| Item::file(name, "");
    let first = vec![
        whiteout("bin/.wh.wall"),
        whiteout(".wh.zeros"),
        whiteout(".wh.dev"),
        Item::folder("attributed"),
        whiteout("attributed/.wh..wh..opq"),
        Item::folder("names"),
        whiteout("names/.wh.new\nline"),
        whiteout("names/.wh..wh..opq"),
        Item::file("names/after", "the only one"),
        Item::file("link", "not a link any more"),
        Item::folder("big").mode(0o711),
        Item::file("big/inside", "what was a file is a folder"),
        Item::file("twice", "what was a folder is a file"),
        // No entry for `tmp` or `owned`: they keep their mode, owner and time.
        Item::file("tmp/more", "more"),
        Item::file("owned/more", "more"),
        whiteout("bin/.wh.never-was"),
    ];
    let second = vec![
        Item::file("zeros", "back again"),
        Item::folder("dev"),
        Item::file("dev/only", "the folder is new"),
        Item::folder("twice"),
        Item::file("twice/new", "a folder again"),
        Item::file("tmp/deep/er", "implied below implied"),
        Item::file("owned/more", "replaced"),
        Item::hard_link("owned/more-too", "owned/more"),
    ];
    [first, second]
}

/// Makes the layout of an image whose layers are these tars.
fn layout(bed: &Bed, name: &str, tars: &[Tar]) -> PathBuf {
    let path = |at: usize| bed.folder().join(format!("{name}-{at}.tar"));
    for (at, tar) in tars.iter().enumerate() {
        tar.write(&path(at));
    }
    let paths: Vec<_> = (0..tars.len()).map(path).collect();
    let paths: Vec<_> = paths.iter().map(PathBuf::as_path).collect();
    bed::image_of(&paths, &bed.folder().join(name))
}

/// Pulls the converted image lazily and compares it with the original unpacked by containerd.
/// Gives the lazy image's reference.
fn compare(bed: &Bed, layout: &Path, name: &str, lazy_layers: usize) -> String {
    let plain = bed.push(layout, &format!("{name}:plain"));
    let lazy = bed.convert(layout, &format!("{name}:lazy"));
    let before = trees::lazy_mounts(&bed.crfs_root());
    let start = now();
    let mut expected = trees::tree_of(bed, "overlayfs", &plain);
    let mut found = trees::tree_of(bed, "crfs", &lazy);
    let mounted = trees::lazy_mounts(&bed.crfs_root()) - before;
    assert_eq!(mounted, lazy_layers, "{}", bed.crfs_log());
    forget_made_up_times(&mut expected, &mut found, start);
    trees::assert_same(name, &expected, &found);
    lazy
}

/// Seconds since 1970, from before an unpacking.
fn now() -> i64 {
    let now = UNIX_EPOCH.elapsed().unwrap();
    now.as_secs().try_into().unwrap()
}

/// A folder that a layer puts something into without an entry for it, and the root, get the time of
/// their unpacking from unpackers. From crfs, which unpacks nothing, they get what lower layers say
/// or the epoch. No entry has a time as late as this test's.
fn forget_made_up_times(expected: &mut Tree, found: &mut Tree, start: i64) {
    for (name, facts) in expected {
        let made_up = facts.file.is_none() && facts.mtime.0 >= start;
        if let Some(lazy) = found.get_mut(name).filter(|_| made_up) {
            facts.mtime = lazy.mtime;
        }
    }
}

#[test]
fn every_feature_of_a_tar_is_as_containerd_unpacks_it() {
    let bed = Bed::up(FOREGROUND_ONLY, &[]);
    let [first, second] = changes();
    let tars = [every_feature(), first, second].map(Tar::of);
    let layout = layout(&bed, "features", &tars);
    let start = now();
    let lazy = compare(&bed, &layout, "features", 3);
    // And the converted image is an ordinary one too, for whoever unpacks it.
    let mut unpacked = trees::tree_of(&bed, "overlayfs", &lazy);
    let mut plain = trees::tree_of(
        &bed,
        "overlayfs",
        &format!("{}/features:plain", bed.registry()),
    );
    unpacked.retain(|name, _| {
        ![
            "stargz.index.json",
            ".no.prefetch.landmark",
            ".prefetch.landmark",
        ]
        .contains(&name.as_str())
    });
    forget_made_up_times(&mut plain, &mut unpacked, start);
    trees::assert_same("converted and unpacked", &plain, &unpacked);
}

#[test]
fn random_trees_are_as_containerd_unpacks_them() {
    let bed = Bed::up(FOREGROUND_ONLY, &[]);
    for seed in 1..=(if bed::long() { 40 } else { 4 }) {
        println!("seed {seed}");
        let tars: Vec<_> = random_tree::layers(seed, 4)
            .into_iter()
            .map(Tar::of)
            .collect();
        let name = format!("random-{seed}");
        let layout = layout(&bed, &name, &tars);
        compare(&bed, &layout, &name, tars.len());
    }
}

#[test]
fn a_layer_that_cannot_be_lazy_is_as_containerd_unpacks_it() {
    let bed = Bed::up(FOREGROUND_ONLY, &[]);
    let odd = Tar::of([
        Item::file(b"caf\xe9", "a name in Latin-1"),
        Item::folder("usr"),
        Item::folder("usr/lib"),
        Item::symlink("lib", "usr/lib"),
        Item::file("lib/through", "a symlink of the same layer"),
    ]);
    let tars = [Tar::of(every_feature()), odd, Tar::of(changes()[1].clone())];
    let layout = layout(&bed, "odd", &tars);
    compare(&bed, &layout, "odd", 2);
}

#[test]
fn hard_links_may_come_before_their_file() {
    let bed = Bed::up(FOREGROUND_ONLY, &[]);
    let file = || Item::file("d/file", bytes(5000, 4)).mode(0o600).at(5, 6);
    let link = |name, target| Item::hard_link(name, target).mode(0o600).at(5, 6);
    let backward = Tar::of([
        Item::folder("d"),
        file(),
        link("a", "d/file"),
        link("b", "a"),
        link("d/c", "b"),
    ]);
    let forward = Tar::of([
        link("d/c", "b"),
        link("b", "./a"),
        link("a", "/d/file"),
        Item::folder("d"),
        file(),
    ]);
    // Neither containerd nor tar unpacks a link before its file: the other order says what is meant.
    let plain = bed.push(&layout(&bed, "backward", &[backward]), "links:plain");
    let lazy = bed.convert(&layout(&bed, "forward", &[forward]), "links:lazy");
    let start = now();
    let mut expected = trees::tree_of(&bed, "overlayfs", &plain);
    let mut found = trees::tree_of(&bed, "crfs", &lazy);
    assert_eq!(trees::lazy_mounts(&bed.crfs_root()), 1);
    assert_eq!(found["a"].file.as_ref().unwrap().1, 4, "links of one file");
    forget_made_up_times(&mut expected, &mut found, start);
    trees::assert_same("forward links", &expected, &found);
}

/// What `tar -x` sets and a layer does not: attributes that overlayfs obeys; and times before 1970,
/// which containerd does not set either.
fn without_dropped_attributes(tree: &mut Tree) {
    for facts in tree.values_mut() {
        if facts.mtime < (0, 0) {
            facts.mtime = (0, 0);
        }
        facts
            .xattrs
            .retain(|name, _| !name.starts_with("trusted.") && !name.starts_with("user.overlay."));
    }
}

/// Gives hard links what their files have, as all tools do: tar passes over what a link's own
/// header says, containerd does not.
fn as_tools_write(mut items: Vec<Item>) -> Vec<Item> {
    for at in 0..items.len() {
        if items[at].flag == b'1' {
            let target = items[at].link.clone();
            let target = target.strip_prefix(b"./").unwrap_or(&target);
            let file = items.iter().find(|item| item.name == target).unwrap();
            let (link, name) = (items[at].link.clone(), items[at].name.clone());
            let data = Vec::new();
            items[at] = Item {
                link,
                name,
                data,
                flag: b'1',
                ..file.clone()
            };
        }
    }
    items
}

#[test]
fn one_layer_is_what_tar_extracts() {
    let bed = Bed::up(FOREGROUND_ONLY, &["--no-crfs"]);
    let mut items = as_tools_write(every_feature());
    items.push(Item::file("hidden", "x").xattr("user.overlay.opaque", "y"));
    items.push(Item::file("last", "without padding"));
    let tar = bed.folder().join("layer.tar");
    let made = Tar::of(items);
    made.write_cut(&tar);
    let image = bed::image_of(&[&tar], &bed.folder().join("layout"));
    let lazy = bed.convert(&image, "one:lazy");

    let start = now();
    let unpacked = bed.folder().join("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    made.write(&tar);
    let mut extract = Command::new("tar");
    let extract = extract
        .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-C"])
        .args([&unpacked, Path::new("-xpf"), &tar]);
    assert!(extract.status().unwrap().success());
    let mut expected = trees::read(&unpacked);
    without_dropped_attributes(&mut expected);
    let mut found = trees::mount_layer(&bed, &lazy, 0).tree();
    forget_made_up_times(&mut expected, &mut found, start);
    forget_root(&mut expected, &mut found);
    trees::assert_same("tar -x", &expected, &found);
}

/// The root is the mount's own in containerd's eyes: an entry for it says nothing there.
fn forget_root(expected: &mut Tree, found: &mut Tree) {
    for tree in [expected, found] {
        tree.remove("").unwrap();
    }
}

fn real_image(name: &str, layers: usize) {
    let bed = Bed::up(FOREGROUND_ONLY, &[]);
    compare(&bed, &bed::image(name), name, layers);
}

#[test]
fn python_with_numpy_is_as_containerd_unpacks_it() {
    real_image("numpy", 4);
}

#[test]
fn perl_is_as_containerd_unpacks_it() {
    real_image("perl", 3);
}

#[test]
fn the_comparison_sees_every_kind_of_difference() {
    let folder = tempfile::tempdir().unwrap();
    let make = |items: Vec<Item>| {
        let (tar, out) = (folder.path().join("t.tar"), folder.path().join("out"));
        let _ = std::fs::remove_dir_all(&out);
        std::fs::create_dir(&out).unwrap();
        Tar::of(items).write(&tar);
        let mut extract = Command::new("tar");
        let extract = extract.args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-C"]);
        let extract = extract.args([&out, Path::new("-xpf"), &tar]);
        assert!(extract.status().unwrap().success());
        let mut tree = trees::read(&out);
        tree.remove("");
        tree
    };
    let file = || Item::file("f", "abc");
    let base = || make(vec![file(), Item::symlink("s", "t"), Item::fifo("p")]);
    assert_eq!(base(), base());
    let with = |item: Item| make(vec![item, Item::symlink("s", "t"), Item::fifo("p")]);
    let others = BTreeMap::from([
        ("mode", with(file().mode(0o4644))),
        ("owner", with(file().owner(0, 1))),
        ("time", with(file().at(1_700_000_000, 1))),
        ("xattr", with(file().xattr("user.a", "1"))),
        ("content", with(Item::file("f", "abd"))),
        ("kind", with(Item::symlink("f", "abc"))),
        ("name", with(Item::file("g", "abc"))),
        (
            "target",
            make(vec![file(), Item::symlink("s", "u"), Item::fifo("p")]),
        ),
        (
            "link",
            make(vec![
                file(),
                Item::symlink("s", "t"),
                Item::fifo("p"),
                Item::hard_link("h", "f"),
            ]),
        ),
    ]);
    for (what, other) in others {
        assert_ne!(base(), other, "{what}");
    }
}
