//! The store across restarts, errors and damage.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::store::{Change, Faults, Opened, Step, Store};

type Records = BTreeMap<u64, Arc<String>>;

fn read(dir: &Path) -> Opened<String> {
    Store::<String>::open(dir).unwrap()
}

fn truth(opened: &Opened<String>) -> Records {
    let shared = |(id, text): &(u64, String)| (*id, Arc::new(text.clone()));
    opened.records.iter().map(shared).collect()
}

fn start(dir: &Path, faults: Faults) -> Store<String> {
    let opened = read(dir);
    let truth = truth(&opened);
    opened.start(truth, 0, faults).unwrap()
}

fn put(id: u64, text: &str) -> Change<String> {
    Change::Put(id, Arc::new(text.to_owned()))
}

#[tokio::test]
async fn acknowledged_changes_are_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = start(dir.path(), Faults::none());
    store.apply(put(1, "one")).await.unwrap();
    store.apply(put(2, "two")).await.unwrap();
    store.apply(put(2, "deux")).await.unwrap();
    store.apply(Change::Forget(1)).await.unwrap();
    store.close();
    let again = read(dir.path());
    assert_eq!(again.records, [(2, "deux".to_owned())]);
    assert_eq!(again.last_id, 2);
}

#[tokio::test]
async fn a_large_record_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let large = "x".repeat(15 << 20);
    let store = start(dir.path(), Faults::none());
    store.apply(put(7, &large)).await.unwrap();
    store.apply(put(8, "small")).await.unwrap();
    store.close();
    let again = read(dir.path());
    assert!(again.records == [(7, large), (8, "small".to_owned())]);
}

#[tokio::test]
async fn a_failed_write_is_undone_and_the_next_one_heals() {
    for step in [Step::StoreApplied, Step::StoreFlushed] {
        let dir = tempfile::tempdir().unwrap();
        let store = start(dir.path(), Faults::failing(step, 2));
        store.apply(put(1, "one")).await.unwrap();
        store.apply(put(2, "two")).await.unwrap_err();
        store.apply(put(3, "three")).await.unwrap();
        store.close();
        let ids: Vec<u64> = read(dir.path()).records.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [1, 3], "{}", step.name());
    }
}

#[tokio::test]
async fn a_forgotten_record_stays_forgotten_although_the_write_failed() {
    let dir = tempfile::tempdir().unwrap();
    let store = start(dir.path(), Faults::failing(Step::StoreApplied, 2));
    store.apply(put(1, "one")).await.unwrap();
    store.apply(Change::Forget(1)).await.unwrap_err();
    store.apply(put(2, "two")).await.unwrap();
    store.close();
    assert_eq!(read(dir.path()).records, [(2, "two".to_owned())]);
}

#[test]
fn the_database_is_made_to_hold_the_truth() {
    let dir = tempfile::tempdir().unwrap();
    let truth: Records = (1..=1000)
        .map(|id| (id, Arc::new(id.to_string())))
        .collect();
    let opened = read(dir.path());
    opened.start(truth, 1000, Faults::none()).unwrap().close();
    assert_eq!(read(dir.path()).records.len(), 1000);
    let opened = read(dir.path());
    let only = Records::from([(5, Arc::new("five".to_owned()))]);
    opened.start(only, 0, Faults::none()).unwrap().close();
    let opened = read(dir.path());
    assert_eq!(opened.records, [(5, "five".to_owned())]);
    assert_eq!(opened.last_id, 1000, "an id is never given out twice");
}

#[tokio::test]
async fn a_database_of_rubbish_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("conf"), "rubbish").unwrap();
    fs::write(path.join("db"), vec![0x5a; 1 << 20]).unwrap();
    let opened = read(&path);
    assert!(opened.lost.is_some() || opened.records.is_empty());
    let store = opened.start(Records::new(), 0, Faults::none()).unwrap();
    store.apply(put(1, "one")).await.unwrap();
    store.close();
    assert_eq!(read(&path).records, [(1, "one".to_owned())]);
}

#[tokio::test]
async fn the_database_does_not_grow_with_what_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = start(dir.path(), Faults::none());
    for round in 0..40_u64 {
        let ids = round * 200..(round + 1) * 200;
        let puts = ids
            .clone()
            .map(|id| store.apply(put(id, &"x".repeat(1500))));
        futures::future::try_join_all(puts).await.unwrap();
        let forgets = ids.map(|id| store.apply(Change::Forget(id)));
        futures::future::try_join_all(forgets).await.unwrap();
    }
    store.close();
    assert!(size(dir.path()) < 8 << 20, "{} bytes", size(dir.path()));
}

fn size(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    let sizes = entries.map(|entry| match entry.file_type().unwrap().is_dir() {
        true => size(&entry.path()),
        false => entry.metadata().unwrap().len(),
    });
    sizes.sum()
}
