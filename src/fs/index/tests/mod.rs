//! The index as its users see it: entries in, tree out.

mod damage;
mod file;
mod model;
mod paths;
mod scale;
mod unpacked;

use std::borrow::Cow;
use std::path::PathBuf;

use tempfile::TempDir;

use super::tree::Tree;
use super::write::{Source, write};
use super::*;
use crate::blob::{ChunkId, LayerMap as _, MemberId, Proof};
use crate::stargz::{Chunk, Entry, EntryKind, Mtime};

/// An entry with attributes that differ from one to the next.
fn entry<'a>(name: &'a str, kind: EntryKind<'a>) -> Entry<'a> {
    let salt = u32::try_from(name.len()).unwrap();
    Entry {
        name: Cow::Borrowed(name.as_bytes()),
        kind,
        mode: 0o640 + salt % 8,
        uid: 1000 + salt,
        gid: 2000 + salt,
        mtime: Mtime {
            secs: i64::from(salt),
            nanos: 7,
        },
        xattrs: Vec::new(),
    }
}

fn dir(name: &str) -> Entry<'_> {
    entry(name, EntryKind::Dir)
}

fn file(name: &str) -> Entry<'_> {
    let chunks: &[Chunk] = &[];
    entry(name, EntryKind::File { size: 0, chunks })
}

fn link<'a>(name: &'a str, target: &'a str) -> Entry<'a> {
    let target = Cow::Borrowed(target.as_bytes());
    entry(name, EntryKind::HardLink { target })
}

fn symlink<'a>(name: &'a str, target: &'a str) -> Entry<'a> {
    let target = Cow::Borrowed(target.as_bytes());
    entry(name, EntryKind::Symlink { target })
}

const DATA_END: u64 = 1 << 30;

struct Built {
    index: Index,
    path: PathBuf,
    toc: Digest,
    _folder: TempDir,
}

fn built(entries: &[Entry<'_>]) -> Result<Built, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index");
    let mut tree = Tree::new(Digest::of(b"blob"), folder.path());
    for entry in entries {
        tree.add(entry)?;
    }
    tree.finish()?;
    let toc = Digest::of(b"toc");
    let source = Source {
        toc,
        blob: Digest::of(b"blob"),
        data_end: DATA_END,
    };
    write(tree, source, &path)?;
    Ok(Built {
        index: Index::open(&path, &toc)?,
        path,
        toc,
        _folder: folder,
    })
}

fn index(entries: &[Entry<'_>]) -> Index {
    built(entries).unwrap().index
}

fn refused(entries: &[Entry<'_>]) -> TreeError {
    match built(entries) {
        Err(Error::Tree { why, .. }) => why,
        Err(other) => panic!("{other}"),
        Ok(built) => panic!("accepted: {:?}", paths(&built.index)),
    }
}

/// Every path of the tree with its node, in the order of a walk.
fn walk(index: &Index) -> Vec<(String, Inode)> {
    let mut all = Vec::new();
    let mut open = vec![(String::new(), Ino::ROOT)];
    while let Some((path, ino)) = open.pop() {
        let node = index.find(ino).unwrap().unwrap();
        if let Kind::Folder { entries, .. } = &node.kind {
            for item in index.entries(entries, 0) {
                let (name, ino, _) = item.unwrap();
                let name = String::from_utf8_lossy(name);
                open.push((format!("{path}/{name}"), ino));
            }
        }
        all.push((path, node));
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn paths(index: &Index) -> Vec<String> {
    walk(index).into_iter().map(|(path, _)| path).collect()
}

fn at(index: &Index, path: &str) -> Option<Inode> {
    let found = walk(index).into_iter().find(|(p, _)| p == path);
    found.map(|(_, node)| node)
}

#[test]
fn attributes_kinds_and_links_come_back() {
    let chunks = [];
    let mut with_xattrs = file("a/f");
    with_xattrs.xattrs = vec![(Cow::Borrowed(b"user.k"), b"v".to_vec())];
    with_xattrs.mode = 0o7777;
    with_xattrs.uid = u32::MAX - 1;
    with_xattrs.mtime.secs = 5;
    // A link's header says what its file looks like (see `unpacked`).
    let same = Entry {
        name: Cow::Borrowed(b"a/l"),
        kind: link("a/l", "a/f").kind,
        ..with_xattrs.clone()
    };
    let index = index(&[
        dir(""),
        dir("a"),
        with_xattrs,
        entry("a/c", EntryKind::Char { major: 1, minor: 3 }),
        entry("a/b", EntryKind::Block { major: 8, minor: 9 }),
        entry("a/p", EntryKind::Fifo),
        symlink("a/s", "../../f"),
        same,
        entry(
            "a/e",
            EntryKind::File {
                size: 0,
                chunks: &chunks,
            },
        ),
    ]);
    let f = at(&index, "/a/f").unwrap();
    assert_eq!(
        (f.mode, f.uid, f.gid, f.nlink),
        (0o7777, u32::MAX - 1, 2003, 2)
    );
    assert_eq!((f.mtime, f.mtime_nanos), (5, 7));
    assert_eq!(index.xattrs(&f).unwrap().get(b"user.k"), Some(&b"v"[..]));
    assert!(index.has_xattrs());
    assert_eq!(at(&index, "/a/l").unwrap(), f);
    assert_eq!(
        at(&index, "/a/c").unwrap().kind,
        Kind::Char { major: 1, minor: 3 }
    );
    assert_eq!(
        at(&index, "/a/b").unwrap().kind,
        Kind::Block { major: 8, minor: 9 }
    );
    assert_eq!(at(&index, "/a/p").unwrap().kind, Kind::Fifo);
    let Kind::Symlink { target, len } = at(&index, "/a/s").unwrap().kind else {
        panic!();
    };
    assert_eq!(index.target(target, len).unwrap(), b"../../f");
    assert_eq!(at(&index, "").unwrap().nlink, 3);
    assert_eq!(at(&index, "/a").unwrap().nlink, 2);
    let summary = index.summary();
    assert_eq!((summary.inodes, summary.files, summary.folders), (8, 2, 2));
    assert_eq!(summary.implicit_folders, 0);
    index.verify().unwrap();
}

#[test]
fn what_tar_replaces_is_replaced() {
    let children = |entries: &[Entry<'_>]| paths(&index(entries)).join(" ");
    // A file over a folder takes all that was below it; a new folder starts empty.
    assert_eq!(children(&[file("a/b/c"), file("a"), dir("a")]), " /a");
    assert_eq!(
        children(&[file("a/b/c"), file("a/b"), dir("a/b"), file("a/b/d")]),
        " /a /a/b /a/b/d"
    );
    // A folder over a folder keeps it, with new attributes.
    let kept = index(&[file("a/b"), dir("a")]);
    assert_eq!(paths(&kept).join(" "), " /a /a/b");
    assert_eq!(at(&kept, "/a").unwrap().uid, 1001);
    assert_eq!(kept.summary().implicit_folders, 1);
    // The last of two files wins; a link made before keeps what it named.
    let mut second = file("a");
    second.uid = 9;
    let linked = index(&[file("a"), link("b", "a"), second]);
    assert_eq!(at(&linked, "/a").unwrap().uid, 9);
    assert_eq!(at(&linked, "/b").unwrap().uid, 1001);
    assert_eq!(at(&linked, "/b").unwrap().nlink, 1);
}

#[test]
fn folders_that_are_not_listed_are_made_up() {
    let index = index(&[file("x/y/z")]);
    let x = at(&index, "/x").unwrap();
    assert_eq!(
        (x.mode, x.uid, x.gid, x.mtime, x.nlink),
        (0o755, 0, 0, 0, 3)
    );
    let Kind::Folder { parent, .. } = at(&index, "/x/y").unwrap().kind else {
        panic!();
    };
    assert_eq!(parent, x.ino);
    assert!(x.implicit);
    assert!(!at(&index, "/x/y/z").unwrap().implicit);
    assert_eq!(index.summary().implicit_folders, 3);
}

#[test]
fn hard_links_lead_where_they_should_or_refuse_the_layer() {
    // Forward, chained, to a symlink, to a device, to something below a later folder.
    let index = index(&[
        link("c", "b"),
        link("b", "d/a"),
        link("s2", "s"),
        file("d/a"),
        symlink("s", "x"),
        link("e", "c"),
    ]);
    let a = at(&index, "/d/a").unwrap();
    assert_eq!(a.nlink, 4);
    for name in ["/b", "/c", "/e"] {
        assert_eq!(at(&index, name).unwrap(), a, "{name}");
    }
    assert_eq!(
        at(&index, "/s2").unwrap().ino,
        at(&index, "/s").unwrap().ino
    );

    assert_eq!(refused(&[link("a", "b")]), TreeError::LinkMissing);
    assert_eq!(refused(&[link("a", "x/y/b")]), TreeError::LinkMissing);
    assert_eq!(
        refused(&[link("a", "b"), link("b", "a")]),
        TreeError::LinkLoop
    );
    assert_eq!(refused(&[link("a", "a")]), TreeError::LinkLoop);
    assert_eq!(
        refused(&[dir("d"), link("d/x", "d")]),
        TreeError::LinkFolder
    );
    assert_eq!(refused(&[link("x", "d"), dir("d")]), TreeError::LinkFolder);
    assert_eq!(
        refused(&[file("f"), link("x", "f/g")]),
        TreeError::LinkMissing
    );
}

#[test]
fn a_chain_of_a_hundred_thousand_links_is_followed() {
    let names: Vec<String> = (0..=100_000).map(|i| format!("n{i}")).collect();
    let mut entries: Vec<_> = (0..100_000)
        .map(|i| link(&names[i], &names[i + 1]))
        .collect();
    assert_eq!(refused(&entries), TreeError::LinkMissing);
    entries.push(file(&names[100_000]));
    let index = index(&entries);
    assert_eq!(index.summary().inodes, 2);
    assert_eq!(at(&index, "/n0").unwrap().nlink, 100_001);
}

#[test]
fn whiteouts_become_what_overlayfs_knows() {
    let index = index(&[
        file("d/.wh.gone"),
        file("d/.wh..wh..opq"),
        file(".wh..wh.plnk/1.2"),
        file(".wh..wh.aufs"),
        // What the layer itself has of that name is not what the whiteout is about.
        file("here"),
        file(".wh.here"),
        file(".wh.there"),
        dir("there"),
    ]);
    assert_eq!(paths(&index).join(" "), " /d /d/gone /here /there");
    let gone = at(&index, "/d/gone").unwrap();
    assert_eq!(
        (gone.kind, gone.mode),
        (Kind::Char { major: 0, minor: 0 }, 0)
    );
    assert_eq!(gone.uid, 1010);
    let d = at(&index, "/d").unwrap();
    let mark = index.xattrs(&d).unwrap().get(b"trusted.overlay.opaque");
    assert_eq!(mark, Some(&b"y"[..]));
    assert!(matches!(
        at(&index, "/here").unwrap().kind,
        Kind::File { .. }
    ));
    assert!(matches!(
        at(&index, "/there").unwrap().kind,
        Kind::Folder { .. }
    ));
    assert!(index.has_xattrs());

    // The mark stays when the folder's own entry comes later, and on the root.
    let late = super::tests::index(&[file("d/.wh..wh..opq"), dir("d"), file(".wh..wh..opq")]);
    for path in ["", "/d"] {
        let node = at(&late, path).unwrap();
        assert_eq!(late.xattrs(&node).unwrap().iter().count(), 1, "{path}");
    }
    for bad in [".wh.", ".wh..", "d/.wh..."] {
        assert_eq!(refused(&[file(bad)]), TreeError::Whiteout, "{bad}");
    }
    assert_eq!(refused(&[file(".wh.d/x")]), TreeError::BelowWhiteout);
}

#[test]
fn a_tree_that_leads_through_files_is_refused() {
    assert_eq!(refused(&[file("a"), file("a/b")]), TreeError::ParentKind);
    assert_eq!(
        refused(&[symlink("a", "/etc"), file("a/b")]),
        TreeError::ParentKind
    );
    assert_eq!(
        refused(&[file(".wh.a"), file("a/b")]),
        TreeError::ParentKind
    );
    assert_eq!(
        refused(&[file("a"), file("b"), link("c", "b"), file("c/d")]),
        TreeError::ParentKind
    );
    assert_eq!(refused(&[file("")]), TreeError::Root);
}

#[test]
fn landmarks_are_hidden_in_the_root_only() {
    let chunks = [chunk(4096, 0, 0, 1)];
    let landmark = EntryKind::File {
        size: 1,
        chunks: &chunks,
    };
    let index = index(&[
        entry(".prefetch.landmark", landmark.clone()),
        file(".no.prefetch.landmark"),
        file("stargz.index.json"),
        entry("d/.prefetch.landmark", landmark),
    ]);
    assert_eq!(paths(&index).join(" "), " /d /d/.prefetch.landmark");
    assert_eq!(index.prefetch_end(), Some(4096));
    assert_eq!(super::tests::index(&[]).prefetch_end(), None);
}

fn chunk(offset: u64, inner: u64, at: u64, size: u32) -> Chunk {
    let digest = Some(Digest::of(&offset.to_le_bytes()));
    Chunk {
        offset,
        inner,
        at,
        size,
        digest,
        unread: false,
    }
}

#[test]
fn content_is_found_by_file_chunk_and_member() {
    let big = [
        chunk(100, 0, 0, 10),
        chunk(500, 0, 10, 20),
        chunk(900, 5, 30, 7),
    ];
    let mut unproven = chunk(900, 0, 0, 5);
    (unproven.digest, unproven.unread) = (None, true);
    let small = [unproven];
    let index = index(&[
        entry(
            "big",
            EntryKind::File {
                size: 37,
                chunks: &big,
            },
        ),
        entry(
            "small",
            EntryKind::File {
                size: 5,
                chunks: &small,
            },
        ),
    ]);
    assert_eq!((index.chunk_count(), index.member_count()), (4, 3));
    let members: Vec<_> = (0..3).map(|m| index.member(MemberId(m)).unwrap()).collect();
    let shown: Vec<_> = members
        .iter()
        .map(|m| (m.offset, m.len, m.inflated))
        .collect();
    assert_eq!(
        shown,
        [(100, 400, 10), (500, 400, 20), (900, DATA_END - 900, 12)]
    );
    assert_eq!(index.member(MemberId(3)), None);
    let mut in_last = Vec::new();
    index.chunks_of(MemberId(2), &mut |chunk| in_last.push(chunk.0));
    assert_eq!(in_last, [2, 3]);
    let info = index.chunk(ChunkId(2)).unwrap();
    assert_eq!((info.size, info.member, info.inner), (7, MemberId(2), 5));
    assert_eq!(info.proof, Proof::Sha256(big[2].digest.unwrap()));
    let unproven = index.chunk(ChunkId(3)).unwrap();
    assert!(matches!(unproven.proof, Proof::Unverified(_)));
    assert_eq!(unproven.size, 5);
    assert_eq!(index.chunk(ChunkId(4)), None);
    let unread: Vec<_> = (0..5).filter(|id| index.is_unread(ChunkId(*id))).collect();
    assert_eq!(unread, [3]);

    let Kind::File { size, chunks } = at(&index, "/big").unwrap().kind else {
        panic!();
    };
    assert_eq!((size, &chunks), (37, &(0..3)));
    for (offset, len, expected) in [
        (0, 37, &[(0, 0, 10), (1, 0, 20), (2, 0, 7)][..]),
        (0, 1, &[(0, 0, 1)]),
        (9, 2, &[(0, 9, 1), (1, 0, 1)]),
        (30, 7, &[(2, 0, 7)]),
        (36, 1, &[(2, 6, 1)]),
        (12, 0, &[]),
    ] {
        let mut parts = Vec::new();
        index
            .parts(&chunks, offset, len, &mut |p| {
                parts.push((p.chunk.0, p.at, p.len))
            })
            .unwrap();
        assert_eq!(parts, expected, "{offset} {len}");
    }
    assert!(index.parts(&chunks, 30, 8, &mut |_| ()).is_err());
}

#[test]
fn chunks_are_found_by_the_bytes_they_have() {
    let big = [
        chunk(100, 0, 0, 10),
        chunk(500, 0, 10, 20),
        chunk(900, 5, 30, 7),
    ];
    let kind = EntryKind::File {
        size: 37,
        chunks: &big,
    };
    let index = index(&[entry("big", kind)]);
    let chunks = 0..3;
    for (bytes, expected) in [
        (0..37, &[(0, 10), (1, 20), (2, 7)][..]),
        (9..10, &[(0, 10)]),
        (10..31, &[(1, 20), (2, 7)]),
        (12..12, &[(1, 20)]),
        (37..99, &[]),
    ] {
        let mut found = Vec::new();
        let mut note = |chunk: ChunkId, size| found.push((chunk.0, size));
        index
            .each_chunk_in(&chunks, bytes.clone(), &mut note)
            .unwrap();
        assert_eq!(found, expected, "{bytes:?}");
    }
}
