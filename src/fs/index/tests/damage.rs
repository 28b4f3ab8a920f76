//! A damaged index: noticed, never believed, never fatal.

use std::borrow::Cow;

use proptest::prelude::*;

use super::*;
use crate::blob::LayerMap;

/// A layer with something of everything, larger than a few blocks.
fn layer() -> Built {
    let names: Vec<String> = (0..600).map(|i| format!("d{}/file-{i}", i % 7)).collect();
    let chunks: Vec<[Chunk; 2]> = (0..600)
        .map(|i| [chunk(i * 50, 0, 0, 10), chunk(i * 50, 10, 10, 3)])
        .collect();
    let mut entries = vec![
        symlink("s", "target"),
        link("l", "d0/file-0"),
        file("d1/.wh.w"),
    ];
    for (name, chunks) in names.iter().zip(&chunks) {
        let mut one = entry(name, EntryKind::File { size: 13, chunks });
        one.xattrs = vec![(Cow::Borrowed(b"user.n"), name.as_bytes().to_vec())];
        entries.push(one);
    }
    built(&entries).unwrap()
}

/// Asks everything there is to ask; what it says must be right or an error.
fn ask(index: &Index) -> Result<Vec<Inode>, Damaged> {
    let mut all = Vec::new();
    for number in 1..=u64::from(index.summary().inodes.min(10_000)) {
        let Some(node) = index.find(Ino(number))? else {
            continue;
        };
        for (_, value) in index.xattrs(&node)?.iter() {
            std::hint::black_box(value);
        }
        match &node.kind {
            Kind::Folder { entries, .. } => {
                for item in index.entries(entries, 0).take(10_000) {
                    let (name, ..) = item?;
                    index.lookup(entries, name)?;
                }
            }
            Kind::Symlink { target, len } => drop(index.target(*target, *len)?),
            Kind::File { size, chunks } => index.parts(chunks, 0, *size, &mut |_| ())?,
            Kind::Char { .. } | Kind::Block { .. } | Kind::Fifo => {}
        }
        all.push(node);
    }
    for member in 0..index.member_count().min(10_000) {
        index.member(MemberId(member));
        index.chunks_of(MemberId(member), &mut |chunk| {
            index.chunk(chunk);
        });
    }
    Ok(all)
}

#[derive(Debug, Clone)]
enum Damage {
    Flip(f64, u8),
    Cut(f64),
    Zero(f64, usize),
    Grow(usize),
}

fn damages() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (0.0..1.0_f64, 1..=255_u8).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        1 => (0.0..1.0_f64).prop_map(Damage::Cut),
        1 => (0.0..1.0_f64, 1..5000_usize).prop_map(|(at, len)| Damage::Zero(at, len)),
        1 => (1..5000_usize).prop_map(Damage::Grow),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a place somewhere in the file"
    )]
    let place = |share: f64| (share * bytes.len() as f64) as usize;
    match *damage {
        Damage::Flip(at, bits) => {
            let at = place(at);
            bytes[at] ^= bits;
        }
        Damage::Cut(at) => {
            let at = place(at);
            bytes.truncate(at);
        }
        Damage::Zero(at, len) => {
            let at = place(at);
            let end = bytes.len().min(at + len);
            bytes[at..end].fill(0);
        }
        Damage::Grow(by) => bytes.resize(bytes.len() + by, 1),
    }
}

#[test]
fn whatever_is_damaged_is_noticed_or_changes_nothing() {
    let whole = layer();
    let good = std::fs::read(&whole.path).unwrap();
    let right = ask(&whole.index).unwrap();
    assert!(good.len() > 5 * (16 << 10));
    whole.index.verify().unwrap();
    let path = whole.path.with_extension("bad");
    let run = |damage: Damage| {
        let mut bytes = good.clone();
        apply(&mut bytes, &damage);
        std::fs::write(&path, &bytes).unwrap();
        let Ok(index) = Index::open(&path, &whole.toc) else {
            return Ok(());
        };
        // Only the header's padding is not covered by a checksum.
        let untouched = bytes[..260] == good[..260] && bytes[4096..] == good[4096..];
        prop_assert_eq!(index.verify().is_ok(), untouched);
        match ask(&index) {
            Ok(all) => prop_assert_eq!(&all, &right),
            Err(_) => prop_assert!(!untouched),
        }
        Ok(())
    };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner.run(&damages(), run).unwrap();
}

/// Checksums only show damage by accident: one who rewrites them too must not get further than an
/// error or another tree.
#[test]
fn rewritten_checksums_do_not_lead_out_of_bounds() {
    let whole = layer();
    let good = std::fs::read(&whole.path).unwrap();
    let path = whole.path.with_extension("bad");
    let run = |damages: Vec<Damage>| {
        let mut bytes = good.clone();
        for damage in damages {
            if let Damage::Flip(..) | Damage::Zero(..) = damage {
                apply(&mut bytes, &damage);
            }
        }
        restore(&mut bytes, &good);
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(index) = Index::open(&path, &whole.toc) {
            let _ = ask(&index);
        }
        Ok(())
    };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let several = proptest::collection::vec(damages(), 1..20);
    runner.run(&several, run).unwrap();
}

/// Puts the good header back with checksums that fit the bytes.
fn restore(bytes: &mut [u8], good: &[u8]) {
    use crate::fs::index::format::{BLOCK, HEADER_LEN, Header, Section};
    let mut header = Header::decode(good).unwrap();
    let sums = header.sections[Section::Checksums as usize].start as usize;
    let start = HEADER_LEN as usize;
    let table: Vec<u8> = bytes[start..sums]
        .chunks(BLOCK as usize)
        .flat_map(|block| crc32fast::hash(block).to_le_bytes())
        .collect();
    bytes[sums..].copy_from_slice(&table);
    header.sums_crc = crc32fast::hash(&table);
    let encoded = header.encode();
    bytes[..encoded.len()].copy_from_slice(&encoded);
}
