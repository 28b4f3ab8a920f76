//! Where containerd's unpacking says more than the entries do.

use super::*;

const CAPABILITY: &str = "security.capability";

fn with_xattrs<'a>(mut entry: Entry<'a>, xattrs: &[(&'static str, &str)]) -> Entry<'a> {
    let owned = |(name, value): &(&'static str, &str)| {
        (Cow::Borrowed(name.as_bytes()), value.as_bytes().to_vec())
    };
    entry.xattrs = xattrs.iter().map(owned).collect();
    entry
}

#[test]
fn a_hard_link_says_what_its_file_looks_like_from_then_on() {
    let later = link("the link", "f");
    let said = later.clone();
    let f = with_xattrs(file("f"), &[(CAPABILITY, "old"), ("user.a", "1")]);
    let index = index(&[f, symlink("s", "x"), link("to s", "s"), later]);
    let f = at(&index, "/f").unwrap();
    assert_eq!((f.mode, f.uid, f.gid), (said.mode, said.uid, said.gid));
    assert_eq!(f.mtime, said.mtime.secs);
    let xattrs = index.xattrs(&f).unwrap();
    // The change of owner took the capability away.
    assert_eq!(xattrs.get(CAPABILITY.as_bytes()), None);
    assert_eq!(xattrs.get(b"user.a"), Some(&b"1"[..]));
    // A symlink has no mode to change.
    let s = at(&index, "/s").unwrap();
    assert_eq!(s.mode, symlink("s", "x").mode);
    assert_eq!(s.uid, link("to s", "s").uid);
}

#[test]
fn a_capability_of_the_link_stays() {
    let f = with_xattrs(file("f"), &[(CAPABILITY, "old")]);
    let index = index(&[f, with_xattrs(link("l", "f"), &[(CAPABILITY, "new")])]);
    let f = at(&index, "/f").unwrap();
    let value = index.xattrs(&f).unwrap().get(CAPABILITY.as_bytes());
    assert_eq!(value, Some(&b"new"[..]));
}

#[test]
fn the_root_is_the_runtimes_own() {
    let root = with_xattrs(dir(""), &[("user.a", "1")]);
    let index = index(&[root]);
    let root = at(&index, "").unwrap();
    assert_eq!((root.mode, root.uid, root.gid), (0o755, 0, 0));
    assert_eq!(root.mtime_nanos, 7);
    assert!(index.xattrs(&root).unwrap().get(b"user.a").is_none());
}

#[test]
fn times_that_cannot_be_set_are_1970() {
    const LAST: i64 = i64::MAX / 1_000_000_000;
    for (secs, nanos, kept) in [
        (0, 5, true),
        (-1, 999_999_999, false),
        (LAST, 854_775_807, true),
        (LAST, 854_775_808, false),
        (253_402_300_799, 0, false),
    ] {
        let mut file = file("f");
        file.mtime = Mtime { secs, nanos };
        let found = at(&index(&[file]), "/f").unwrap();
        let expected = if kept { (secs, nanos) } else { (0, 0) };
        assert_eq!((found.mtime, found.mtime_nanos), expected);
    }
}
