//! The footer: an empty gzip member at the very end of a blob, whose extra field says where the
//! TOC is.
//!
//! Two layouts are read, tried in this order, each compared byte for byte except for the gzip
//! header's time, flags of the compressor and operating system (numbers are bytes):
//!
//! ```text
//! eStargz, 51 (docs/estargz.md):        stargz, 47 (google/crfs stargz/stargz.go):
//!   10  gzip header, FLG = FEXTRA         10  gzip header, FLG = FEXTRA
//!    2  XLEN = 26                          2  XLEN = 22
//!    4  "SG", LEN = 22
//!   16  TOC offset, lower-case hex        16  TOC offset, lower-case hex
//!    6  "STARGZ"                           6  "STARGZ"
//!    5  deflate: one empty stored block    5  deflate: one empty stored block
//!    8  CRC32 = 0, ISIZE = 0               8  CRC32 = 0, ISIZE = 0
//! ```
//!
//! A third, 46 bytes long, says that the TOC is in another image; it is known and refused. Footers
//! of other formats (zstd:chunked, 40 bytes and no gzip) are no footers here, so a blob that
//! carries several is always read as what its gzip footer says.

use std::fmt;

use crate::stargz::Error;

/// First bytes of a gzip member that deflate compressed (RFC 1952, section 2.3).
const GZIP_MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
/// FLG of a gzip header with nothing but an extra field.
const FEXTRA: u8 = 4;
/// Length of a gzip header up to the extra field's length.
const FIXED: usize = 10;
/// What ends a TOC offset.
const MAGIC: &[u8] = b"STARGZ";
/// What an external TOC's footer has in its extra field.
const EXTERNAL: &[u8] = b"\x15\x00SG\x11\x00STARGZEXTERNALTOC";
/// One final stored block of length zero, then CRC32 and ISIZE of nothing.
const EMPTY_BODY: [u8; 13] = [1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
/// Length of the footer of a blob whose TOC is elsewhere.
const EXTERNAL_LEN: usize = 46;

/// Which of the two formats a blob is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// google/crfs, 47-byte footer. Its TOC comes without a digest in the manifest.
    Stargz,
    /// eStargz, 51-byte footer.
    EStargz,
}

/// What a blob's footer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// Where the TOC's gzip member starts in the blob; everything before is the layer's data.
    pub toc_offset: u64,
    /// The format, as the footer's length tells it.
    pub format: Format,
}

impl Footer {
    /// Length of the longest footer in bytes: how much of a blob's end [`Footer::parse`] wants.
    pub const MAX_LEN: usize = 51;

    /// Reads the footer in `tail`, the last `min(MAX_LEN, blob_size)` bytes of a blob (more does
    /// no harm, less finds less).
    ///
    /// `None`: an ordinary blob, neither stargz nor eStargz.
    ///
    /// # Errors
    /// The blob ends in a gzip member exactly as long as a footer that is none, the TOC offset
    /// does not lie inside the blob, or the TOC is in another image.
    pub fn parse(tail: &[u8], blob_size: u64) -> Result<Option<Self>, Error> {
        if tail.len() as u64 > blob_size {
            return Err(Error::FooterTail {
                tail: tail.len(),
                blob_size,
            });
        }
        // A true footer wins over bytes that only resemble another one.
        let mut damaged = None;
        for format in [Format::EStargz, Format::Stargz] {
            let Some(footer) = last(tail, format.footer_len()) else {
                continue;
            };
            match toc_offset(footer, format) {
                Ok(toc_offset) => return inside(toc_offset, format, blob_size).map(Some),
                Err(what) if footer.starts_with(&GZIP_MAGIC) => {
                    damaged = damaged.or(Some(Error::Footer { format, what }));
                }
                Err(_) => {}
            }
        }
        if last(tail, EXTERNAL_LEN).is_some_and(is_external) {
            return Err(Error::ExternalToc);
        }
        damaged.map_or(Ok(None), Err)
    }

    /// Length of this footer in bytes; the TOC's member ends where it begins.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.format.footer_len()
    }

    /// A footer is never empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }
}

impl Format {
    /// Length of this format's footer in bytes.
    #[must_use]
    pub const fn footer_len(self) -> usize {
        match self {
            Self::Stargz => 47,
            Self::EStargz => Footer::MAX_LEN,
        }
    }

    /// What stands between the gzip header and the TOC offset: XLEN, in eStargz also the subfield.
    const fn extra_head(self) -> &'static [u8] {
        match self {
            Self::Stargz => b"\x16\x00",
            Self::EStargz => b"\x1a\x00SG\x16\x00",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stargz => "stargz",
            Self::EStargz => "estargz",
        })
    }
}

/// The TOC offset in a footer of exactly this format, or which field is wrong.
fn toc_offset(footer: &[u8], format: Format) -> Result<u64, &'static str> {
    let rest = extra_field(footer)?;
    let rest = rest
        .strip_prefix(format.extra_head())
        .ok_or("its extra field has another length or subfield")?;
    let (hex, rest) = rest
        .split_first_chunk::<16>()
        .ok_or("it is cut in the toc offset")?;
    let rest = rest
        .strip_prefix(MAGIC)
        .ok_or("its extra field does not end in STARGZ")?;
    if rest != EMPTY_BODY {
        return Err("its body is not an empty stored block");
    }
    hex.iter()
        .try_fold(0, |offset, digit| Some(offset << 4 | nibble(*digit)?))
        .ok_or("its toc offset is not 16 lower-case hex digits")
}

/// What follows the fixed part of a gzip header that has nothing but an extra field.
fn extra_field(footer: &[u8]) -> Result<&[u8], &'static str> {
    let (header, rest) = footer
        .split_at_checked(FIXED)
        .ok_or("it is cut in the gzip header")?;
    if !header.starts_with(&GZIP_MAGIC) {
        return Err("it is no gzip member");
    }
    if header.get(GZIP_MAGIC.len()) != Some(&FEXTRA) {
        return Err("its header has other fields than the extra field");
    }
    Ok(rest)
}

fn is_external(footer: &[u8]) -> bool {
    extra_field(footer)
        .ok()
        .and_then(|rest| rest.strip_prefix(EXTERNAL))
        .is_some_and(|rest| rest == EMPTY_BODY)
}

/// A TOC offset of 0 would leave no data, one beyond the footer's start no TOC.
const fn inside(toc_offset: u64, format: Format, blob_size: u64) -> Result<Footer, Error> {
    let end = blob_size.saturating_sub(format.footer_len() as u64);
    if toc_offset == 0 || toc_offset >= end {
        return Err(Error::TocOffset {
            offset: toc_offset,
            end,
        });
    }
    Ok(Footer { toc_offset, format })
}

fn last(tail: &[u8], len: usize) -> Option<&[u8]> {
    tail.get(tail.len().checked_sub(len)?..)
}

fn nibble(digit: u8) -> Option<u64> {
    match digit {
        b'0'..=b'9' => Some(u64::from(digit - b'0')),
        b'a'..=b'f' => Some(u64::from(digit - b'a' + 10)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOB: u64 = 1000;

    fn footer(format: Format, toc_offset: &str) -> Vec<u8> {
        let mut footer = vec![0x1f, 0x8b, 8, FEXTRA, 0, 0, 0, 0, 0, 0xff];
        footer.extend_from_slice(format.extra_head());
        footer.extend_from_slice(toc_offset.as_bytes());
        footer.extend_from_slice(MAGIC);
        footer.extend_from_slice(&EMPTY_BODY);
        assert_eq!(footer.len(), format.footer_len());
        footer
    }

    /// The footer behind the end of other data, as a reader cuts it out of a blob.
    fn tail(footer: &[u8]) -> Vec<u8> {
        let mut tail = vec![0xaa; Footer::MAX_LEN - footer.len()];
        tail.extend_from_slice(footer);
        tail
    }

    #[test]
    fn both_formats_are_read() {
        for format in [Format::EStargz, Format::Stargz] {
            let end = BLOB - format.footer_len() as u64;
            for toc_offset in [1, 0xab, end - 1] {
                let tail = tail(&footer(format, &format!("{toc_offset:016x}")));
                let found = Footer::parse(&tail, BLOB).unwrap();
                let footer = Footer { toc_offset, format };
                assert_eq!(found, Some(footer));
                assert_eq!(BLOB - footer.len() as u64, end);
            }
        }
    }

    #[test]
    fn a_toc_offset_outside_the_blob_is_refused() {
        for format in [Format::EStargz, Format::Stargz] {
            let end = BLOB - format.footer_len() as u64;
            for lie in [0, end, BLOB, BLOB + 1, 1 << 40, i64::MAX as u64, u64::MAX] {
                let tail = tail(&footer(format, &format!("{lie:016x}")));
                let refused = Footer::parse(&tail, BLOB);
                assert_eq!(refused, Err(Error::TocOffset { offset: lie, end }));
            }
        }
        let alone = footer(Format::EStargz, "0000000000000001");
        assert!(matches!(
            Footer::parse(&alone, alone.len() as u64),
            Err(Error::TocOffset { offset: 1, end: 0 })
        ));
    }

    #[test]
    fn what_only_looks_like_a_footer_is_refused() {
        for format in [Format::EStargz, Format::Stargz] {
            for hex in [
                "00000000000000AB",
                "000000000000-001",
                "+000000000000001",
                "zzzzzzzzzzzzzzzz",
            ] {
                let refused = Footer::parse(&tail(&footer(format, hex)), BLOB);
                assert!(matches!(refused, Err(Error::Footer { format: f, .. }) if f == format));
            }
            let good = footer(format, "00000000000000ab");
            // Flags, extra field, subfield, magic, body, trailer; not time, XFL and OS.
            for at in (3..good.len()).filter(|at| !(4..FIXED).contains(at)) {
                let mut bad = good.clone();
                bad[at] ^= 0x80;
                let refused = Footer::parse(&tail(&bad), BLOB);
                assert!(
                    matches!(refused, Err(Error::Footer { .. })),
                    "{format} byte {at}"
                );
            }
        }
        let external = [
            &[0x1f, 0x8b, 8, FEXTRA, 0, 0, 0, 0, 0, 0xff],
            EXTERNAL,
            &EMPTY_BODY,
        ]
        .concat();
        assert_eq!(external.len(), EXTERNAL_LEN);
        assert_eq!(
            Footer::parse(&tail(&external), BLOB),
            Err(Error::ExternalToc)
        );
    }

    #[test]
    fn an_ordinary_blob_is_none_of_ours() {
        for len in [0, 1, 10, 39, 40, 45, 46, 47, 50, 51] {
            assert_eq!(Footer::parse(&vec![0; len], len as u64), Ok(None), "{len}");
            let cut = footer(Format::EStargz, "00000000000000ab");
            let cut = &cut[cut.len() - len..];
            let outcome = Footer::parse(cut, len as u64);
            assert_eq!(outcome.is_ok(), len < 51, "{len}");
        }
        assert!(matches!(
            Footer::parse(&[0; 51], 50),
            Err(Error::FooterTail {
                tail: 51,
                blob_size: 50
            })
        ));
    }

    #[test]
    fn a_true_footer_wins_over_one_that_looks_like_another() {
        let mut tail = tail(&footer(Format::Stargz, "00000000000000ab"));
        tail[..4].copy_from_slice(&[0x1f, 0x8b, 8, FEXTRA]);
        let found = Footer::parse(&tail, BLOB).unwrap().unwrap();
        assert_eq!((found.toc_offset, found.format), (0xab, Format::Stargz));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(tail: Vec<u8>, blob_size: u64) {
            let _ = Footer::parse(&tail, blob_size);
        }

        #[test]
        fn an_offset_is_never_outside(offset: u64, blob_size: u64) {
            let tail = footer(Format::EStargz, &format!("{offset:016x}"));
            if let Ok(Some(found)) = Footer::parse(&tail, blob_size) {
                prop_assert!(0 < found.toc_offset && found.toc_offset < blob_size - 51);
            }
        }
    }
}
