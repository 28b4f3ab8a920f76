//! What comes before the landmark.

use super::{convert, file, gunzip, item, read_back, tar, write_with};
use crate::oci::Digest;
use crate::stargz::write::header::BLOCK;
use crate::stargz::write::{Options, Prefetch, Written, own};
use crate::stargz::{EntryKind, Limits, Toc, inflate_toc};

#[test]
fn prefetched_files_come_first_with_their_folders_and_link_targets() {
    let items = [
        item(b'5', "bin/", "", b""),
        file("bin/a", b"a"),
        item(b'1', "bin/b", "bin/a", b""),
        file("bin/c", b"c"),
        item(b'5', "etc/", "", b""),
    ];
    let list = |text: &str| Options {
        prefetch: Prefetch::parse(text.as_bytes()),
        ..Options::default()
    };
    let input = tar(&items);
    let (blob, written) = write_with(&input, &list("/bin/b\n\n./nothing\r\n")).unwrap();
    let first = tar(&items[..3]);
    let whole = gunzip(&blob);
    let landmark = own::header(own::PREFETCH, 1);
    assert_eq!(whole[..first.len()], first);
    assert_eq!(whole[first.len()..first.len() + BLOCK], landmark);
    let found = read_back(&blob, &written);
    assert_eq!(found.len(), items.len() + 1);
    assert_eq!(written.input_diff_id, Digest::of(&input));
    let (plain, _) = convert(&input);
    assert!(write_with(&input, &list("elsewhere\n")).unwrap().0 == plain);
    assert!(write_with(&blob, &list("bin/b")).unwrap().0 == blob);
}

/// The names of a blob's files up to its landmark, in whose member none of them lies; each with what its TOC says of its chunks.
fn before_the_landmark(blob: &[u8], written: &Written) -> Vec<(String, Vec<bool>)> {
    let json = inflate_toc(
        &blob[usize::try_from(written.toc_offset).unwrap()..],
        &Limits::default(),
    );
    let toc = Toc::verify(json.unwrap(), &written.toc_digest).unwrap();
    let (mut files, mut members) = (Vec::new(), Vec::new());
    toc.for_each::<crate::stargz::Error>(&Limits::default(), written.toc_offset, &mut |entry| {
        let unread = match entry.kind {
            EntryKind::File { chunks, .. } => {
                members.extend(
                    chunks
                        .last()
                        .map(|chunk| (entry.name.to_vec(), chunk.offset)),
                );
                chunks.iter().map(|chunk| chunk.unread).collect()
            }
            _ => Vec::new(),
        };
        files.push((String::from_utf8(entry.name.to_vec()).unwrap(), unread));
        Ok(())
    })
    .unwrap();
    let end = files.iter().position(|(name, _)| name == own::PREFETCH);
    assert!(
        files[end.unwrap()..]
            .iter()
            .all(|(_, unread)| !unread.contains(&true))
    );
    files.truncate(end.unwrap());
    let landmark = members
        .iter()
        .position(|(name, _)| name == own::PREFETCH.as_bytes());
    let (before, after) = members.split_at(landmark.unwrap());
    assert!(before.iter().all(|(_, offset)| *offset < after[0].1));
    files
}

#[test]
fn prefetched_files_come_in_the_order_of_the_list_and_unread_chunks_are_marked() {
    let big = vec![7; 3 * (512 << 10)];
    let items = [
        item(b'5', "lib/", "", b""),
        file("lib/a", b"a"),
        file("lib/big", &big),
        file("lib/late", &big),
        item(b'1', "lib/a-link", "lib/a", b""),
        item(b'1', "lib/link", "lib/a-link", b""),
        item(b'2', "lib/so", "big", b""),
        file("rest", &big),
    ];
    let list = "/lib/late\t0-9\n/lib/big\t600000-600000\nlib/so\n/lib/link\n/lib/late\n\
                lib/big\t1572863-1572863\n/lib/a-link\nlib/none\t5-4\n";
    let options = Options {
        prefetch: Prefetch::parse(list.as_bytes()),
        ..Options::default()
    };
    let (blob, written) = write_with(&tar(&items), &options).unwrap();
    let found = before_the_landmark(&blob, &written);
    let found: Vec<_> = found
        .iter()
        .map(|(name, unread)| (&**name, &**unread))
        .collect();
    let none: &[bool] = &[];
    assert_eq!(
        found,
        [
            ("lib", none),
            ("lib/late", &[false, false, false]),
            ("lib/big", &[true, false, false]),
            ("lib/so", none),
            ("lib/a", &[false]),
            ("lib/a-link", none),
            ("lib/link", none),
        ]
    );
    assert_eq!(read_back(&blob, &written).len(), items.len() + 1);
    // A profile that names no bytes says nothing of a hard link's either.
    let whole = Options {
        prefetch: Prefetch::parse(b"lib/big"),
        ..Options::default()
    };
    let (blob, written) = write_with(&blob, &whole).unwrap();
    let found = before_the_landmark(&blob, &written);
    assert_eq!(found[1], ("lib/big".to_owned(), vec![false; 3]));
}
