//! What an entry may say of itself.

use super::*;

#[test]
fn names_are_cleaned_and_the_root_is_a_directory() {
    let list = r#"{"name":"./","type":"dir"},{"name":"/a//b/","type":"dir"}"#;
    let names: Vec<String> = entries(list)
        .unwrap()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["", "a/b"]);
    assert_eq!(refusal(r#"{"type":"dir"}"#), (0, EntryError::NameMissing));
    for kind in ["reg", "symlink", "hardlink", "char", "fifo"] {
        let list = format!(r#"{{"name":"./","type":"{kind}","linkName":"y"}}"#);
        assert_eq!(refusal(&list), (0, EntryError::Root));
    }
    let up = refusal(r#"{"name":"a","type":"dir"},{"name":"../a","type":"dir"}"#);
    assert!(matches!(up, (1, EntryError::DotDot(_))));
    assert!(matches!(
        refusal(r#"{"name":"a\u0000","type":"dir"}"#),
        (0, EntryError::Nul(_))
    ));
}

#[test]
fn every_type_is_exact() {
    for kind in ["", "file", "Reg", "socket", "DIR", "reg ", "directory"] {
        assert!(
            matches!(refusal(&object(kind, "")), (0, EntryError::Type(_))),
            "{kind}"
        );
    }
    assert!(matches!(
        refusal(r#"{"name":"x"}"#),
        (0, EntryError::Type(_))
    ));
    for (kind, is) in [
        ("dir", "Dir"),
        ("reg", "File { size: 0, chunks: [] }"),
        ("char", "Char { major: 0, minor: 0 }"),
        ("block", "Block { major: 0, minor: 0 }"),
        ("fifo", "Fifo"),
    ] {
        let seen = entries(&object(kind, "")).unwrap();
        assert_eq!(seen, [("x".to_owned(), is.to_owned())]);
    }
}

#[test]
fn links_have_a_target() {
    first(&object("symlink", r#""linkName":"/../a/./b""#), |entry| {
        let target = b"/../a/./b".as_slice().into();
        assert_eq!(entry.kind, EntryKind::Symlink { target });
    });
    first(&object("hardlink", r#""linkName":"/a/./b""#), |entry| {
        let target = b"a/b".as_slice().into();
        assert_eq!(entry.kind, EntryKind::HardLink { target });
    });
    for kind in ["symlink", "hardlink"] {
        assert_eq!(refusal(&object(kind, "")), (0, EntryError::LinkEmpty));
        let nul = refusal(&object(kind, r#""linkName":"a\u0000""#));
        assert!(matches!(nul, (0, EntryError::Nul(_))));
    }
    let sized = |len| object("symlink", &format!(r#""linkName":"{}""#, "x".repeat(len)));
    assert!(entries(&sized(4095)).is_ok());
    assert_eq!(refusal(&sized(4096)), (0, EntryError::Path(4096)));
    let hard = |target: &str| refusal(&object("hardlink", &format!(r#""linkName":"{target}""#))).1;
    assert_eq!(hard("./x"), EntryError::LinkSelf);
    assert_eq!(hard("/"), EntryError::Root);
    assert!(matches!(hard("../../x"), EntryError::DotDot(_)));
    assert_eq!(hard(&"x".repeat(256)), EntryError::Component(256));
}

#[test]
fn numbers_are_in_linux_range() {
    let keys = r#""mode":35309,"uid":4294967294,"gid":70000,"devMajor":4095,"devMinor":1048575"#;
    first(&object("char", keys), |entry| {
        assert_eq!(
            (entry.mode, entry.uid, entry.gid),
            (0o4755, u32::MAX - 1, 70_000)
        );
        let (major, minor) = (4095, 1_048_575);
        assert_eq!(entry.kind, EntryKind::Char { major, minor });
    });
    for key in ["uid", "gid"] {
        for id in [u64::from(u32::MAX), 1 << 32, 1 << 63] {
            let refused = refusal(&object("dir", &format!(r#""{key}":{id}"#)));
            assert_eq!(refused, (0, EntryError::Id { key, id }));
        }
    }
    for (major, minor) in [
        (4096, 0),
        (0, 1 << 20),
        (1 << 32, 0),
        (0, 1 << 32),
        (u64::MAX, 0),
    ] {
        for kind in ["char", "block"] {
            let keys = format!(r#""devMajor":{major},"devMinor":{minor}"#);
            let refused = refusal(&object(kind, &keys));
            assert_eq!(refused, (0, EntryError::Device { major, minor }));
        }
    }
    assert_eq!(
        refusal(&object("dir", r#""mode":-1"#)),
        (0, EntryError::Mode(-1))
    );
    first(&object("dir", r#""mode":9223372036854775807"#), |entry| {
        assert_eq!(entry.mode, 0o7777)
    });
    let time = refusal(&object("dir", r#""modtime":"tomorrow""#));
    assert!(matches!(time, (0, EntryError::Mtime(_))));
    first(
        &object("dir", r#""modtime":"1970-01-01T00:00:01.5Z""#),
        |entry| {
            assert_eq!(
                entry.mtime,
                Mtime {
                    secs: 1,
                    nanos: 500_000_000
                }
            );
        },
    );
}

#[test]
fn xattrs_pass_the_policy() {
    let keys = r#""xattrs":{"user.b":"eWVz","user.a":null,"trusted.overlay.opaque":"eQ=="}"#;
    first(&object("reg", keys), |entry| {
        let (a, b) = (b"user.a".as_slice().into(), b"user.b".as_slice().into());
        assert_eq!(entry.xattrs, [(a, b"".to_vec()), (b, b"yes".to_vec())]);
    });
    first(
        &object("symlink", &format!(r#""linkName":"y",{keys}"#)),
        |entry| {
            assert_eq!(entry.xattrs, []);
        },
    );
}
