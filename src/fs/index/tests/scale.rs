//! How long a layer of a million files takes: run by name, prints.

use std::time::Instant;

use super::*;

#[test]
#[ignore = "measures; needs a gigabyte of disk for a moment"]
fn a_million_files() {
    const FILES: u32 = 1_000_000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index");
    let begun = Instant::now();
    let mut tree = Tree::new(Digest::of(b"blob"), folder.path());
    let mut name = String::new();
    for number in 0..FILES {
        use std::fmt::Write as _;
        name.clear();
        write!(
            name,
            "usr/lib/d{}/e{}/file-{number}.txt",
            number / 1000,
            number / 50 % 20
        )
        .unwrap();
        let chunks = [chunk(u64::from(number) * 100, 0, 0, 13)];
        let kind = EntryKind::File {
            size: 13,
            chunks: &chunks,
        };
        tree.add(&entry(&name, kind)).unwrap();
    }
    let added = begun.elapsed();
    tree.finish().unwrap();
    let toc = Digest::of(b"toc");
    let source = Source {
        toc,
        blob: toc,
        data_end: DATA_END,
    };
    write(tree, source, &path).unwrap();
    let written = begun.elapsed();
    let begun = Instant::now();
    let index = Index::open(&path, &toc).unwrap();
    let opened = begun.elapsed();
    let begun = Instant::now();
    index.verify().unwrap();
    println!(
        "{FILES} files: {added:.2?} to add, {written:.2?} with writing, {} MB; opened in \
         {opened:.2?}, verified in {:.2?}",
        index.summary().index >> 20,
        begun.elapsed()
    );
    assert!(opened.as_millis() < 50);
}
