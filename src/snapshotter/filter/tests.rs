//! Tables of filters, and whatever else comes in.

use proptest::prelude::*;

use crate::snapshotter::filter::{Filters, parse};
use crate::snapshotter::model::{Key, Kind, Labels, Record, Stamp};

const REF: &str = "containerd.io/snapshot.ref";

fn record() -> Record {
    let labels: Labels = [
        (REF, "sha256:abc"),
        ("l", "some value"),
        ("a.b", "dotted"),
        ("q\"uote", "quoted"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    Record {
        id: 1,
        revision: 1,
        kind: Kind::Committed,
        key: Key::new("ns/1/extract-5 sha256:x").unwrap(),
        parent: Key::optional("ns/2/parent"),
        labels,
        created: Stamp::now(),
        updated: Stamp::now(),
        usage: None,
        lazy: None,
        refused: None,
    }
}

fn matches(filters: &[&str]) -> bool {
    Filters::parse(filters)
        .unwrap_or_else(|error| panic!("{filters:?}: {error}"))
        .matches(&record())
}

#[test]
fn filters_that_select_the_record() {
    for filter in [
        "",
        "name",
        "name.first",
        "parent",
        "kind==committed",
        " kind == committed",
        "kind!=active",
        r#"labels."containerd.io/snapshot.ref"==sha256:abc,parent=="ns/2/parent""#,
        r#"labels."containerd.io/snapshot.ref"~="^sha256:""#,
        "labels.l",
        r#"labels.l=="some value""#,
        "labels.a.b==dotted",
        r#"labels."a"."b"==dotted"#,
        r#"labels."q\"uote"==quoted"#,
        r#"labels."\x61.b"==dotted"#,
        r#"labels."\141.\u0062"==dotted"#,
        "labels.l~=/^some/",
        "labels.l~=|val.e$|",
        "labels.l~=some.value",
        r"labels.l~=/some\\svalue/",
        "labels.none!=x",
        "unknown!=x",
        "labels.none~=/^$/",
        "parent==ns/2/parent",
        "name~=extract-[0-9]+",
    ] {
        assert!(matches(&[filter]), "{filter:?}");
    }
}

#[test]
fn filters_that_do_not() {
    for filter in [
        "kind==active",
        "kind==Committed",
        "labels.none",
        "labels",
        "unknown",
        "unknown==x",
        r#"name==ns/1/extract-5"#,
        r#"kind==committed,labels.none"#,
        r#"labels.l=="\xff""#,
        "labels.l~=/^value/",
    ] {
        assert!(!matches(&[filter]), "{filter:?}");
    }
}

#[test]
fn one_filter_of_several_is_enough_and_none_selects_all() {
    assert!(matches(&[]));
    assert!(matches(&["kind==active", "kind==committed"]));
    assert!(!matches(&["kind==active", "kind==view"]));
}

#[test]
fn what_is_no_filter_is_refused() {
    for filter in [
        ",",
        "name,",
        ",name",
        "name=",
        "name=x",
        "name===x",
        "name==",
        "name== ",
        "name==x ",
        "name ,kind",
        "name==x kind==y",
        "name==/x/",
        "name==|x|",
        "name==.x",
        "name==\"x",
        "labels.\"x",
        "labels./x/",
        "labels.",
        "labels..x",
        "-name",
        "name==\"\\q\"",
        "name==\"\\x1\"",
        "name==\"\\400\"",
        "name==\"\\U00110000\"",
        "name==\"a\nb\"",
        "name==\"a\0b\"",
        "name~=/\\d/",
        "name~=(",
        "name~=a{1000}{1000}{1000}",
        "name~=\"\\xff\"",
        "\0",
    ] {
        assert!(parse(filter).is_err(), "{filter:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_the_parser_panic(text in "(?s).{0,64}") {
        if let Ok(filters) = Filters::parse(&[text]) {
            let _ = filters.matches(&record());
        }
    }

    #[test]
    fn nor_does_what_looks_like_a_filter(
        text in r#"(name|kind|labels|"|\.|,|=|!|~|/|\||\\|x|u|[0-9]| ){0,24}"#
    ) {
        let _ = parse(&text);
    }

    #[test]
    fn a_quoted_value_is_itself(value in "[^\\x00\n\u{fffd}]{0,32}") {
        let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
        let mut record = record();
        record.labels.insert("l".to_owned(), value);
        let filters = Filters::parse(&[format!("labels.l==\"{escaped}\"")]).unwrap();
        prop_assert!(filters.matches(&record));
    }
}
