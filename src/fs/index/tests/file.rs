//! The index as a file: its bytes, its look-ups, whose it is.

use super::*;

#[test]
fn the_same_entries_make_the_same_bytes() {
    let entries = [
        dir("b"),
        file("b/z"),
        file("b/a"),
        link("a", "b/z"),
        symlink("c", "x"),
    ];
    let first = built(&entries).unwrap();
    let second = built(&entries).unwrap();
    let bytes = std::fs::read(&first.path).unwrap();
    assert_eq!(bytes, std::fs::read(&second.path).unwrap());
    // Breadth first, by name: the root, then a (which is b/z), b, c, then b's own.
    let ids = ["", "/a", "/b", "/c", "/b/a"].map(|path| at(&first.index, path).unwrap().ino.0);
    assert_eq!(ids, [1, 2, 3, 4, 5]);
    assert_eq!(at(&first.index, "/b/z").unwrap().ino.0, 2);
    // The format as it is today: a change that breaks what lies on disk must raise VERSION.
    assert_eq!(
        Digest::of(&bytes).hex(),
        "569aae530bf722bbf7cf37bec4c8077706cebf9e5dc15f4db839818f5cfe3ece",
        "the bytes of an index changed"
    );
}

#[test]
fn lookup_finds_every_name_and_no_other() {
    let names: Vec<String> = (0..1000).map(|i| format!("d/{}", i * 7 % 1000)).collect();
    let entries: Vec<_> = names.iter().map(|name| file(name)).collect();
    let index = index(&entries);
    let Kind::Folder { entries, .. } = at(&index, "/d").unwrap().kind else {
        panic!();
    };
    for name in &names {
        let name = name.strip_prefix("d/").unwrap();
        let ino = index.lookup(&entries, name.as_bytes()).unwrap().unwrap();
        assert_eq!(at(&index, &format!("/d/{name}")).map(|n| n.ino), Some(ino));
        assert_eq!(
            index
                .lookup(&entries, format!("{name}x").as_bytes())
                .unwrap(),
            None
        );
    }
    assert_eq!(index.lookup(&entries, b"").unwrap(), None);
    let from_the_middle = index.entries(&entries, 990).count();
    assert_eq!(from_the_middle, 10);
    assert_eq!(index.entries(&entries, u32::MAX).count(), 0);
    assert!(index.find(Ino(0)).unwrap().is_none());
    assert!(index.find(Ino(1003)).unwrap().is_none());
    assert!(index.find(Ino(u64::MAX)).unwrap().is_none());
}

#[test]
fn an_index_of_another_toc_or_version_is_told_apart() {
    let built = built(&[file("a")]).unwrap();
    let other = Digest::of(b"other");
    assert!(matches!(
        Index::open(&built.path, &other),
        Err(Error::OtherToc { .. })
    ));
    let mut bytes = std::fs::read(&built.path).unwrap();
    bytes[8] = 99;
    std::fs::write(&built.path, bytes).unwrap();
    let opened = Index::open(&built.path, &built.toc);
    assert!(matches!(opened, Err(Error::Version { found: 99, .. })));
    std::fs::remove_file(&built.path).unwrap();
    assert!(matches!(
        Index::open(&built.path, &built.toc),
        Err(Error::Io { .. })
    ));
}

/// Resident bytes of the mapping of a file, by `/proc/self/smaps` (proc(5)).
fn resident(path: &std::path::Path) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let name = path.to_str().unwrap();
    let mut lines = maps.lines().skip_while(|line| !line.ends_with(name));
    let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
    let kib = rss.trim().strip_suffix(" kB").unwrap();
    kib.parse::<u64>().unwrap() << 10
}

#[test]
fn going_through_a_large_index_leaves_little_of_it_resident() {
    let names: Vec<_> = (0..120_000).map(|n| format!("{}/{n}", n / 1000)).collect();
    let chunks: Vec<_> = (0..120_000).map(|n| [chunk(n * 100, 0, 0, 13)]).collect();
    let files = names
        .iter()
        .zip(&chunks)
        .map(|(name, chunks)| entry(name, EntryKind::File { size: 13, chunks }));
    let built = built(&files.collect::<Vec<_>>()).unwrap();
    let len = std::fs::metadata(&built.path).unwrap().len();
    assert!(len > 12 << 20, "{len}");
    built.index.verify().unwrap();
    let left = resident(&built.path);
    assert!(left < 5 << 20, "{left} of {len}");
    let mut seen = 0;
    let all = built.index.all_chunks(&mut |_| {
        seen += 1;
        true
    });
    assert!(all);
    assert_eq!((seen, resident(&built.path)), (120_000, 0));
}

#[test]
fn a_refused_layer_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let json = br#"{"version":1,"entries":[{"name":"a","type":"hardlink","linkName":"b"}]}"#;
    let toc = Toc::unverified(json.to_vec());
    let path = folder.path().join("index");
    let built = build(&toc, &Limits::default(), 100, Digest::of(b""), &path);
    assert!(matches!(built, Err(Error::Tree { .. })));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let toc = Toc::unverified(br#"{"version":1,"entries":[]}"#.to_vec());
    build(&toc, &Limits::default(), 100, Digest::of(b""), &path).unwrap();
    assert_eq!(paths(&Index::open(&path, toc.digest()).unwrap()), [""]);
}
