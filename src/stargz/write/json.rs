//! Lines of the TOC: one JSON object for each entry and for each further chunk of its data
//! (stargz-snapshotter `docs/estargz.md`, "TOC").
//!
//! What depends on the entry alone is written where the tar is read ([`head`], [`chunk_head`]);
//! what depends on where the data came to lie is added later ([`place`]). The objects are left open.

use std::io::Write as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::error::Unsuitable;
use super::names::shown;
use super::scan::{Entry, Kind};
use crate::oci::Digest;
use crate::stargz::UNREAD;

const SECONDS_A_DAY: i64 = 86_400;

/// Where a piece of a file's data is.
pub(super) struct Place {
    /// Offset in the blob of the gzip member it is in.
    pub(super) member: u64,
    /// Its offset in the inflated member.
    pub(super) inner: usize,
    /// Its offset in the file.
    pub(super) at: u64,
    /// Its length.
    pub(super) len: usize,
    /// Length of the whole file.
    pub(super) of: u64,
}

/// Appends `{` and what an entry says about itself. Its strings were found to be UTF-8.
pub(super) fn head(entry: &Entry, out: &mut Vec<u8>) -> Result<(), Unsuitable> {
    out.extend_from_slice(b"{\"name\":");
    text(&entry.name, out);
    out.extend_from_slice(b",\"type\":\"");
    out.extend_from_slice(kind(entry.kind).as_bytes());
    out.push(b'"');
    number("size", entry.size, out);
    out.extend_from_slice(b",\"modtime\":\"");
    time(entry.mtime, out).ok_or_else(|| Unsuitable::OutOfRange {
        name: shown(&entry.name),
        field: "mtime",
    })?;
    out.push(b'"');
    if !entry.link.is_empty() {
        out.extend_from_slice(b",\"linkName\":");
        text(&entry.link, out);
    }
    number("mode", entry.mode.into(), out);
    number("uid", entry.uid.into(), out);
    number("gid", entry.gid.into(), out);
    number("devMajor", entry.device.0.into(), out);
    number("devMinor", entry.device.1.into(), out);
    xattrs(&entry.xattrs, out);
    Ok(())
}

/// Appends `{` and what a further chunk of an entry says about itself.
pub(super) fn chunk_head(entry: &Entry, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"name\":");
    text(&entry.name, out);
    out.extend_from_slice(b",\"type\":\"chunk\"");
}

/// Appends that a chunk before the landmark is not read by what reads the others: a key of our own,
/// which other readers of the format pass over.
pub(super) fn unread(out: &mut Vec<u8>) {
    append(out, format_args!(",\"{UNREAD}\":true"));
}

/// Appends where a piece of data is and what it hashes to. A file in one piece needs no more.
pub(super) fn place(place: &Place, digest: Digest, out: &mut Vec<u8>) {
    number("offset", place.member, out);
    number("innerOffset", place.inner as u64, out);
    number("chunkOffset", place.at, out);
    if place.len as u64 != place.of {
        number("chunkSize", place.len as u64, out);
    }
    digest_field("chunkDigest", digest, out);
}

/// Appends a digest.
pub(super) fn digest_field(key: &str, digest: Digest, out: &mut Vec<u8>) {
    append(out, format_args!(",\"{key}\":\"{digest}\""));
}

/// Zero is what a missing number means.
fn number(key: &str, value: u64, out: &mut Vec<u8>) {
    if value != 0 {
        append(out, format_args!(",\"{key}\":{value}"));
    }
}

fn text(bytes: &[u8], out: &mut Vec<u8>) {
    let text = String::from_utf8_lossy(bytes);
    // Writing a string to memory cannot fail.
    let _ = serde_json::to_writer(out, &text);
}

fn xattrs(xattrs: &[(Vec<u8>, Vec<u8>)], out: &mut Vec<u8>) {
    if xattrs.is_empty() {
        return;
    }
    out.extend_from_slice(b",\"xattrs\":{");
    for (i, (name, value)) in xattrs.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        text(name, out);
        append(out, format_args!(":\"{}\"", BASE64_STANDARD.encode(value)));
    }
    out.push(b'}');
}

/// RFC 3339 in UTC, with nanoseconds where there are any; it has four digits for the year.
fn time((seconds, nanos): (i64, u32), out: &mut Vec<u8>) -> Option<()> {
    let (year, month, day) = date(seconds.div_euclid(SECONDS_A_DAY));
    (0..=9999).contains(&year).then_some(())?;
    let clock = seconds.rem_euclid(SECONDS_A_DAY);
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    append(
        out,
        format_args!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"),
    );
    if nanos != 0 {
        let digits = format!(".{nanos:09}");
        out.extend_from_slice(digits.trim_end_matches('0').as_bytes());
    }
    out.push(b'Z');
    Some(())
}

/// Year, month and day of a day since the epoch, in the Gregorian calendar extended backwards.
///
/// Years are counted from March, so that the day that comes and goes is the last of the year: then
/// a month's first day is a linear function of the month, rounded.
fn date(days: i64) -> (i64, i64, i64) {
    const DAYS_TO_EPOCH: i64 = 719_468;
    const ERA: i64 = 146_097;
    let days = days.saturating_add(DAYS_TO_EPOCH);
    let (era, day) = (days.div_euclid(ERA), days.rem_euclid(ERA));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let first = (153 * month + 2) / 5;
    let (month, carry) = match month {
        0..=9 => (month + 3, 0),
        _ => (month - 9, 1),
    };
    (era * 400 + year + carry, month, day - first + 1)
}

fn append(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to memory cannot fail.
    let _ = out.write_fmt(text);
}

const fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Dir => "dir",
        Kind::File => "reg",
        Kind::Symlink => "symlink",
        Kind::HardLink => "hardlink",
        Kind::Char => "char",
        Kind::Block => "block",
        Kind::Fifo => "fifo",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        for (at, text) in [
            ((0, 0), Some("1970-01-01T00:00:00Z")),
            ((951_782_400, 0), Some("2000-02-29T00:00:00Z")),
            ((951_868_800, 0), Some("2000-03-01T00:00:00Z")),
            ((4_107_542_399, 0), Some("2100-02-28T23:59:59Z")),
            ((4_107_542_400, 0), Some("2100-03-01T00:00:00Z")),
            (
                (1_700_000_000, 120_000_000),
                Some("2023-11-14T22:13:20.12Z"),
            ),
            ((-1, 1), Some("1969-12-31T23:59:59.000000001Z")),
            ((253_402_300_799, 0), Some("9999-12-31T23:59:59Z")),
            ((253_402_300_800, 0), None),
            ((-62_167_219_200, 0), Some("0000-01-01T00:00:00Z")),
            ((-62_167_219_201, 0), None),
            ((i64::MAX, 0), None),
            ((i64::MIN, 0), None),
        ] {
            let mut out = Vec::new();
            let written = time(at, &mut out).map(|()| String::from_utf8(out).unwrap());
            assert_eq!(written.as_deref(), text, "{at:?}");
        }
    }
}
