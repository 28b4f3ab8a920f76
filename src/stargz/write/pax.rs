//! PAX extended headers (POSIX.1-2017, pax, "pax Extended Header"): records of the form
//! `LEN KEY=VALUE\n`, whose values replace fields of the header that follows.

use super::error::Unsuitable;

/// What an extended header says about the entry after it; other records are passed over.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    /// Seconds since the epoch, and nanoseconds after that second.
    pub(super) mtime: Option<(i64, u32)>,
    /// `SCHILY.xattr.*`: name and value, in the order of the header.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// One of GNU tar's PAX sparse formats follows.
    pub(super) sparse: bool,
}

const XATTR: &[u8] = b"SCHILY.xattr.";

impl Pax {
    /// Parses the data of one extended header that starts at byte `at` of the tar.
    pub(super) fn parse(mut data: &[u8], at: u64) -> Result<Self, Unsuitable> {
        let malformed = |why| Unsuitable::Malformed { at, why };
        let mut pax = Self::default();
        while !data.is_empty() {
            let (record, rest) =
                split_record(data).ok_or_else(|| malformed("a PAX record does not parse"))?;
            pax.apply(record.0, record.1).map_err(malformed)?;
            data = rest;
        }
        Ok(pax)
    }

    /// An empty value keeps what the plain header says.
    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if let Some(name) = key.strip_prefix(XATTR) {
            self.xattrs.retain(|(known, _)| known != name);
            self.xattrs.push((name.to_vec(), value.to_vec()));
        } else if key.starts_with(b"GNU.sparse.") {
            self.sparse = true;
        } else if !value.is_empty() {
            match key {
                b"path" => self.path = Some(text(value)?),
                b"linkpath" => self.link = Some(text(value)?),
                b"size" => self.size = Some(number(value).ok_or("a PAX size is not a number")?),
                b"uid" => self.uid = Some(number(value).ok_or("a PAX uid is not a number")?),
                b"gid" => self.gid = Some(number(value).ok_or("a PAX gid is not a number")?),
                b"mtime" => self.mtime = Some(time(value).ok_or("a PAX mtime is not a time")?),
                _ => {}
            }
        }
        Ok(())
    }
}

type Record<'a> = (&'a [u8], &'a [u8]);

fn split_record(data: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let space = data.iter().take(20).position(|&b| b == b' ')?;
    let len = usize::try_from(number(data.get(..space)?)?).ok()?;
    let record = data.get(space + 1..len)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&b| b == b'=')?;
    let (key, value) = (record.get(..equals)?, record.get(equals + 1..)?);
    (!key.is_empty()).then_some(((key, value), data.get(len..)?))
}

fn text(value: &[u8]) -> Result<Vec<u8>, &'static str> {
    match value.contains(&0) {
        true => Err("a PAX name holds a NUL"),
        false => Ok(value.to_vec()),
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(digits).ok()?;
    // `parse` would also take a sign.
    digits.bytes().all(|b| b.is_ascii_digit()).then_some(())?;
    digits.parse().ok()
}

/// `[-]SECONDS[.FRACTION]`; digits below the nanosecond are cut off, as every unpacker does.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let (whole, fraction) = match value.iter().position(|&b| b == b'.') {
        Some(dot) => (value.get(..dot)?, value.get(dot + 1..)?),
        None => (value, &b""[..]),
    };
    let seconds = match whole {
        b"" => 0,
        digits => i64::try_from(number(digits)?).ok()?,
    };
    let mut nanos = [b'0'; 9];
    for (to, from) in nanos.iter_mut().zip(fraction) {
        *to = *from;
    }
    number(fraction.get(9..).unwrap_or(b"0").get(..1).unwrap_or(b"0"))?;
    let nanos = u32::try_from(number(&nanos)?).ok()?;
    match (negative, nanos) {
        (false, _) => Some((seconds, nanos)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some(((-seconds).checked_sub(1)?, 1_000_000_000 - nanos)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while rest + len.to_string().len() != len {
            len += 1;
        }
        let mut record = format!("{len} {key}=").into_bytes();
        record.extend_from_slice(value);
        record.push(b'\n');
        record
    }

    #[test]
    fn records_replace_the_fields_they_name() {
        let data = [
            record("path", "ä/b".as_bytes()),
            record("linkpath", b"x"),
            record("size", b"12345678901"),
            record("uid", b"4294967294"),
            record("gid", b""),
            record("comment", b"a=b\nc"),
            record("SCHILY.xattr.user.a", b"1"),
            record("SCHILY.xattr.security.capability", b"\0\n=\xff"),
            record("SCHILY.xattr.user.a", b"2"),
        ]
        .concat();
        let pax = Pax::parse(&data, 0).unwrap();
        assert_eq!(pax.path.as_deref(), Some("ä/b".as_bytes()));
        assert_eq!(pax.link.as_deref(), Some(&b"x"[..]));
        assert_eq!(
            (pax.size, pax.uid),
            (Some(12_345_678_901), Some(u64::from(u32::MAX) - 1))
        );
        assert_eq!(pax.gid, None);
        let capability = (b"security.capability".to_vec(), b"\0\n=\xff".to_vec());
        assert_eq!(
            pax.xattrs,
            [capability, (b"user.a".to_vec(), b"2".to_vec())]
        );
        assert!(!pax.sparse);
        assert!(
            Pax::parse(&record("GNU.sparse.major", b"1"), 0)
                .unwrap()
                .sparse
        );
    }

    #[test]
    fn times_have_nanoseconds_and_may_be_negative() {
        for (text, time) in [
            ("0", Some((0, 0))),
            ("1700000000.5", Some((1_700_000_000, 500_000_000))),
            ("1.1234567891", Some((1, 123_456_789))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-7", Some((-7, 0))),
            ("1.", Some((1, 0))),
            ("1.x", None),
            ("+1", None),
            ("1e3", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(super::time(text.as_bytes()), time, "{text}");
        }
    }

    #[test]
    fn what_does_not_parse_is_refused() {
        for bad in [
            &b"5 a=b"[..],
            b"7 a=b\n",
            b"x a=b\n",
            b"6 ab\n\n",
            b"5 =b\n",
            b"+6 a=b\n",
            b"18446744073709551616 a=b\n",
            b"0 a=b\n",
            b"11 path=a\0\n",
            b"9 size=x\n",
        ] {
            assert!(
                Pax::parse(bad, 0).is_err(),
                "{:?}",
                bad.escape_ascii().to_string()
            );
        }
        assert!(Pax::parse(b"6 a=b\n", 0).is_ok());
    }
}
