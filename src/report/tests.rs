//! Which reason is told of which snapshot, and which layers of which image.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::layers::users;
use super::why::{asked, known, remote};
use super::{Reason, TrackedSnapshots, reason_of};
use crate::layer::{Judged, LayerRecord, NotLazy};
use crate::oci::{Digest, label};
use crate::snapshotter::{Key, Kind, Record, Refused, Stamp};

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn record(key: &str, parent: &str, kind: Kind) -> Record {
    Record {
        id: 1,
        revision: 1,
        kind,
        key: Key::new(key).unwrap(),
        parent: Key::optional(parent),
        labels: BTreeMap::new(),
        created: Stamp::now(),
        updated: Stamp::now(),
        usage: None,
        lazy: None,
        refused: None,
    }
}

fn lazy(key: &str, parent: &str, image: &str) -> Record {
    Record {
        lazy: Some(LayerRecord {
            image: image.to_owned(),
            also: Vec::new(),
            manifest: digest(image),
            layer: digest(key),
            size: 1000,
            toc: digest("toc"),
            unlisted: Vec::new(),
        }),
        ..record(key, parent, Kind::Committed)
    }
}

fn unpacked(key: &str, parent: &str, image: Option<&str>, reason: Reason) -> Record {
    Record {
        labels: [(label::SNAPSHOT_REF.to_owned(), "chain".to_owned())].into(),
        refused: Some(Refused {
            reason,
            why: "said so".to_owned(),
            image: image.map(str::to_owned),
            manifest: image.map(digest),
            layer: image.map(|_| digest(key)),
        }),
        ..record(key, parent, Kind::Committed)
    }
}

fn all(records: Vec<Record>) -> Vec<Arc<Record>> {
    records.into_iter().map(Arc::new).collect()
}

#[test]
fn what_was_kept_is_told_and_what_was_not_is_guessed() {
    let mut older = record("k", "", Kind::Committed);
    older
        .labels
        .insert(label::SNAPSHOT_REF.to_owned(), "c".to_owned());
    for (record, reason) in [
        (lazy("k", "", "r.io/a:1"), None),
        (record("k", "", Kind::View), None),
        (record("k", "", Kind::Committed), Some(Reason::NotAsked)),
        (older, Some(Reason::Unknown)),
        (
            unpacked("k", "", None, Reason::Labels),
            Some(Reason::Labels),
        ),
    ] {
        assert_eq!(reason_of(&record).map(|(reason, _)| reason), reason);
    }
}

#[test]
fn an_image_is_told_of_with_all_layers_below_it() {
    let records = all(vec![
        lazy("base", "", "r.io/other:1"),
        unpacked("middle", "base", Some("r.io/app:1"), Reason::PlainGzip),
        lazy("top", "middle", "r.io/app:1"),
        unpacked("alone", "", None, Reason::Labels),
        record("container", "top", Kind::Active),
    ]);
    let not = |_: &Key| None;
    let ask = |text: &str| known(&records, asked(text).unwrap().as_ref(), &not);
    let found = ask("r.io/app:1");
    assert_eq!(found.len(), 1);
    let layers = &found[0].layers;
    let lazy: Vec<bool> = layers.iter().map(|layer| layer.lazy).collect();
    assert_eq!(
        lazy,
        [true, false, true],
        "the base came with another image"
    );
    assert_eq!(
        (layers[1].reason.as_str(), layers[1].why.as_str()),
        ("plain_gzip", "said so")
    );
    assert_eq!(layers[1].remedy, Reason::PlainGzip.remedy());
    assert_eq!(layers[1].layer, digest("middle").to_string());
    assert_eq!(
        ask(&digest("r.io/app:1").to_string()),
        found,
        "by the manifest"
    );
    assert_eq!(ask("r.io/other:1")[0].layers.len(), 1);
    assert!(ask("r.io/app:2").is_empty());
    let listed = ask("");
    assert_eq!(listed.len(), 2, "one of them has no name: {listed:?}");
    assert!(asked("Not A Name").is_err());

    let degraded = |key: &Key| (key.as_str() == "top").then(|| "down".to_owned());
    let found = known(&records, asked("r.io/app:1").unwrap().as_ref(), &degraded);
    assert!(found[0].layers[2].lazy && found[0].layers[2].why == "down");
}

#[test]
fn a_pinned_image_is_found_by_the_name_it_is_listed_by() {
    let by_index = format!("r.io/app@{}", digest("index"));
    let records = all(vec![lazy("k", "", &by_index)]);
    let ask = |text: &str| known(&records, asked(text).unwrap().as_ref(), &|_| None);
    let found = ask(&by_index);
    assert_eq!(found, ask(""));
    let manifest = &found[0].manifest;
    assert_ne!(*manifest, digest("index").to_string());
    assert_eq!(ask(&format!("q.io/other@{manifest}")), found);
    assert!(ask(&format!("q.io/other@{}", digest("index"))).is_empty());
}

#[test]
fn of_an_image_that_is_not_here_the_manifest_tells() {
    let records = all(vec![unpacked(
        "b",
        "",
        Some("r.io/x:1"),
        Reason::Unreachable,
    )]);
    let judged = |layer: &str, refusal| Judged {
        layer: digest(layer),
        size: 5,
        refusal,
    };
    let layers = [
        judged("a", None),
        judged("b", None),
        judged("c", Some(NotLazy::NoTocDigest)),
    ];
    let name = "r.io/app:1".parse().unwrap();
    let told = remote(&name, digest("m"), &layers, &records);
    let told: Vec<_> = told
        .layers
        .iter()
        .map(|l| (l.lazy, l.present, l.reason.as_str()))
        .collect();
    let want = [
        (true, false, ""),
        (false, true, "unreachable"),
        (false, false, "no_toc_digest"),
    ];
    assert_eq!(told, want);
}

#[test]
fn containers_count_for_every_layer_below_them_and_unpacking_does_not() {
    let mut unpacking = record("extract", "top", Kind::Active);
    unpacking
        .labels
        .insert(label::SNAPSHOT_REF.to_owned(), "c".to_owned());
    let records = all(vec![
        lazy("base", "", "r.io/a:1"),
        lazy("top", "base", "r.io/a:1"),
        record("one", "top", Kind::Active),
        record("two", "base", Kind::View),
        unpacking,
        record("plain", "", Kind::Committed),
    ]);
    let users = users(&records);
    let of = |key: &str| users.get(&Key::new(key).unwrap()).copied();
    assert_eq!((of("base"), of("top")), (Some(2), Some(1)));
    let counted = TrackedSnapshots::count(&records);
    let kinds = (
        counted.lazy,
        counted.unpacked,
        counted.active,
        counted.views,
        counted.images,
    );
    assert_eq!(kinds, (2, 1, 2, 1, 1));
    assert_eq!(counted.reasons[Reason::NotAsked.index()], 1);
}
