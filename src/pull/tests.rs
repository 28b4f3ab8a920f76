//! What is decided without containerd: labels, places, platforms.

use std::collections::HashMap;

use super::complete::source;
use super::store::{SOURCE, references};
use crate::oci::Digest;

fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    let pairs = pairs.iter();
    pairs
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn references_to_children_take_no_place_from_others() {
    let (a, b, c) = (Digest::of(b"a"), Digest::of(b"b"), Digest::of(b"c"));
    let all = [("config", a), ("l", b), ("l", c), ("l", b)];
    let new = references(&HashMap::new(), &all);
    let keys: Vec<_> = new
        .keys()
        .map(|key| key.rsplit_once("content.").unwrap().1)
        .collect();
    assert_eq!(keys, ["config", "l.0", "l.1"]);

    // containerd's own client has numbered what it pulled, not all that there is.
    let there = labels(&[("containerd.io/gc.ref.content.m.0", &c.to_string())]);
    let more = references(&there, &[("m", a), ("m", b), ("m", c)]);
    let more: Vec<_> = more.into_iter().collect();
    assert_eq!(
        more,
        [
            ("containerd.io/gc.ref.content.m.1".to_owned(), a.to_string()),
            ("containerd.io/gc.ref.content.m.2".to_owned(), b.to_string()),
        ]
    );
}

#[test]
fn blobs_come_from_where_containerd_noted_that_they_did() {
    let at = |host: &str| format!("{SOURCE}{host}");
    let one = labels(&[(&at("r.io"), "team/app"), ("other", "x")]);
    let two = labels(&[(&at("r.io"), "team/app,app"), (&at("q.io"), "app")]);
    for (name, stored, expected) in [
        ("r.io:5000/team/app:1", &one, Some("r.io:5000/team/app:1")),
        // A name that was given by `ctr image tag`.
        ("mine:1", &one, Some("r.io/team/app:latest")),
        ("r.io:5000/mine:1", &one, Some("r.io:5000/team/app:latest")),
        ("q.io/app:2", &two, Some("q.io/app:2")),
        ("r.io:5000/app:2", &two, Some("r.io:5000/app:2")),
        ("x.io/app:2", &two, Some("q.io/app:latest")),
        ("x.io/app:2", &HashMap::new(), Some("x.io/app:2")),
        ("Not A Name", &HashMap::new(), None),
    ] {
        let found = source(name, stored).map(|place| place.to_string());
        assert_eq!(found.as_deref(), expected, "{name}");
    }
}
