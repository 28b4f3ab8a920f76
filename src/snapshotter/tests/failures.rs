//! A step that fails: the call fails, nothing is left of it, and the next one works.

use super::{Bed, key};
use crate::snapshotter::{Labels, Mask};
use crate::store::{Faults, Step};

async fn calls(bed: &Bed) -> Vec<bool> {
    vec![
        bed.prepare("a", "base").await.is_ok(),
        bed.pull("p", 'l', "base").await.is_ok_and(|lazy| lazy),
        bed.commit("c", "a").await.is_ok(),
        bed.s()
            .update(key("c"), Labels::new(), Mask::All)
            .await
            .is_ok(),
        bed.s().remove(key("c")).await.is_ok(),
    ]
}

#[tokio::test]
async fn each_step_may_fail_and_the_call_can_be_repeated() {
    for step in Step::ALL.iter().copied() {
        let name = step.name();
        let is_start = name.starts_with("recover.");
        if is_start || name.starts_with("cleanup.") {
            continue;
        }
        // The first passes are those of the layer below.
        let passes = if name.starts_with("lazy.") || name.starts_with("update.") {
            1
        } else {
            2
        };
        let nth = match step {
            Step::StoreApplied | Step::StoreFlushed => 3,
            Step::RemoveStart | Step::RemoveMarked | Step::RemoveDone => 1,
            _ => passes,
        };
        let mut bed = Bed::with(Faults::failing(step, nth)).await;
        bed.layer("base", "").await;
        let first = calls(&bed).await;
        let expected = if step == Step::RemoveDone { 0 } else { 1 };
        let failed = first.iter().filter(|worked| !**worked).count();
        assert!(failed >= expected, "{name}: {first:?}");
        let before = bed.names(&[]);
        for name in ["a", "p", "c"] {
            // What the failed round left, so that the next begins as it did.
            let _ = bed.s().remove(key(name)).await;
        }
        for name in bed.find('l', "base") {
            bed.s().remove(key(&name)).await.unwrap();
        }
        let second = calls(&bed).await;
        assert!(
            second.iter().all(|worked| *worked),
            "{name}: {before:?} then {second:?}"
        );
        let names = bed.names(&[]);
        bed.s().cleanup().await.unwrap();
        assert_eq!(bed.folders(), names.len(), "{name}: no folder is left over");
        bed.reopen().await;
        assert_eq!(bed.names(&[]), names, "{name}: a restart changes nothing");
    }
}

#[tokio::test]
async fn a_failed_commit_leaves_the_active_snapshot_as_it_was() {
    for step in [
        Step::CommitRecord,
        Step::StoreApplied,
        Step::CommitStored,
        Step::CommitDone,
    ] {
        let nth = if step == Step::StoreApplied { 2 } else { 1 };
        let mut bed = Bed::with(Faults::failing(step, nth)).await;
        bed.prepare("a", "").await.unwrap();
        let before = bed.s().stat(&key("a")).unwrap();
        bed.commit("c", "a").await.unwrap_err();
        assert_eq!(bed.s().stat(&key("a")).unwrap(), before, "{}", step.name());
        bed.reopen().await;
        assert_eq!(bed.names(&[]), ["a"], "{}", step.name());
        assert_eq!(bed.s().stat(&key("a")).unwrap(), before, "{}", step.name());
        bed.commit("c", "a").await.unwrap();
    }
}

#[tokio::test]
async fn a_removal_is_final_though_the_database_fails() {
    let mut bed = Bed::with(Faults::failing(Step::StoreApplied, 2)).await;
    bed.prepare("a", "").await.unwrap();
    bed.s().remove(key("a")).await.unwrap();
    bed.reopen().await;
    assert_eq!(bed.names(&[]), Vec::<String>::new());
}

#[tokio::test]
async fn an_interrupted_cleanup_is_taken_up_again() {
    for step in [Step::CleanupUnmounted, Step::CleanupDone] {
        let mut bed = Bed::with(Faults::failing(step, 1)).await;
        bed.prepare("a", "").await.unwrap();
        bed.s().remove(key("a")).await.unwrap();
        bed.s().cleanup().await.unwrap_err();
        bed.s().cleanup().await.unwrap();
        assert_eq!(bed.folders(), 0, "{}", step.name());
        bed.reopen().await;
    }
}
