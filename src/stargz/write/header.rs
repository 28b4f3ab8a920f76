//! One 512-byte tar header: POSIX ustar, GNU and star, and the Unix V7 form they extend.
//!
//! Formats: POSIX.1-2017 pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format" (magic
//! `ustar  `, numbers in base 256). Where they leave room, this follows Go's `archive/tar`, because
//! that is what container runtimes unpack layers with.

/// Size of a header, and what data is padded to.
pub(super) const BLOCK: usize = 512;

/// A header's bytes, whose checksum was found right.
pub(super) struct Header<'a>(&'a [u8; BLOCK]);

/// Which fields beyond V7's a header has.
#[derive(PartialEq, Eq)]
enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl<'a> Header<'a> {
    /// A header over `block` if its checksum is right; old writers summed signed bytes.
    pub(super) fn parse(block: &'a [u8; BLOCK]) -> Option<Self> {
        let header = Self(block);
        let said = header.number(148, 8)?;
        let blank = |i: usize, b: u8| if (148..156).contains(&i) { b' ' } else { b };
        let bytes = || block.iter().enumerate().map(|(i, &b)| blank(i, b));
        let unsigned: i64 = bytes().map(i64::from).sum();
        let signed: i64 = bytes().map(|b| i64::from(b.cast_signed())).sum();
        (said == unsigned || said == signed).then_some(header)
    }

    /// The kind of entry: `0` to `7`, or a letter.
    pub(super) fn flag(&self) -> u8 {
        self.0[156]
    }

    /// The name, with the prefix of the dialects that have one.
    pub(super) fn name(&self) -> Vec<u8> {
        let prefix = match self.dialect() {
            Dialect::Ustar => self.text(345, 155),
            Dialect::Star => self.text(345, 131),
            Dialect::V7 | Dialect::Gnu => b"",
        };
        let name = self.text(0, 100);
        match prefix {
            b"" => name.to_vec(),
            prefix => [prefix, b"/", name].concat(),
        }
    }

    /// The link target.
    pub(super) fn link(&self) -> Vec<u8> {
        self.text(157, 100).to_vec()
    }

    pub(super) fn mode(&self) -> Option<i64> {
        self.number(100, 8)
    }

    pub(super) fn uid(&self) -> Option<i64> {
        self.number(108, 8)
    }

    pub(super) fn gid(&self) -> Option<i64> {
        self.number(116, 8)
    }

    pub(super) fn size(&self) -> Option<i64> {
        self.number(124, 12)
    }

    pub(super) fn mtime(&self) -> Option<i64> {
        self.number(136, 12)
    }

    /// Major and minor device number; V7 has none.
    pub(super) fn device(&self) -> Option<(i64, i64)> {
        match self.dialect() {
            Dialect::V7 => Some((0, 0)),
            _ => Some((self.number(329, 8)?, self.number(337, 8)?)),
        }
    }

    fn dialect(&self) -> Dialect {
        match self.field(257, 8) {
            b"ustar\x0000" if self.field(508, 4) == b"tar\0" => Dialect::Star,
            b"ustar\x0000" => Dialect::Ustar,
            b"ustar  \0" => Dialect::Gnu,
            _ => Dialect::V7,
        }
    }

    fn field(&self, at: usize, len: usize) -> &'a [u8] {
        self.0.get(at..at + len).unwrap_or_default()
    }

    /// A field up to its first NUL.
    fn text(&self, at: usize, len: usize) -> &'a [u8] {
        let field = self.field(at, len);
        let end = field.iter().position(|&b| b == 0).unwrap_or(len);
        field.get(..end).unwrap_or(field)
    }

    /// A number in octal digits, or in base 256 if the first bit is set. Blank means 0.
    fn number(&self, at: usize, len: usize) -> Option<i64> {
        let field = self.field(at, len);
        if field.first().is_some_and(|b| b & 0x80 != 0) {
            return base256(field);
        }
        let blank = |b: &u8| *b == b' ' || *b == 0;
        let start = field.iter().position(|b| !blank(b)).unwrap_or(len);
        let end = field
            .iter()
            .rposition(|b| !blank(b))
            .map_or(start, |i| i + 1);
        let digits = field.get(start..end)?;
        let digits = digits.split(|&b| b == 0).next()?;
        digits.iter().try_fold(0_i64, |sum, digit| match digit {
            b'0'..=b'7' => sum.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
            _ => None,
        })
    }
}

/// Two's complement, big endian, below the marker bit.
fn base256(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    // The marker bit is not part of the number; the bit below it is the sign.
    let head = match first & 0x40 {
        0 => i128::from(first & 0x7f),
        _ => i128::from(first & 0x7f) - 0x80,
    };
    let value = rest
        .iter()
        .fold(head, |sum, &byte| (sum << 8) | i128::from(byte));
    i64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(edit: impl FnOnce(&mut [u8; BLOCK])) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        block[..5].copy_from_slice(b"a/b.c");
        block[100..107].copy_from_slice(b"0000755");
        edit(&mut block);
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    }

    #[test]
    fn numbers_are_octal_or_base_256() {
        for (field, value) in [
            (&b"00000000017\0"[..], Some(15)),
            (b"  17 \0\0\0\0\0\0\0", Some(15)),
            (b"\0\0\0\0\0\0\0\0\0\0\0\0", Some(0)),
            (b"777777777777", Some(0o777_777_777_777)),
            (b"18\0\0\0\0\0\0\0\0\0\0", None),
            (b"\x80\0\0\0\0\0\0\x01\0\0\0\0", Some(1 << 32)),
            (
                b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe",
                Some(-2),
            ),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
        ] {
            let block = block(|b| b[124..136].copy_from_slice(field));
            assert_eq!(Header::parse(&block).unwrap().size(), value, "{field:?}");
        }
    }

    #[test]
    fn only_ustar_and_star_have_a_prefix() {
        for (magic, trailer, name) in [
            (&b"ustar\x0000"[..], &b"\0\0\0\0"[..], &b"p/q/a/b.c"[..]),
            (b"ustar\x0000", b"tar\0", b"p/q/a/b.c"),
            (b"ustar  \0", b"\0\0\0\0", b"a/b.c"),
            (b"\0\0\0\0\0\0\0\0", b"\0\0\0\0", b"a/b.c"),
        ] {
            let block = block(|b| {
                b[257..265].copy_from_slice(magic);
                b[345..348].copy_from_slice(b"p/q");
                b[508..].copy_from_slice(trailer);
            });
            assert_eq!(Header::parse(&block).unwrap().name(), name);
        }
    }

    #[test]
    fn a_wrong_checksum_is_no_header() {
        let mut block = block(|_| {});
        assert!(Header::parse(&block).is_some());
        block[0] ^= 1;
        assert!(Header::parse(&block).is_none());
    }
}
