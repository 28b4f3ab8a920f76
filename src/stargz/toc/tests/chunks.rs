//! What chunks may say of their file and their place.

use super::*;

/// A file of ten bytes with these keys in its own entry, and these chunks after it.
fn file(keys: &str, chunks: &[&str]) -> String {
    let mut list = object("reg", &format!(r#""size":10,"chunkDigest":"{D}",{keys}"#));
    for chunk in chunks {
        list += &format!(r#",{{"type":"chunk","chunkDigest":"{D}",{chunk}}}"#);
    }
    list
}

#[test]
fn chunks_are_gathered_into_their_file() {
    let digest = Some(D.parse().unwrap());
    let chunk = |offset, inner, at, size| Chunk {
        offset,
        inner,
        at,
        size,
        digest,
        unread: false,
    };
    for (list, expected) in [
        (file(r#""offset":999"#, &[]), vec![chunk(999, 0, 0, 10)]),
        (
            file(r#""innerOffset":512,"chunkSize":10"#, &[]),
            vec![chunk(0, 512, 0, 10)],
        ),
        (
            file(
                r#""offset":7,"chunkSize":4"#,
                &[
                    r#""name":"x","offset":5,"chunkOffset":4,"chunkSize":4"#,
                    r#""offset":7,"innerOffset":4,"chunkOffset":8"#,
                ],
            ),
            vec![chunk(7, 0, 0, 4), chunk(5, 0, 4, 4), chunk(7, 4, 8, 2)],
        ),
        (
            file(
                r#""chunkSize":5"#,
                &[r#""name":"","chunkOffset":5,"chunkSize":5"#],
            ),
            vec![chunk(0, 0, 0, 5), chunk(0, 0, 5, 5)],
        ),
    ] {
        first(&list, |entry| {
            let (size, chunks) = (10, &*expected);
            assert_eq!(entry.kind, EntryKind::File { size, chunks });
        });
    }
    // A file's chunks do not leak into the next one's.
    let list = format!(
        "{},{},{}",
        file("\"offset\":1", &[]),
        object("dir", ""),
        object("reg", "")
    );
    assert_eq!(entries(&list).unwrap()[2].1, "File { size: 0, chunks: [] }");
}

#[test]
fn chunks_that_do_not_cover_their_file_are_refused() {
    let beyond = |at, size, file| EntryError::ChunkBeyond { at, size, file };
    let offset = |expected, found| EntryError::ChunkOffset { expected, found };
    for (list, index, why) in [
        (file(r#""chunkSize":11"#, &[]), 0, beyond(0, 11, 10)),
        (
            file(r#""chunkSize":9223372036854775808"#, &[]),
            0,
            beyond(0, 1 << 63, 10),
        ),
        (file(r#""chunkOffset":1"#, &[]), 0, offset(0, 1)),
        (
            file(r#""chunkSize":4"#, &[]),
            0,
            EntryError::ChunksShort { found: 4, size: 10 },
        ),
        (
            file(r#""chunkSize":4"#, &[r#""chunkOffset":5"#]),
            1,
            offset(4, 5),
        ),
        (
            file(r#""chunkSize":4"#, &[r#""chunkOffset":3"#]),
            1,
            offset(4, 3),
        ),
        (
            file(r#""chunkSize":4"#, &[r#""chunkSize":6"#]),
            1,
            offset(4, 0),
        ),
        (
            file(r#""chunkSize":4"#, &[r#""chunkOffset":4,"chunkSize":7"#]),
            1,
            beyond(4, 7, 10),
        ),
        (
            file(r#""offset":1"#, &[r#""chunkOffset":10"#]),
            1,
            beyond(10, 0, 10),
        ),
        (
            file(
                r#""chunkSize":4"#,
                &[r#""chunkOffset":4"#, r#""chunkOffset":8"#],
            ),
            2,
            offset(10, 8),
        ),
        (object("reg", r#""chunkSize":1"#), 0, beyond(0, 1, 0)),
        (
            format!(r#"{},{{"type":"chunk"}}"#, object("reg", "")),
            1,
            beyond(0, 0, 0),
        ),
        (r#"{"type":"chunk"}"#.to_owned(), 0, EntryError::ChunkOrphan),
        (
            format!(r#"{},{{"type":"chunk"}}"#, object("dir", "")),
            1,
            EntryError::ChunkOrphan,
        ),
        (
            format!(r#"{},{{"type":"chunk"}}"#, object("fifo", "")),
            1,
            EntryError::ChunkOrphan,
        ),
    ] {
        assert_eq!(refusal(&list), (index, why), "{list}");
    }
    let other = file(r#""chunkSize":4"#, &[r#""name":"y","chunkOffset":4"#]);
    assert!(matches!(refusal(&other), (1, EntryError::ChunkName(_))));
}

#[test]
fn chunks_are_bounded() {
    let limits = Limits::default();
    let (chunk, member) = (u64::from(limits.chunk), limits.member);
    let sized = |size: u64| object("reg", &format!(r#""size":{size},"chunkDigest":"{D}""#));
    assert!(entries(&sized(chunk)).is_ok());
    for size in [chunk + 1, 1 << 32, 1 << 40, 1 << 62, 1 << 63, u64::MAX] {
        let limit = limits.chunk;
        assert_eq!(
            refusal(&sized(size)),
            (0, EntryError::ChunkLarge { size, limit })
        );
    }
    for offset in [END, END + 1, 1 << 62, u64::MAX] {
        let refused = refusal(&file(&format!(r#""offset":{offset}"#), &[]));
        assert_eq!(refused, (0, EntryError::Offset { offset, end: END }));
    }
    let inner = |inner: u64| file(&format!(r#""innerOffset":{inner}"#), &[]);
    assert!(entries(&inner(member - 10)).is_ok());
    for (at, end) in [
        (member - 9, member + 1),
        (u64::MAX - 9, u64::MAX),
        (u64::MAX, u64::MAX),
    ] {
        let refused = refusal(&inner(at));
        assert_eq!(refused, (0, EntryError::InnerOffset { end, limit: member }));
    }
}

#[test]
fn a_verified_toc_has_a_digest_for_every_chunk() {
    let bare = object("reg", r#""size":10"#);
    assert_eq!(refusal(&bare), (0, EntryError::DigestMissing { at: 0 }));
    let whole = object("reg", &format!(r#""size":10,"digest":"{D}""#));
    first(&whole, |entry| {
        let EntryKind::File {
            chunks: [chunk], ..
        } = entry.kind
        else {
            panic!("{entry:?}");
        };
        assert_eq!(chunk.digest, Some(D.parse().unwrap()));
    });
    // The digest of the whole says nothing of its parts.
    let parts = format!(
        r#"{},{{"type":"chunk","chunkOffset":4}}"#,
        object(
            "reg",
            &format!(r#""size":10,"chunkSize":4,"digest":"{D}","chunkDigest":"{D}""#)
        ),
    );
    assert_eq!(refusal(&parts), (0, EntryError::DigestMissing { at: 4 }));
    for json in [bare, parts] {
        let json = format!(r#"{{"version":1,"entries":[{json}]}}"#);
        let unverified = Toc::unverified(json.into_bytes());
        assert_eq!(walk_with(&unverified, &Limits::default()).unwrap().len(), 1);
    }
    for bad in [
        &D.to_uppercase(),
        &D[..70],
        "sha512:00",
        "md5:00",
        "sha256:../x",
    ] {
        let list = object("reg", &format!(r#""size":10,"chunkDigest":"{bad}""#));
        assert!(
            matches!(refusal(&list), (0, EntryError::Digest(_))),
            "{bad}"
        );
    }
}

#[test]
fn entries_are_counted_chunks_included() {
    let limits = Limits {
        entries: 3,
        ..Limits::default()
    };
    let file = file(r#""chunkSize":4"#, &[r#""chunkOffset":4"#]);
    let json = |more: &str| {
        format!(r#"{{"version":1,"entries":[{file},{{"name":"d","type":"dir"}}{more}]}}"#)
    };
    let three = Toc::unverified(json("").into_bytes());
    assert_eq!(walk_with(&three, &limits).unwrap().len(), 2);
    let four = Toc::unverified(json(r#",{"name":"e","type":"dir"}"#).into_bytes());
    assert_eq!(
        walk_with(&four, &limits),
        Err(Error::TocEntries { limit: 3 })
    );
}

proptest! {
    #[test]
    fn a_file_is_covered_or_refused(
        size in 0_u64..40,
        chunks in prop::collection::vec((0_u64..40, 0_u64..20), 1..5),
    ) {
        let (first, rest) = chunks.split_first().unwrap();
        let mut list = object("reg", &format!(r#""size":{size},"chunkOffset":{},"chunkSize":{}"#, first.0 / 20, first.1));
        for (at, size) in rest {
            list += &format!(r#",{{"type":"chunk","chunkOffset":{at},"chunkSize":{size}}}"#);
        }
        let toc = Toc::unverified(format!(r#"{{"version":1,"entries":[{list}]}}"#).into_bytes());
        let _ = toc.for_each(&Limits::default(), END, &mut |entry| -> Result<(), Error> {
            let EntryKind::File { size, chunks } = entry.kind else { panic!() };
            let mut next = 0;
            for chunk in chunks {
                assert_eq!(chunk.at, next);
                assert!(chunk.size > 0);
                next += u64::from(chunk.size);
            }
            assert_eq!(next, size);
            Ok(())
        });
    }
}
