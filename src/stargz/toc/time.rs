//! `modtime` of a TOC: RFC 3339 with up to nine digits of a second's fraction.
//!
//! The reference writers round to whole seconds in UTC; a fraction and a time zone are read because
//! the format's definition allows them. Years are 0000 to 9999, so no time overflows `statx`.

use crate::stargz::EntryError;
use crate::stargz::error::quoted;
use crate::stargz::toc::Mtime;

const NANO_DIGITS: usize = 9;
const DAY: i64 = 86_400;

/// Reads a `modtime`; an empty one means "zero or unknown" and is the epoch.
pub(super) fn parse(text: &str) -> Result<Mtime, EntryError> {
    if text.is_empty() {
        return Ok(Mtime::default());
    }
    rfc3339(text.as_bytes()).ok_or_else(|| EntryError::Mtime(quoted(text.as_bytes())))
}

fn rfc3339(text: &[u8]) -> Option<Mtime> {
    let (stamp, rest) = text.split_first_chunk::<19>()?;
    let [year, month, day, hour, minute, second] = fields(
        stamp,
        [(0, 4), (5, 2), (8, 2), (11, 2), (14, 2), (17, 2)],
        b"--T::",
    )?;
    let in_range = (1..=12).contains(&month)
        && (1..=days_in(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !in_range {
        return None;
    }
    let (nanos, zone) = fraction(rest)?;
    let secs = days_since_epoch(year, month, day) * DAY + hour * 3600 + minute * 60 + second;
    Some(Mtime {
        secs: secs - zone_offset(zone)?,
        nanos,
    })
}

/// Six decimal fields at fixed places, with one separator after each but the last.
fn fields(text: &[u8], places: [(usize, usize); 6], separators: &[u8; 5]) -> Option<[i64; 6]> {
    let mut values = [0; 6];
    for ((start, len), value) in places.into_iter().zip(&mut values) {
        *value = number(text.get(start..start + len)?)?;
    }
    for ((start, len), separator) in places.into_iter().zip(separators) {
        (text.get(start + len)? == separator).then_some(())?;
    }
    Some(values)
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |value, digit| {
        digit
            .is_ascii_digit()
            .then(|| value * 10 + i64::from(digit - b'0'))
    })
}

/// A fraction, if there is one, in nanoseconds, and what follows it.
fn fraction(rest: &[u8]) -> Option<(u32, &[u8])> {
    let Some(rest) = rest.strip_prefix(b".") else {
        return Some((0, rest));
    };
    let len = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, zone) = rest.split_at_checked(len)?;
    if len == 0 || len > NANO_DIGITS {
        return None;
    }
    let scale = 10_i64.pow(u32::try_from(NANO_DIGITS - len).ok()?);
    let nanos = u32::try_from(number(digits)? * scale).ok()?;
    Some((nanos, zone))
}

/// `Z` or `+hh:mm`, in seconds east of UTC.
fn zone_offset(zone: &[u8]) -> Option<i64> {
    if zone == b"Z" {
        return Some(0);
    }
    let [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] = *zone else {
        return None;
    };
    let (hours, minutes) = (number(&[h1, h2])?, number(&[m1, m2])?);
    if hours > 23 || minutes > 59 {
        return None;
    }
    let east = hours * 3600 + minutes * 60;
    Some(if sign == b'+' { east } else { -east })
}

const fn leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

const fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar. Years are counted from March, so that
/// the leap day is a year's last and the months before it have one formula.
const fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    const EPOCH: i64 = 719_468;
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - EPOCH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_exactly() {
        for (text, secs, nanos) in [
            ("", 0, 0),
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2019-08-20T10:30:43Z", 1_566_297_043, 0),
            ("2024-02-29T23:59:59.123456789Z", 1_709_251_199, 123_456_789),
            ("2024-01-02T03:04:05.5Z", 1_704_164_645, 500_000_000),
            ("2024-01-02T05:04:05+02:00", 1_704_164_645, 0),
            ("2024-01-01T21:34:05-05:30", 1_704_164_645, 0),
            ("1969-12-31T23:59:59.25Z", -1, 250_000_000),
            ("1677-09-21T00:12:43Z", -9_223_372_037, 0),
            ("0000-01-01T00:00:00Z", -62_167_219_200, 0),
            ("0001-01-01T00:00:00Z", -62_135_596_800, 0),
            ("9999-12-31T23:59:59Z", 253_402_300_799, 0),
            ("2000-02-29T00:00:00Z", 951_782_400, 0),
        ] {
            assert_eq!(parse(text), Ok(Mtime { secs, nanos }), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "yesterday",
            "2024",
            "2024-01-02",
            "2024-01-02 03:04:05Z",
            "2024-01-02T03:04:05",
            "2024-01-02T03:04:05z",
            "2024-01-02T03:04:05Zx",
            "2024-01-02T03:04:60Z",
            "2024-01-02T24:00:00Z",
            "2024-13-02T03:04:05Z",
            "2024-00-02T03:04:05Z",
            "2023-02-29T03:04:05Z",
            "1900-02-29T03:04:05Z",
            "2024-04-31T03:04:05Z",
            "2024-01-02T03:04:05.Z",
            "2024-01-02T03:04:05.1234567890Z",
            "2024-01-02T03:04:05+24:00",
            "2024-01-02T03:04:05+2:00",
            "-001-01-02T03:04:05Z",
            "33658-09-27T01:46:40Z",
            "20+4-01-02T03:04:05Z",
            "２024-01-02T03:04:05Z",
        ] {
            assert!(matches!(parse(text), Err(EntryError::Mtime(_))), "{text}");
        }
    }
}
