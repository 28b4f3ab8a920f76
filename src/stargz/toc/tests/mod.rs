//! The TOC's rules, each with what it refuses: see also the fixtures in `stargz/tests.rs`.

use proptest::prelude::*;

use super::*;
use crate::stargz::EntryError;

mod chunks;
mod entries;

const END: u64 = 1000;
const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// What a test wants to see of an entry.
type Seen = (String, String);

fn walk_with(toc: &Toc, limits: &Limits) -> Result<Vec<Seen>, Error> {
    let mut seen = Vec::new();
    toc.for_each(limits, END, &mut |entry| -> Result<(), Error> {
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        seen.push((name, format!("{:?}", entry.kind)));
        Ok(())
    })?;
    Ok(seen)
}

fn walk(json: &str) -> Result<Vec<Seen>, Error> {
    let json = json.as_bytes().to_vec();
    let digest = Digest::of(&json);
    walk_with(&Toc::verify(json, &digest)?, &Limits::default())
}

fn entries(entries: &str) -> Result<Vec<Seen>, Error> {
    walk(&format!(r#"{{"version":1,"entries":[{entries}]}}"#))
}

/// Why the (only) bad one of these entries is refused, and which it is.
fn refusal(list: &str) -> (u32, EntryError) {
    match entries(list) {
        Err(Error::Entry { index, why, .. }) => (index, why),
        other => panic!("{list}: {other:?}"),
    }
}

/// An entry of a type, with further keys.
fn object(kind: &str, keys: &str) -> String {
    let comma = if keys.is_empty() { "" } else { "," };
    format!(r#"{{"name":"x","type":"{kind}"{comma}{keys}}}"#)
}

/// The first of these entries as [`Entry`] says it.
fn first(list: &str, check: impl Fn(&Entry<'_>)) {
    let json = format!(r#"{{"version":1,"entries":[{list}]}}"#);
    let mut calls = 0;
    let toc = Toc::unverified(json.into_bytes());
    toc.for_each(&Limits::default(), END, &mut |entry| -> Result<(), Error> {
        calls += 1;
        check(&entry);
        Ok(())
    })
    .unwrap();
    assert_eq!(calls, 1);
}

#[test]
fn only_the_promised_bytes_become_a_toc() {
    let json = br#"{"version":1,"entries":[]}"#.to_vec();
    let digest = Digest::of(&json);
    assert_eq!(
        Toc::verify(json.clone(), &digest).unwrap().digest(),
        &digest
    );
    let padded = [&*json, b" "].concat();
    assert!(matches!(
        Toc::verify(padded, &digest),
        Err(Error::TocDigest { .. })
    ));
}

#[test]
fn documents_of_another_shape_are_refused() {
    for bad in [
        "",
        "null",
        "[]",
        "{}",
        "\"\"",
        "1",
        "{",
        "\u{feff}{}",
        r#"{"version":1}"#,
        r#"{"entries":[]}"#,
        r#"{"version":1,"entries":{}}"#,
        r#"{"version":1,"entries":""}"#,
        r#"{"version":1,"entries":[null]}"#,
        r#"{"version":1,"entries":["x"]}"#,
        r#"{"version":1,"entries":[[]]}"#,
        r#"{"version":1,"entries":[{"name":"x","type":"dir"}]"#,
        r#"{"version":1,"entries":[],"entries":[]}"#,
        r#"{"version":1,"version":1,"entries":[]}"#,
        r#"{"version":"1","entries":[]}"#,
        r#"{"version":1.0,"entries":[]}"#,
        r#"{"version":1,"entries":[]} x"#,
        r#"{"version":1,"entries":[]}{}"#,
        r#"{"version":1,"entries":[],}"#,
        r#"{"version":1,"entries":[],"x":"\ud800"}"#,
    ] {
        assert!(
            matches!(walk(bad), Err(Error::TocJson { .. })),
            "{bad}: {:?}",
            walk(bad)
        );
    }
    let latin1 = Toc::unverified(b"{\"version\":1,\"entries\":[],\"x\":\"\xe9\"}".to_vec());
    let refused = walk_with(&latin1, &Limits::default());
    assert_eq!(refused, Err(Error::TocUtf8 { at: 31 }));
}

#[test]
fn only_version_1_is_read_wherever_it_stands() {
    for good in [
        r#"{"version":1,"entries":[]}"#,
        r#"{"entries":null,"version":1}"#,
    ] {
        assert_eq!(walk(good), Ok(vec![]));
    }
    for found in [0, 2, -1, i64::MAX] {
        let json = format!(r#"{{"entries":[],"version":{found}}}"#);
        assert_eq!(walk(&json), Err(Error::TocVersion { found }));
    }
}

/// Longer than several windows, so that they end everywhere: in keys, numbers, characters.
#[test]
fn a_long_toc_is_read_to_its_end_whatever_its_values_lengths() {
    for shift in 0..7 {
        let mut list = " ".repeat(shift);
        let mut names = Vec::new();
        for number in 0..9000 {
            let name = format!("{number}-äöü€😀-{}", "x".repeat(number % 90));
            list += &format!(r#"{{"name":"{name}","type":"dir","uid":{number}}} ,"#);
            names.push((name, "Dir".to_owned()));
        }
        // One that needs a larger window.
        let target = "t".repeat(600_000);
        let long = object("dir", &format!(r#""y":"{target}""#));
        names.push(("x".to_owned(), "Dir".to_owned()));
        let json = format!(r#"{{"entries":[{list}{long}],"z":123456789,"version":1}}"#);
        assert_eq!(walk(&json), Ok(names));
        // Cut anywhere near its end it is no TOC.
        for cut in 1..30 {
            let refused = walk(&json[..json.len() - cut]);
            assert!(matches!(refused, Err(Error::TocJson { .. })), "{cut}");
        }
    }
    let latin1 = [
        r#"{"version":1,"x":""#.as_bytes(),
        &[b'x'; 300_000],
        b"\xe9\"}",
    ]
    .concat();
    let refused = walk_with(&Toc::unverified(latin1), &Limits::default());
    assert_eq!(refused, Err(Error::TocUtf8 { at: 300_018 }));
}

#[test]
fn a_value_of_any_length_costs_bounded_memory() {
    let long = "x".repeat(9 << 20);
    for json in [
        format!(r#"{{"version":1,"entries":[{{"name":"{long}"#),
        format!(r#"{{"version":1,"{long}":1,"entries":[]}}"#),
        format!(r#"{{"version":1,"entries":[],"x":"{long}"}}"#),
        format!(r#"{{"version":{}"#, "1".repeat(9 << 20)),
    ] {
        let refused = walk(&json);
        assert!(matches!(refused, Err(Error::TocJson { .. })));
    }
    // White space is no value.
    let blank = " ".repeat(9 << 20);
    assert_eq!(
        walk(&format!(
            r#"{{{blank}"version":{blank}1,"entries":[]}}{blank}"#
        )),
        Ok(vec![])
    );
}

#[test]
fn unknown_keys_are_read_over_to_a_depth() {
    let known = object(
        "dir",
        r#""NumLink":0,"userName":"root","x":{"a":[1,-1,1.5,true,null]}"#,
    );
    assert_eq!(entries(&known).unwrap().len(), 1);
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(entries(&object("dir", &format!(r#""x":{}"#, nested(100)))).is_ok());
    for depth in [130, 1_000_000] {
        let deep = entries(&object("dir", &format!(r#""x":{}"#, nested(depth))));
        assert!(matches!(deep, Err(Error::TocJson { .. })));
        let top = walk(&format!(
            r#"{{"version":1,"entries":[],"x":{}}}"#,
            nested(depth)
        ));
        assert!(matches!(top, Err(Error::TocJson { .. })));
    }
}

#[test]
fn keys_occur_once_and_have_their_type() {
    for key in [
        "name",
        "type",
        "modtime",
        "linkName",
        "digest",
        "chunkDigest",
    ] {
        for bad in ["1", "null", "[]", "{}", "true"] {
            let list = format!(r#"{{"{key}":{bad}}}"#);
            assert!(
                matches!(entries(&list), Err(Error::TocJson { .. })),
                "{list}"
            );
        }
        let twice = format!(r#"{{"{key}":"","{key}":""}}"#);
        assert!(
            matches!(entries(&twice), Err(Error::TocJson { .. })),
            "{twice}"
        );
    }
    for key in [
        "size",
        "mode",
        "uid",
        "gid",
        "devMajor",
        "devMinor",
        "offset",
        "innerOffset",
        "chunkOffset",
        "chunkSize",
    ] {
        for bad in [
            "1.5",
            "1.0",
            "1e3",
            "1e400",
            "-0",
            "\"12\"",
            "null",
            "18446744073709551616",
            "0x1",
            "01",
        ] {
            let list = object("dir", &format!(r#""{key}":{bad}"#));
            assert!(
                matches!(entries(&list), Err(Error::TocJson { .. })),
                "{list}"
            );
        }
        if key != "mode" {
            let negative = object("dir", &format!(r#""{key}":-1"#));
            assert!(
                matches!(entries(&negative), Err(Error::TocJson { .. })),
                "{key}"
            );
        }
        let twice = object("dir", &format!(r#""{key}":0,"{key}":0"#));
        assert!(
            matches!(entries(&twice), Err(Error::TocJson { .. })),
            "{key}"
        );
    }
    for bad in ["[]", "null", r#"{"user.a":1}"#, r#"{"user.a":[]}"#] {
        let list = object("reg", &format!(r#""xattrs":{bad}"#));
        assert!(
            matches!(entries(&list), Err(Error::TocJson { .. })),
            "{list}"
        );
    }
    let many: Vec<String> = (0..10_001).map(|i| format!(r#""x{i}":"""#)).collect();
    let list = object("reg", &format!(r#""xattrs":{{{}}}"#, many.join(",")));
    assert!(matches!(entries(&list), Err(Error::TocJson { .. })));
}

#[test]
fn json_errors_are_cut_and_escaped() {
    let list = object("dir", &format!(r#""size":"\n{}""#, "x".repeat(1 << 20)));
    let message = entries(&list).unwrap_err().to_string();
    assert!(message.len() < 500 && !message.contains('\n'), "{message}");
    let list = format!(r#"{{"name":"\n{}/..","type":"dir"}}"#, "x".repeat(1 << 20));
    let message = entries(&list).unwrap_err().to_string();
    assert!(message.len() < 500 && !message.contains('\n'), "{message}");
}

#[test]
fn the_caller_can_end_the_walk_with_its_own_error() {
    #[derive(Debug, PartialEq)]
    enum Mine {
        Theirs(Error),
        Enough,
    }
    impl From<Error> for Mine {
        fn from(error: Error) -> Self {
            Self::Theirs(error)
        }
    }
    let walk = |list: &str, most: usize| {
        let json = format!(r#"{{"version":1,"entries":[{list}]}}"#);
        let mut calls = 0;
        let toc = Toc::unverified(json.into_bytes());
        let outcome = toc.for_each(&Limits::default(), END, &mut |_| {
            calls += 1;
            if calls > most {
                Err(Mine::Enough)
            } else {
                Ok(())
            }
        });
        (outcome, calls)
    };
    let reg = object("reg", "");
    assert_eq!(walk(&format!("{reg},{reg},{reg}"), 3), (Ok(()), 3));
    // Stopped in the middle, and at the last file, which is handed out after the end.
    assert_eq!(
        walk(&format!("{reg},{reg},{reg}"), 1),
        (Err(Mine::Enough), 2)
    );
    assert_eq!(walk(&reg, 0), (Err(Mine::Enough), 1));
    assert!(matches!(
        walk("null", 9),
        (Err(Mine::Theirs(Error::TocJson { .. })), 0)
    ));
}

proptest! {
    #[test]
    fn no_json_makes_it_panic(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"", "\"name\"", "\"type\"", "\"reg\"", "\"chunk\"", "\"size\"",
            "\"entries\"", "\"version\"", "1", "-1", "18446744073709551615", "\"chunkSize\"", "null",
            "\"../x\"", "\"xattrs\"", "\"\\ud800\"", "\"modtime\"", "\"9999-12-31T23:59:59-23:59\"",
        ]), 0..40),
    ) {
        let json = pieces.concat();
        let _ = walk(&json);
        let _ = entries(&json);
    }
}
