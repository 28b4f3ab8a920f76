//! Tests of the writer as a whole: what it writes inflates to the input's own bytes, and the reader
//! in this crate finds everything in it.

mod prefetch;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};

use proptest::prelude::*;

use super::header::BLOCK;
use super::*;
use crate::stargz::{EntryKind, Footer, Limits, Toc, inflate_member, inflate_toc, verify_chunk};

/// One entry of a test's tar.
#[derive(Debug, Clone)]
struct Item {
    name: String,
    flag: u8,
    link: String,
    data: Vec<u8>,
    mode: u32,
    id: u32,
    mtime: u32,
    xattr: Option<Vec<u8>>,
}

fn item(flag: u8, name: &str, link: &str, data: &[u8]) -> Item {
    Item {
        name: name.to_owned(),
        flag,
        link: link.to_owned(),
        data: data.to_owned(),
        mode: 0o644,
        id: 0,
        mtime: 1_700_000_000,
        xattr: None,
    }
}

fn file(name: &str, data: &[u8]) -> Item {
    item(b'0', name, "", data)
}

fn block(name: &str, flag: u8, link: &str, size: usize, numbers: (u32, u32, u32)) -> [u8; BLOCK] {
    let mut block = own::header("", size as u64);
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, format!("{:07o}\0", numbers.0).as_bytes());
    put(108, format!("{:07o}\0", numbers.1).as_bytes());
    put(116, format!("{:07o}\0", numbers.1).as_bytes());
    put(136, format!("{:011o}\0", numbers.2).as_bytes());
    put(148, b"        ");
    put(156, &[flag]);
    put(157, link.as_bytes());
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// The entries' bytes, without the end of the tar.
fn tar(items: &[Item]) -> Vec<u8> {
    let mut tar = Vec::new();
    let mut add = |block: [u8; BLOCK], data: &[u8]| {
        tar.extend_from_slice(&block);
        tar.extend_from_slice(data);
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    };
    for item in items {
        if let Some(value) = &item.xattr {
            let mut record = b" SCHILY.xattr.user.x=".to_vec();
            record.extend_from_slice(value);
            record.push(b'\n');
            let len = (record.len()..)
                .find(|n| n.to_string().len() + record.len() == *n)
                .unwrap();
            let record = [len.to_string().as_bytes(), &record].concat();
            add(block("pax", b'x', "", record.len(), (0, 0, 0)), &record);
        }
        let long = item.name.len() > 100;
        if long {
            let name = [item.name.as_bytes(), b"\0"].concat();
            add(
                block("././@LongLink", b'L', "", name.len(), (0, 0, 0)),
                &name,
            );
        }
        let name = if long { "long" } else { &item.name };
        let numbers = (item.mode, item.id, item.mtime);
        add(
            block(name, item.flag, &item.link, item.data.len(), numbers),
            &item.data,
        );
    }
    tar
}

fn write_with(input: &[u8], options: &Options) -> Result<(Vec<u8>, Written), Error> {
    let mut source = tempfile::tempfile().unwrap();
    source.write_all(input).unwrap();
    let output = tempfile::NamedTempFile::new().unwrap();
    let written = write(&source, output.reopen().unwrap(), options, &|_| {})?;
    Ok((std::fs::read(output.path()).unwrap(), written))
}

fn convert(input: &[u8]) -> (Vec<u8>, Written) {
    write_with(input, &Options::default()).unwrap()
}

fn refused(items: &[Item]) -> String {
    match write_with(&tar(items), &Options::default()) {
        Err(Error::Unsuitable(why)) => why.to_string(),
        other => panic!("{other:?}"),
    }
}

fn gunzip(blob: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    MultiGzDecoder::new(blob).read_to_end(&mut tar).unwrap();
    tar
}

/// Checks the blob's tar: landmark, the input's entries, TOC, end. Returns the TOC's JSON.
fn check_tar(blob: &[u8], written: &Written, landmark: &str, entries: &[u8]) -> Vec<u8> {
    assert_eq!(
        (Digest::of(blob), blob.len() as u64),
        (written.digest, written.size)
    );
    let whole = gunzip(blob);
    assert_eq!(
        (Digest::of(&whole), whole.len() as u64),
        (written.diff_id, written.tar_size)
    );
    let mut mark = own::header(landmark, 1).to_vec();
    mark.push(own::LANDMARK_DATA);
    mark.resize(2 * BLOCK, 0);
    let rest = whole.strip_prefix(&mark[..]).expect("a landmark");
    let rest = rest
        .strip_prefix(entries)
        .expect("the input's entries, byte for byte");
    let end = rest.len() - 2 * BLOCK;
    assert_eq!(rest[end..], [0; 2 * BLOCK]);
    let json = rest[BLOCK..end].split(|&b| b == 0).next().unwrap().to_vec();
    assert_eq!(rest[..BLOCK], own::header(own::TOC_NAME, json.len() as u64));
    assert_eq!(Digest::of(&json), written.toc_digest);
    json
}

type Found = (String, u32, u32, i64, Vec<u8>, Option<Vec<u8>>);

/// Everything the reader finds, by name; data of files is read member by member.
fn read_back(blob: &[u8], written: &Written) -> BTreeMap<String, Found> {
    let tail = &blob[blob.len() - Footer::MAX_LEN..];
    let footer = Footer::parse(tail, blob.len() as u64).unwrap().unwrap();
    let limits = Limits::default();
    let member = &blob[footer.toc_offset as usize..blob.len() - gzip::FOOTER_LEN];
    let toc = Toc::verify(inflate_toc(member, &limits).unwrap(), &written.toc_digest).unwrap();
    let mut found = BTreeMap::new();
    toc.for_each::<crate::stargz::Error>(&limits, footer.toc_offset, &mut |entry| {
        let mut data = Vec::new();
        let kind = match entry.kind {
            EntryKind::Dir => "5".to_owned(),
            EntryKind::Symlink { target } => format!("2{}", String::from_utf8_lossy(&target)),
            EntryKind::HardLink { target } => format!("1{}", String::from_utf8_lossy(&target)),
            EntryKind::File { chunks, size } => {
                for chunk in chunks {
                    let mut raw = Vec::new();
                    let end = chunk.inner + u64::from(chunk.size);
                    inflate_member(&blob[chunk.offset as usize..], end, &mut raw).unwrap();
                    let bytes = &raw[chunk.inner as usize..];
                    verify_chunk(bytes, &chunk.digest.unwrap()).unwrap();
                    assert_eq!(chunk.at, data.len() as u64);
                    data.extend_from_slice(bytes);
                }
                assert_eq!(data.len() as u64, size);
                "0".to_owned()
            }
            other => format!("{other:?}"),
        };
        let xattr = entry.xattrs.first().map(|(_, value)| value.clone());
        let attributes = (kind, entry.mode, entry.uid, entry.mtime.secs, data, xattr);
        found.insert(
            String::from_utf8(entry.name.into_owned()).unwrap(),
            attributes,
        );
        Ok(())
    })
    .unwrap();
    found
}

/// What a reader should find of `items`: the last of each name.
fn expected(items: &[Item]) -> BTreeMap<String, Found> {
    let clean = |name: &str| {
        let parts = names::components(name.as_bytes())
            .collect::<Vec<_>>()
            .join(&b'/');
        String::from_utf8(parts).unwrap()
    };
    let one = |item: &Item| {
        let kind = match item.flag {
            b'1' => format!("1{}", clean(&item.link)),
            flag => format!("{}{}", char::from(flag), item.link),
        };
        let data = item.data.clone();
        let found = (
            kind,
            item.mode,
            item.id,
            item.mtime.into(),
            data,
            item.xattr.clone(),
        );
        (clean(&item.name), found)
    };
    items.iter().map(one).collect()
}

fn check(items: &[Item]) {
    let entries = tar(items);
    let input = [&entries[..], &[0; 2 * BLOCK]].concat();
    let (blob, written) = convert(&input);
    assert_eq!(written.input_diff_id, Digest::of(&input));
    check_tar(&blob, &written, own::NO_PREFETCH, &entries);
    let mut found = read_back(&blob, &written);
    assert!(found.remove(own::NO_PREFETCH).is_some());
    let expected = expected(items);
    assert!(found.keys().eq(expected.keys()));
    for (name, expected) in expected {
        assert!(found[&name] == expected, "{name} is {:?}", found[&name]);
    }
    // Written again it is the same, and so it is on another number of threads.
    let options = Options {
        threads: 3,
        ..Options::default()
    };
    assert!(write_with(&blob, &options).unwrap().0 == blob);
}

fn an_item() -> impl Strategy<Value = Item> {
    let size =
        prop_oneof![4 => 0..2000_usize, 2 => 0..300_000_usize, 1 => 500_000..1_700_000_usize];
    let name = (0..12_u8, 0..3_u8, prop_oneof![5 => Just(1), 1 => Just(40)]);
    let numbers = (0..0o7777_u32, 0..0o777_7777_u32, any::<u32>());
    (
        name,
        0..8_u8,
        size,
        any::<u8>(),
        numbers,
        prop::option::of(any::<Vec<u8>>()),
    )
        .prop_map(
            |((n, folder, repeat), kind, size, seed, (mode, id, mtime), xattr)| {
                let prefix = ["", "./", "/"][usize::from(seed % 3)];
                let name = format!("{prefix}d{folder}/{}", format!("äx{n}").repeat(repeat));
                let bytes = (0..size)
                    .map(|i| ((i * i) >> (seed % 8)) as u8)
                    .collect::<Vec<_>>();
                let made = match kind {
                    0 => item(b'5', &format!("{prefix}d{folder}/"), "", b""),
                    1 => item(b'2', &name, "../target", b""),
                    _ => file(&name, &bytes),
                };
                Item {
                    mode,
                    id,
                    mtime,
                    // Linux has no user.* attributes on symlinks, and no reader shows them.
                    xattr: xattr.filter(|_| kind != 1),
                    ..made
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_layers_survive(items in prop::collection::vec(an_item(), 0..40)) {
        check(&items);
    }
}

#[test]
fn chunks_end_where_files_do() {
    let noise: Vec<u8> = (0..1_600_000_u32)
        .map(|i| (i.wrapping_mul(i) >> 7) as u8)
        .collect();
    for size in [
        1, 511, 512, 513, 524_287, 524_288, 524_289, 1_048_576, 1_572_865,
    ] {
        check(&[
            file("a", b"a"),
            file("big", &noise[..size]),
            file("z", b"z"),
        ]);
    }
}

#[test]
fn headers_without_data_do_not_gather_in_memory_nor_hide_what_follows() {
    let mut items: Vec<Item> = (0..3000).map(|i| file(&format!("e{i}"), b"")).collect();
    items.push(file("data", b"x"));
    items.extend((0..3000).map(|i| item(b'2', &format!("s{i}"), "t", b"")));
    items.push(file("more", b"y"));
    check(&items);
}

#[test]
fn hard_links_keep_their_targets() {
    check(&[
        item(b'1', "b", "./c", b""),
        item(b'1', "a", "b", b""),
        file("./c", b"content"),
    ]);
}

#[test]
fn tars_may_lack_their_end_and_come_in_several_members() {
    let entries = tar(&[file("a", b"12345"), file("b", b"6789")]);
    let unpadded = &entries[..entries.len() - BLOCK + 4];
    let member = |raw: &[u8]| gzip::Packer::new(1).member(raw).unwrap();
    let members = [
        member(&entries[..700]),
        member(b""),
        member(&entries[700..]),
    ]
    .concat();
    let (blob, _) = convert(&entries);
    for input in [unpadded, &members, &[&entries[..], &[0; 9000]].concat()] {
        let (same, written) = convert(input);
        check_tar(&same, &written, own::NO_PREFETCH, &entries);
        assert!(same == blob);
    }
    let (empty, written) = convert(b"");
    check_tar(&empty, &written, own::NO_PREFETCH, b"");
}

#[test]
fn files_that_only_look_like_the_formats_own_are_not_dropped() {
    assert!(refused(&[file("stargz.index.json", b"mine")]).contains("keeps for itself"));
    assert!(refused(&[file(".prefetch.landmark", b"mine")]).contains("keeps for itself"));
    check(&[
        file("d/stargz.index.json", b"mine"),
        file("d/.prefetch.landmark", b"mine"),
    ]);
}

#[test]
fn what_cannot_be_carried_is_named() {
    for (items, why) in [
        (vec![item(b'S', "sp", "", b"")], "\"sp\" is a sparse file"),
        (
            vec![item(b'7', "c", "", b"")],
            "\"c\" is of the unknown kind '7'",
        ),
        (
            vec![item(b'1', "l", "gone", b"")],
            "\"l\" is a hard link to \"gone\"",
        ),
        (vec![file("a", b""), file("a/b", b"")], "\"a/b\" lies below"),
    ] {
        let said = refused(&items);
        assert!(said.contains(why), "{said}");
    }
    let mut broken = tar(&[file("a", b"12345")]);
    broken[3] ^= 1;
    let refused = write_with(&broken, &Options::default());
    assert!(matches!(
        refused,
        Err(Error::Unsuitable(Unsuitable::Malformed { at: 0, .. }))
    ));
    let cut = write_with(&tar(&[file("a", b"12345")])[..514], &Options::default());
    assert!(matches!(
        cut,
        Err(Error::Unsuitable(Unsuitable::Malformed { at: 514, .. }))
    ));
}

#[test]
fn a_damaged_gzip_stream_is_an_error() {
    let mut gzip = gzip::Packer::new(6)
        .member(&tar(&[file("a", &[7; 5000])]))
        .unwrap();
    // In the checksum: what inflates is a sound tar all the same.
    let checksum = gzip.len() - 6;
    gzip[checksum] ^= 0x55;
    assert!(matches!(
        write_with(&gzip, &Options::default()),
        Err(Error::Input(_))
    ));
}
