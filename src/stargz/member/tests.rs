//! Members as gzip allows them, and as it does not.

use std::io::Write as _;

use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use proptest::prelude::*;

use super::*;

fn member(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * i) >> 5) as u8).collect()
}

fn inflate(compressed: &[u8], wanted: u64) -> (Vec<u8>, Result<(), Error>) {
    let mut out = Vec::new();
    let outcome = inflate_member(compressed, wanted, &mut out);
    (out, outcome)
}

#[test]
fn what_is_wanted_comes_out_and_no_more() {
    let content = content(300_000);
    let compressed = [member(&content), b"garbage".to_vec()].concat();
    for wanted in [0, 1, 4096, 299_999, 300_000] {
        // A large spare capacity is no invitation.
        let mut out = Vec::with_capacity(1 << 20);
        inflate_member(&compressed, wanted as u64, &mut out).unwrap();
        assert_eq!(out, &content[..wanted]);
    }
}

#[test]
fn less_than_wanted_is_an_error_that_keeps_what_came() {
    let content = content(1000);
    for rest in [
        &b""[..],
        b"garbage",
        &[0; 100],
        &[0x1f, 0x8b],
        &[0x1f, 0x00],
    ] {
        let compressed = [&*member(&content), rest].concat();
        let (out, outcome) = inflate(&compressed, 1001);
        assert_eq!(out, content);
        let short = Error::MemberShort {
            inflated: 1000,
            wanted: 1001,
        };
        assert_eq!(outcome, Err(short), "{rest:?}");
    }
}

#[test]
fn a_cut_anywhere_is_an_error_until_all_has_come_out() {
    let content = content(5000);
    let compressed = member(&content);
    for cut in 0..compressed.len() - TRAILER as usize - 1 {
        let (out, outcome) = inflate(&compressed[..cut], 5000);
        assert!(content.starts_with(&out));
        assert_eq!(outcome.is_ok(), out.len() == 5000, "{cut}");
    }
    // The trailer is not needed, nor is it looked at.
    let mut wrong_crc = compressed.clone();
    let at = wrong_crc.len() - 5;
    wrong_crc[at] ^= 1;
    for good in [&compressed[..compressed.len() - 8], &wrong_crc] {
        assert_eq!(inflate(good, 5000), (content.clone(), Ok(())));
    }
}

#[test]
fn members_continue_each_other_and_empty_ones_cost_little() {
    let empty = member(b"").repeat(100_000);
    let compressed = [
        &member(b"one ")[..],
        &empty,
        &member(b"two"),
        &member(b"no"),
    ]
    .concat();
    assert_eq!(inflate(&compressed, 7), (b"one two".to_vec(), Ok(())));
}

#[test]
fn every_header_that_gzip_allows_is_read() {
    let mut encoder = GzBuilder::new()
        .extra(vec![7; 65_535])
        .filename("name")
        .comment("comment")
        .write(Vec::new(), Compression::best());
    encoder.write_all(b"content").unwrap();
    let mut full = encoder.finish().unwrap();
    full[3] |= FHCRC;
    let crc_at = FIXED_AND_EXTRA + b"name\0comment\0".len();
    full.splice(crc_at..crc_at, [1, 2]);
    assert_eq!(inflate(&full, 7), (b"content".to_vec(), Ok(())));

    let mut no_extra = member(b"content");
    no_extra[3] |= FEXTRA;
    no_extra.splice(10..10, [0, 0]);
    assert_eq!(inflate(&no_extra, 7), (b"content".to_vec(), Ok(())));
}

const FIXED_AND_EXTRA: usize = 10 + 2 + 65_535;

#[test]
fn bad_headers_are_refused() {
    let good = member(b"content");
    for (at, byte) in [(0, 0x1e), (1, 0), (2, 7), (3, 0x20), (3, 0x80)] {
        let mut bad = good.clone();
        bad[at] = byte;
        assert!(
            matches!(inflate(&bad, 7).1, Err(Error::MemberHeader(_))),
            "{at}"
        );
    }
    let mut endless = vec![0x1f, 0x8b, 8, FNAME, 0, 0, 0, 0, 0, 0];
    endless.resize(1 << 20, b'x');
    assert!(matches!(
        inflate(&endless, 7).1,
        Err(Error::MemberHeader(_))
    ));
}

#[test]
fn damaged_deflate_is_refused() {
    let header = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0];
    // A reserved block type, a stored block that lies about its length, a distance before the
    // start, an oversubscribed code.
    for body in [
        &[0x07][..],
        &[0x01, 1, 0, 0, 0],
        &[0x03, 0x02],
        &[0x05, 0xff, 0xff, 0xff],
    ] {
        let compressed = [&header, body, &[0; 64]].concat();
        let (out, outcome) = inflate(&compressed, 1 << 20);
        assert!(matches!(
            outcome,
            Err(Error::MemberData { .. } | Error::MemberShort { .. })
        ));
        assert!(out.len() < 100_000, "{}", out.len());
    }
}

#[test]
fn a_claim_alone_reserves_no_memory() {
    let (out, outcome) = inflate(&member(b"content"), 1 << 40);
    assert!(outcome.is_err() && out.capacity() < 1 << 20);
    let bomb = member(&vec![0; 10 << 20]);
    let (out, outcome) = inflate(&bomb, 4097);
    assert!(outcome.is_ok() && out.len() == 4097 && out.capacity() < 10_000);
}

#[test]
fn an_inflater_can_be_used_again() {
    let mut inflater = MemberInflater::new(10);
    let mut out = Vec::new();
    assert!(inflater.push(b"garbage", &mut out).is_err());
    inflater.reset(5);
    assert_eq!(
        inflater.push(&member(b"first")[..12], &mut out),
        Ok(Status::More)
    );
    out.clear();
    inflater.reset(6);
    assert_eq!(
        inflater.push(&member(b"second"), &mut out),
        Ok(Status::Done)
    );
    assert_eq!((&*out, inflater.inflated()), (&b"second"[..], 6));
    assert_eq!(inflater.push(b"ignored", &mut out), Ok(Status::Done));
}

proptest! {
    #[test]
    fn pieces_make_no_difference(
        content in prop::collection::vec(any::<[u8; 2]>(), 0..3000),
        piece in 1_usize..400,
    ) {
        let content = content.concat();
        let compressed = [member(&content), member(b"more")].concat();
        let mut inflater = MemberInflater::new(content.len() as u64 + 4);
        let mut out = Vec::new();
        for piece in compressed.chunks(piece) {
            inflater.push(piece, &mut out).unwrap();
        }
        prop_assert!(inflater.finish().is_ok());
        prop_assert_eq!(out, [&*content, b"more"].concat());
    }

    #[test]
    fn no_bytes_make_it_panic(flips: Vec<(prop::sample::Index, u8)>, wanted in 0_u64..10_000) {
        let mut compressed = member(&content(5000));
        for (at, mask) in flips {
            let at = at.index(compressed.len());
            compressed[at] ^= mask;
        }
        let (out, outcome) = inflate(&compressed, wanted);
        prop_assert!(out.len() as u64 <= wanted);
        prop_assert!(outcome.is_err() || out.len() as u64 == wanted);
    }
}
