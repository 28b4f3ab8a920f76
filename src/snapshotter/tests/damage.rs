//! Damage to one of the two copies, found and made good.

use std::fs;
use std::path::PathBuf;

use super::{Bed, key};
use crate::snapshotter::{Severity, Snapshotter, fsck};

impl Bed {
    fn folder(&self, name: &str) -> PathBuf {
        let record = self.s().stat(&key(name)).unwrap();
        self.root().join("snapshots").join(record.id.to_string())
    }
}

async fn three_layers() -> Bed {
    let bed = Bed::new().await;
    bed.layer("c1", "").await;
    bed.layer("c2", "c1").await;
    assert!(bed.pull("x", 'l', "c2").await.unwrap());
    bed.prepare("a", "c2").await.unwrap();
    bed
}

fn everything(snapshotter: &Snapshotter) -> Vec<std::sync::Arc<crate::snapshotter::Record>> {
    let all = crate::snapshotter::filter::Filters::parse::<&str>(&[]).unwrap();
    snapshotter.list(&all)
}

#[tokio::test]
async fn a_lost_database_is_written_anew_from_the_records() {
    let mut bed = three_layers().await;
    let before = everything(bed.s());
    bed.close().await;
    fs::remove_dir_all(bed.root().join("store")).unwrap();
    let report = fsck(bed.root(), false).unwrap();
    assert_eq!((report.snapshots, report.repaired), (4, false));
    assert!(
        report
            .findings
            .iter()
            .all(|finding| finding.severity == Severity::Damage)
    );
    assert!(!bed.root().join("store").exists(), "a look changes nothing");
    let report = fsck(bed.root(), true).unwrap();
    assert_eq!((report.snapshots, report.repaired), (4, true));
    assert_eq!(fsck(bed.root(), false).unwrap().findings, []);
    bed.reopen().await;
    assert_eq!(everything(bed.s()), before);
}

#[tokio::test]
async fn a_lost_record_is_written_anew_from_the_database() {
    let mut bed = three_layers().await;
    let before = everything(bed.s());
    let (c1, c2, a) = (bed.folder("c1"), bed.folder("c2"), bed.folder("a"));
    bed.close().await;
    fs::remove_file(c1.join("record")).unwrap();
    fs::write(c2.join("record"), "rubbish").unwrap();
    let mut bytes = fs::read(a.join("record")).unwrap();
    bytes[20] ^= 4;
    fs::write(a.join("record"), bytes).unwrap();
    bed.reopen().await;
    assert_eq!(everything(bed.s()), before);
    bed.close().await;
    assert_eq!(fsck(bed.root(), false).unwrap().findings, []);
}

#[tokio::test]
async fn a_snapshot_of_which_nothing_can_be_read_is_kept_aside_and_reported() {
    let mut bed = three_layers().await;
    let a = bed.folder("a");
    bed.close().await;
    fs::write(a.join("record"), "rubbish").unwrap();
    fs::remove_dir_all(bed.root().join("store")).unwrap();
    bed.reopen().await;
    assert!(bed.s().stat(&key("a")).is_err());
    bed.s().cleanup().await.unwrap();
    assert!(a.join("record").exists(), "nobody has decided about it");
    bed.close().await;
    let worst = fsck(bed.root(), true).unwrap().findings.remove(0);
    assert_eq!(worst.severity, Severity::Loss);
    bed.reopen().await;
    bed.s().cleanup().await.unwrap();
    assert!(!a.exists());
}

#[tokio::test]
async fn an_old_database_does_not_bring_removed_snapshots_back() {
    let mut bed = three_layers().await;
    bed.close().await;
    let (store, old) = (bed.root().join("store"), bed.root().join("old"));
    fs::rename(&store, &old).unwrap();
    bed.reopen().await;
    bed.s().remove(key("a")).await.unwrap();
    bed.layer("c3", "c2").await;
    let before = everything(bed.s());
    bed.close().await;
    fs::remove_dir_all(&store).unwrap();
    fs::rename(&old, &store).unwrap();
    bed.reopen().await;
    assert_eq!(everything(bed.s()), before);
}

#[tokio::test]
async fn a_root_in_use_is_not_checked() {
    let bed = Bed::new().await;
    let refused = fsck(bed.root(), false).unwrap_err();
    assert!(refused.to_string().contains("in use"), "{refused}");
    assert!(fsck(&bed.root().join("none"), false).is_err());
}

#[tokio::test]
async fn a_folder_of_a_call_that_never_ended_goes() {
    let mut bed = three_layers().await;
    bed.close().await;
    let orphan = bed.root().join("snapshots/77");
    fs::create_dir_all(orphan.join("fs/deep")).unwrap();
    let foreign = bed.root().join("snapshots/notes");
    fs::create_dir_all(&foreign).unwrap();
    bed.reopen().await;
    bed.s().cleanup().await.unwrap();
    assert!(!orphan.exists() && foreign.exists());
    bed.prepare("b", "").await.unwrap();
    assert_eq!(
        bed.s().stat(&key("b")).unwrap().id,
        78,
        "no number is used twice"
    );
}
