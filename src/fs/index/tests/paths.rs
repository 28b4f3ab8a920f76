//! From paths to chunks and back.

use super::*;

#[test]
fn paths_lead_to_chunks_and_chunks_to_paths() {
    let at = [chunk(0, 0, 0, 10), chunk(100, 0, 10, 10)];
    let one = [chunk(200, 0, 0, 5)];
    let two = [chunk(300, 0, 0, 5)];
    let of = |name, size, chunks| entry(name, EntryKind::File { size, chunks });
    let index = index(&[
        of("big", 20, &at),
        dir("a"),
        dir("a/b"),
        of("a/b/deep", 5, &one),
        of("a/z", 5, &two),
        link("a/also", "big"),
        file("a/empty"),
        symlink("a/soft", "z"),
    ]);
    let chunks = |path: &str| index.chunks_at(path.as_bytes()).unwrap();
    let (big, deep, z) = (
        chunks("big").unwrap(),
        chunks("a/b/deep").unwrap(),
        chunks("a/z"),
    );
    assert_eq!((big.len(), deep.len(), z.clone().unwrap().len()), (2, 1, 1));
    assert_eq!(chunks("a/also"), Some(big.clone()));
    assert!(chunks("a/empty").unwrap().is_empty());
    for nothing in [
        "", "/", "a", "a/", "a/soft", "a/none", "a/z/x", "/big", "a//z",
    ] {
        assert_eq!(chunks(nothing), None, "{nothing:?}");
    }
    let found = |wanted: &[u32]| {
        let wanted: Vec<_> = wanted.iter().copied().map(ChunkId).collect();
        let mut found = Vec::new();
        let mut each = |path: &[u8], chunks| {
            found.push((String::from_utf8(path.to_vec()).unwrap(), chunks));
        };
        index.files_with(&wanted, &mut each).unwrap();
        found
    };
    let z = z.unwrap();
    let expected = [
        ("a/also".to_owned(), big.clone()),
        ("a/b/deep".to_owned(), deep.clone()),
        ("a/z".to_owned(), z.clone()),
    ];
    assert_eq!(found(&[z.start, big.end - 1, deep.start]), expected);
    assert_eq!(found(&[deep.start]), expected[1..2]);
    assert!(found(&[]).is_empty() && found(&[99]).is_empty());
}
