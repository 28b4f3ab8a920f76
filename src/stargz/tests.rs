//! Whole blobs: three that the formats' own writers made of one small tree, and damaged ones.
//!
//! `testdata/estargz.blob` (chunks of 256 bytes, prioritised files), `estargz-inner.blob` (several
//! files in one gzip member) and `stargz.blob` (google/crfs) hold the same twelve objects: every
//! type of entry, a file of three chunks, one of exactly two, empty files and a whiteout.

use std::collections::BTreeMap;
use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;

const ESTARGZ: &[u8] = include_bytes!("testdata/estargz.blob");
const INNER: &[u8] = include_bytes!("testdata/estargz-inner.blob");
const STARGZ: &[u8] = include_bytes!("testdata/stargz.blob");
const ESTARGZ_TOC: &str = "sha256:39694d368eb0a883f32f572f9d035cee13b25dcb228f8a00605db0967744224e";
const INNER_TOC: &str = "sha256:292b16fe3163b6ba1392cb19f07f3a62434f0fc06cd2f27314ec758576501dcc";

/// Names, and for a file its content, for anything else what it is.
type Tree = BTreeMap<String, Result<Vec<u8>, String>>;

fn toc_json(blob: &[u8]) -> Result<(Footer, Vec<u8>), Error> {
    let tail = &blob[blob.len().saturating_sub(Footer::MAX_LEN)..];
    let footer = Footer::parse(tail, blob.len() as u64)?.expect("a footer");
    let member = &blob[footer.toc_offset as usize..blob.len() - footer.len()];
    Ok((footer, inflate_toc(member, &Limits::default())?))
}

fn content(blob: &[u8], chunk: &Chunk) -> Result<Vec<u8>, Error> {
    let mut inflated = Vec::new();
    let end = chunk.inner + u64::from(chunk.size);
    inflate_member(&blob[chunk.offset as usize..], end, &mut inflated)?;
    let content = inflated.split_off(chunk.inner as usize);
    if let Some(digest) = &chunk.digest {
        verify_chunk(&content, digest)?;
    }
    Ok(content)
}

fn tree(blob: &[u8], expected: Option<&str>) -> Result<Tree, Error> {
    let (footer, json) = toc_json(blob)?;
    let toc = match expected {
        Some(digest) => Toc::verify(json, &digest.parse().unwrap())?,
        None => Toc::unverified(json),
    };
    let mut tree = Tree::new();
    toc.for_each(&Limits::default(), footer.toc_offset, &mut |entry| {
        let object = match entry.kind {
            EntryKind::File { chunks, .. } => {
                let parts: Result<Vec<_>, _> = chunks.iter().map(|c| content(blob, c)).collect();
                Ok(parts?.concat())
            }
            other => Err(format!(
                "{other:?} {:o} {} {}",
                entry.mode, entry.uid, entry.gid
            )),
        };
        tree.insert(String::from_utf8(entry.name.into_owned()).unwrap(), object);
        Ok::<(), Error>(())
    })?;
    Ok(tree)
}

/// The digits that the fixtures' longer files are made of.
fn digits(len: usize) -> Vec<u8> {
    let mut x = 12345_u32;
    let digit = |_| {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        b"0123456789abcdef"[(x >> 28) as usize]
    };
    (0..len).map(digit).collect()
}

fn expected_tree() -> Tree {
    let is = |kind: &str| Err(kind.to_owned());
    [
        ("", is("Dir 755 0 0")),
        ("bin", is("Dir 1777 0 0")),
        ("bin/tool", Ok(digits(700))),
        ("bin/two", Ok(digits(512))),
        ("bin/small", Ok(b"small\n".to_vec())),
        ("bin/empty", Ok(vec![])),
        ("bin/.wh.gone", Ok(vec![])),
        (
            "bin/alias",
            is(&format!(
                "Symlink {{ target: {:?} }} 777 0 0",
                b"../bin/tool"
            )),
        ),
        (
            "hard",
            is(&format!(
                "HardLink {{ target: {:?} }} 4755 0 0",
                b"bin/tool"
            )),
        ),
        ("dev/null", is("Char { major: 1, minor: 3 } 666 0 0")),
        ("dev/sda", is("Block { major: 8, minor: 0 } 660 0 0")),
        ("fifo", is("Fifo 644 0 0")),
        ("attr", Ok(b"x".to_vec())),
        ("redirect", is("Dir 755 0 0")),
        ("with space and é \"quoted\"", Ok(b"name\n".to_vec())),
    ]
    .map(|(name, object)| (name.to_owned(), object))
    .into()
}

#[test]
fn what_the_reference_writers_make_is_read() {
    for (blob, digest, format, landmark) in [
        (
            ESTARGZ,
            Some(ESTARGZ_TOC),
            Format::EStargz,
            Some(PREFETCH_LANDMARK),
        ),
        (
            INNER,
            Some(INNER_TOC),
            Format::EStargz,
            Some(NO_PREFETCH_LANDMARK),
        ),
        (STARGZ, None, Format::Stargz, None),
    ] {
        assert_eq!(toc_json(blob).unwrap().0.format, format);
        let mut expected = expected_tree();
        if let Some(landmark) = landmark {
            let name = String::from_utf8(landmark.to_vec()).unwrap();
            expected.insert(name, Ok(vec![0xf]));
        }
        assert_eq!(tree(blob, digest).unwrap(), expected);
    }
}

#[test]
fn a_chunk_is_its_digest_or_refused() {
    let digest = Digest::of(b"content");
    assert!(verify_chunk(b"content", &digest).is_ok());
    for wrong in [&b"contenu"[..], b"conten", b"content\0", b""] {
        let refused = verify_chunk(wrong, &digest);
        assert!(matches!(refused, Err(Error::ChunkDigest { .. })));
    }
}

#[test]
fn attributes_survive() {
    let (footer, json) = toc_json(ESTARGZ).unwrap();
    let mut seen = Vec::new();
    let toc = Toc::unverified(json);
    toc.for_each(&Limits::default(), footer.toc_offset, &mut |entry| {
        if matches!(&*entry.name, b"bin/tool" | b"attr" | b"redirect" | b"fifo") {
            let xattrs = entry
                .xattrs
                .into_iter()
                .map(|(name, value)| (name.into_owned(), value));
            let xattrs: Vec<_> = xattrs.collect();
            seen.push((entry.mode, entry.uid, entry.gid, entry.mtime.secs, xattrs));
        }
        Ok::<(), Error>(())
    })
    .unwrap();
    // The reference writer rounds to the second and leaves the epoch out.
    let when = 1_704_164_646;
    let yes = (b"user.crfs".to_vec(), b"yes".to_vec());
    assert_eq!(
        seen,
        [
            (0o4755, 70_000, u32::MAX - 1, when, vec![]),
            (0o644, 0, 0, 0, vec![]),
            (0o644, 0, 0, when, vec![yes]),
            (0o755, 0, 0, when, vec![]),
        ]
    );
}

#[test]
fn a_legacy_toc_names_digests_only_of_whole_files() {
    let (_, json) = toc_json(STARGZ).unwrap();
    let digest = Digest::of(&json);
    let verified = Toc::verify(json, &digest).unwrap();
    let refused: Result<(), Error> =
        verified.for_each(&Limits::default(), 1 << 20, &mut |_| Ok(()));
    let why = EntryError::DigestMissing { at: 0 };
    assert!(matches!(refused, Err(Error::Entry { why: w, .. }) if w == why));
}

fn tar_entry(name: &str, kind: tar::EntryType, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name).unwrap();
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_cksum();
    let mut entry = header.as_bytes().to_vec();
    entry.extend_from_slice(content);
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

const JSON: &[u8] = br#"{"version":1,"entries":[]}"#;

#[test]
fn the_toc_is_the_only_file_in_its_tar() {
    use tar::EntryType::{Directory, GNULongName, Regular, XHeader};
    let end = vec![0; 1024];
    let toc = tar_entry(TOC_NAME, Regular, JSON);
    let unpack = |parts: &[&[u8]]| inflate_toc(&gzip(&parts.concat()), &Limits::default());
    assert_eq!(unpack(&[&toc, &end]).unwrap(), JSON);
    assert_eq!(unpack(&[&toc]).unwrap(), JSON);
    assert_eq!(unpack(&[&toc, &end, &end, b"rest"]).unwrap(), JSON);
    for other in [
        tar_entry("other", Regular, b"x"),
        tar_entry(&format!("./{TOC_NAME}"), Regular, JSON),
        tar_entry(TOC_NAME, Directory, b""),
        tar_entry("pax", XHeader, b"26 path=stargz.index.json\n"),
        tar_entry("././@LongLink", GNULongName, b"stargz.index.json\0"),
    ] {
        assert!(matches!(
            unpack(&[&other, &toc, &end]),
            Err(Error::TocTar { .. })
        ));
    }
    assert!(matches!(
        unpack(&[&toc, &toc, &end]),
        Err(Error::TocTar { .. })
    ));
    assert!(matches!(unpack(&[&end]), Err(Error::TocTar { .. })));
    assert!(matches!(unpack(&[]), Err(Error::TocTar { .. })));
    assert!(matches!(unpack(&[&toc[..100]]), Err(Error::TocUnpack(_))));
    let size = Error::TocSize {
        expected: JSON.len() as u64,
        found: 8,
    };
    assert_eq!(unpack(&[&toc[..520]]), Err(size));
    let mut checksum = toc.clone();
    checksum[150] ^= 1;
    assert!(matches!(
        unpack(&[&checksum, &end]),
        Err(Error::TocUnpack(_))
    ));
}

#[test]
fn the_tocs_gzip_member_is_checked_to_its_end() {
    let toc = [
        tar_entry(TOC_NAME, tar::EntryType::Regular, JSON),
        vec![0; 1024],
    ]
    .concat();
    let member = gzip(&toc);
    let limits = Limits::default();
    for cut in 0..member.len() {
        let refused = inflate_toc(&member[..cut], &limits);
        assert!(
            matches!(refused, Err(Error::TocUnpack(_) | Error::TocSize { .. })),
            "{cut}"
        );
    }
    let mut crc = member.clone();
    let at = crc.len() - 6;
    crc[at] ^= 1;
    assert!(matches!(
        inflate_toc(&crc, &limits),
        Err(Error::TocUnpack(_))
    ));
    // What follows the member is none of ours.
    let trailing = [&member[..], b"rest"].concat();
    assert_eq!(inflate_toc(&trailing, &limits).unwrap(), JSON);
    // A TOC offset into a member's middle.
    assert!(inflate_toc(&member[1..], &limits).is_err());
    assert!(inflate_toc(&ESTARGZ[1..], &limits).is_err());
}

#[test]
fn a_large_toc_is_refused_early() {
    let limits = Limits {
        toc_json: 1 << 20,
        ..Limits::default()
    };
    let sized = |size: usize| {
        let spaces = vec![b' '; size];
        gzip(&tar_entry(TOC_NAME, tar::EntryType::Regular, &spaces))
    };
    assert_eq!(
        inflate_toc(&sized(1 << 20), &limits).unwrap().len(),
        1 << 20
    );
    let refused = inflate_toc(&sized((1 << 20) + 1), &limits);
    assert_eq!(refused, Err(Error::TocTooLarge { limit: 1 << 20 }));
    // Behind the tar's end nothing is read for ever either.
    let bomb = [
        tar_entry(TOC_NAME, tar::EntryType::Regular, JSON),
        vec![0; 4 << 20],
    ]
    .concat();
    let refused = inflate_toc(&gzip(&bomb), &limits);
    assert_eq!(refused, Err(Error::TocTooLarge { limit: 1 << 20 }));
    // A size that is only claimed reserves nothing.
    let mut header = tar::Header::new_ustar();
    header.set_path(TOC_NAME).unwrap();
    header.set_size(200 << 20);
    header.set_cksum();
    let refused = inflate_toc(&gzip(header.as_bytes()), &Limits::default());
    assert!(matches!(
        refused,
        Err(Error::TocSize { .. } | Error::TocUnpack(_))
    ));
}

proptest! {
    #[test]
    fn a_damaged_blob_is_refused_or_read_right(
        blob in prop::sample::select(vec![(ESTARGZ, ESTARGZ_TOC), (INNER, INNER_TOC)]),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4),
    ) {
        let mut damaged = blob.0.to_vec();
        for (at, mask) in flips {
            let at = at.index(damaged.len() - Footer::MAX_LEN);
            damaged[at] ^= mask;
        }
        let (good, found) = (tree(blob.0, Some(blob.1)).unwrap(), tree(&damaged, Some(blob.1)));
        prop_assert!(found.is_err() || found == Ok(good));
    }

    #[test]
    fn no_toc_member_makes_it_panic(bytes: Vec<u8>, flips: Vec<(prop::sample::Index, u8)>) {
        let _ = inflate_toc(&bytes, &Limits::default());
        let (_, json) = toc_json(ESTARGZ).unwrap();
        let mut json = json;
        for (at, mask) in flips {
            let at = at.index(json.len());
            json[at] ^= mask;
        }
        let toc = Toc::unverified(json);
        let _: Result<(), Error> = toc.for_each(&Limits::default(), 3000, &mut |_| Ok(()));
    }
}
