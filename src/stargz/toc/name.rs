//! Paths of a TOC, cleaned or refused.
//!
//! A path is taken from the layer's root, so a leading `/` or `./`, a trailing `/`, doubled slashes
//! and `.` components say nothing and are dropped. `..` is refused rather than resolved: no image
//! has it for a good reason, and tar does not extract it either. Every other byte but NUL stands
//! for itself.

use std::borrow::Cow;

use crate::stargz::EntryError;
use crate::stargz::error::quoted;

/// `NAME_MAX` of Linux (`include/uapi/linux/limits.h`); FUSE replies with longer names have been a
/// kernel vulnerability.
const NAME_MAX: usize = 255;
/// `PATH_MAX` of Linux without the final NUL.
pub(super) const PATH_MAX: usize = 4095;

/// The path without what says nothing; empty for the root. Allocates only if it was not clean.
pub(super) fn clean(path: Cow<'_, [u8]>) -> Result<Cow<'_, [u8]>, EntryError> {
    if path.contains(&0) {
        return Err(EntryError::Nul(quoted(&path)));
    }
    let mut len = 0_usize;
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(EntryError::DotDot(quoted(&path))),
            long if long.len() > NAME_MAX => return Err(EntryError::Component(long.len())),
            name => len += name.len() + usize::from(len > 0),
        }
    }
    if len > PATH_MAX {
        return Err(EntryError::Path(len));
    }
    // With its ends trimmed, a path is clean exactly if nothing inside it was dropped.
    if trimmed(&path).len() != len {
        return Ok(Cow::Owned(joined(&path, len)));
    }
    Ok(match path {
        Cow::Borrowed(path) => Cow::Borrowed(trimmed(path)),
        Cow::Owned(path) if path.len() == len => Cow::Owned(path),
        Cow::Owned(path) => Cow::Owned(trimmed(&path).to_vec()),
    })
}

fn trimmed(mut path: &[u8]) -> &[u8] {
    while let Some(rest) = path.strip_prefix(b"/").or(path.strip_prefix(b"./")) {
        path = rest;
    }
    while let Some(rest) = path.strip_suffix(b"/").or(path.strip_suffix(b"/.")) {
        path = rest;
    }
    if path == b"." { b"" } else { path }
}

fn joined(path: &[u8], len: usize) -> Vec<u8> {
    let mut clean = Vec::with_capacity(len);
    let components = path
        .split(|byte| *byte == b'/')
        .filter(|component| !matches!(*component, b"" | b"."));
    for component in components {
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(component);
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cleaned(path: &str) -> Result<String, EntryError> {
        let borrowed = clean(Cow::Borrowed(path.as_bytes()));
        assert_eq!(borrowed, clean(Cow::Owned(path.as_bytes().to_vec())));
        borrowed.map(|path| String::from_utf8(path.into_owned()).unwrap())
    }

    #[test]
    fn what_says_nothing_is_dropped() {
        for root in ["", ".", "/", "//", "./", "././", "/.", "/./", "./."] {
            assert_eq!(cleaned(root).unwrap(), "", "{root}");
        }
        for a in [
            "a/b",
            "./a/b",
            "/a/b",
            "//a/b",
            "a/b/",
            "a//b",
            "a/./b",
            "a/b/.",
            ".//a/b/./",
        ] {
            assert_eq!(cleaned(a).unwrap(), "a/b", "{a}");
        }
    }

    #[test]
    fn what_looks_special_elsewhere_stands_for_itself() {
        for name in [
            "C:\\x", "a\\..\\b", "...", ".a", "a.", "..a", "a\nb", "\u{7f}é", " ",
        ] {
            assert_eq!(cleaned(name).unwrap(), name);
        }
        let latin1 = clean(Cow::Borrowed(b"caf\xe9/x"));
        assert_eq!(latin1.unwrap(), &b"caf\xe9/x"[..]);
    }

    #[test]
    fn escapes_nuls_and_long_names_are_refused() {
        for up in ["..", "../a", "a/..", "a/../b", "/..", "../../etc/passwd"] {
            assert!(matches!(cleaned(up), Err(EntryError::DotDot(_))), "{up}");
        }
        assert!(matches!(cleaned("a\0b"), Err(EntryError::Nul(_))));
        let (most, above) = ("x".repeat(255), "x".repeat(256));
        assert!(cleaned(&format!("a/{most}")).is_ok());
        assert_eq!(cleaned(&above), Err(EntryError::Component(256)));
        assert_eq!(cleaned(&"x/".repeat(2048)).unwrap().len(), 4095);
        let deep = cleaned(&"x/".repeat(2049));
        assert_eq!(deep, Err(EntryError::Path(4097)));
        assert!(cleaned(&"x/".repeat(100_000)).is_err());
    }

    #[test]
    fn a_clean_path_is_not_copied() {
        for path in [&b"a/b"[..], b"./a/b", b"a/b/"] {
            assert!(matches!(
                clean(Cow::Borrowed(path)),
                Ok(Cow::Borrowed(b"a/b"))
            ));
        }
    }
}
