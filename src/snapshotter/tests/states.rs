//! Ordinary snapshots: what may be done in which state, and what comes of it.

use std::os::unix::fs::MetadataExt as _;

use super::{Bed, key};
use crate::snapshotter::{Error, Kind, Labels, Mask};

#[tokio::test]
async fn mounts_follow_kind_and_number_of_parents() {
    let bed = Bed::new().await;
    let path = |id: u64, sub: &str| format!("{}/snapshots/{id}/{sub}", bed.root().display());
    let first = bed.prepare("a1", "").await.unwrap();
    assert_eq!(
        (first[0].kind, first[0].source.as_str()),
        ("bind", &*path(1, "fs"))
    );
    assert_eq!(first[0].options, ["rw", "rbind"]);
    bed.commit("c1", "a1").await.unwrap();
    let second = bed.prepare("a2", "c1").await.unwrap();
    let options = [
        format!("workdir={}", path(2, "work")),
        format!("upperdir={}", path(2, "fs")),
        format!("lowerdir={}", path(1, "fs")),
    ];
    assert_eq!(second[0].options, options);
    bed.commit("c2", "a2").await.unwrap();
    let of_one = bed.view("v1", "c1").await.unwrap();
    assert_eq!(
        (of_one[0].kind, of_one[0].source.as_str()),
        ("bind", &*path(1, "fs"))
    );
    assert_eq!(of_one[0].options, ["ro", "rbind"]);
    let of_two = bed.view("v2", "c2").await.unwrap();
    let lower = format!("lowerdir={}:{}", path(2, "fs"), path(1, "fs"));
    assert_eq!(of_two[0].options, [lower]);
    let of_none = bed.view("v0", "").await.unwrap();
    assert_eq!(of_none[0].options, ["ro", "rbind"]);
    assert_eq!(bed.s().mounts(&key("v2")).await.unwrap(), of_two);
}

#[tokio::test]
async fn what_is_not_allowed_is_refused_by_its_kind_of_error() {
    let bed = Bed::new().await;
    bed.layer("c", "").await;
    bed.prepare("a", "c").await.unwrap();
    bed.view("v", "c").await.unwrap();
    assert!(matches!(
        bed.prepare("a", "").await,
        Err(Error::AlreadyExists(_))
    ));
    assert!(matches!(
        bed.view("c", "").await,
        Err(Error::AlreadyExists(_))
    ));
    assert!(matches!(
        bed.prepare("x", "none").await,
        Err(Error::ParentNotFound(_))
    ));
    assert!(matches!(
        bed.prepare("x", "a").await,
        Err(Error::ParentNotCommitted(_))
    ));
    assert!(matches!(
        bed.commit("c", "a").await,
        Err(Error::AlreadyExists(_))
    ));
    assert!(matches!(
        bed.commit("x", "none").await,
        Err(Error::NotFound(_))
    ));
    assert!(matches!(
        bed.commit("x", "v").await,
        Err(Error::NotActive(_))
    ));
    assert!(matches!(
        bed.s().mounts(&key("c")).await,
        Err(Error::NoMounts(_))
    ));
    assert!(matches!(
        bed.s().remove(key("none")).await,
        Err(Error::NotFound(_))
    ));
    let refused = bed.s().remove(key("c")).await.unwrap_err();
    assert!(
        matches!(refused, Error::HasChildren { children: 2, .. }),
        "{refused}"
    );
    assert!(
        refused.to_string().contains("remove"),
        "containerd's suite looks for the word"
    );
    assert_eq!(bed.names(&[]), ["a", "c", "v"], "nothing has changed");
}

#[tokio::test]
async fn commit_takes_new_times_and_labels_of_its_own() {
    let bed = Bed::new().await;
    let labels = |key: &str| Labels::from([(key.to_owned(), "x".to_owned())]);
    bed.s()
        .prepare(key("a"), None, labels("prepare"))
        .await
        .unwrap();
    let active = bed.s().stat(&key("a")).unwrap();
    assert_eq!(active.created, active.updated);
    bed.s()
        .commit(key("c"), key("a"), labels("commit"))
        .await
        .unwrap();
    let committed = bed.s().stat(&key("c")).unwrap();
    assert_eq!(committed.labels, labels("commit"));
    assert_eq!(committed.created, committed.updated);
    assert_ne!(committed.created, active.created);
    assert_eq!((committed.kind, committed.id), (Kind::Committed, active.id));
    assert!(bed.s().stat(&key("a")).is_err());
    let updated = bed
        .s()
        .update(key("c"), labels("update"), Mask::All)
        .await
        .unwrap();
    assert_eq!(updated.created, committed.created);
    assert_ne!(updated.updated, committed.updated);
}

#[tokio::test]
async fn a_removed_name_is_free_and_its_folder_goes() {
    let bed = Bed::new().await;
    bed.layer("c", "").await;
    bed.s().remove(key("c")).await.unwrap();
    assert!(bed.s().stat(&key("c")).is_err());
    bed.layer("c", "").await;
    bed.s().cleanup().await.unwrap();
    assert_eq!(bed.folders(), 1);
    let files = bed.s().files(&bed.s().stat(&key("c")).unwrap());
    assert_eq!(std::fs::read_to_string(files.join("file")).unwrap(), "c");
}

#[tokio::test]
async fn a_snapshot_has_the_owner_of_its_parent_and_everyone_may_enter() {
    let bed = Bed::new().await;
    bed.prepare("a", "").await.unwrap();
    let files = bed.s().files(&bed.s().stat(&key("a")).unwrap());
    let mode = std::fs::metadata(&files).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o755);
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&files, Some(1000), Some(1001)).unwrap();
    }
    let owner = |path| {
        std::fs::metadata(path)
            .map(|meta| (meta.uid(), meta.gid()))
            .unwrap()
    };
    bed.commit("c", "a").await.unwrap();
    bed.prepare("b", "c").await.unwrap();
    let above = bed.s().files(&bed.s().stat(&key("b")).unwrap());
    assert_eq!(owner(above), owner(files));
}

#[tokio::test]
async fn usage_is_counted_while_active_and_kept_when_committed() {
    let bed = Bed::new().await;
    bed.prepare("a", "").await.unwrap();
    let files = bed.s().files(&bed.s().stat(&key("a")).unwrap());
    std::fs::write(files.join("big"), vec![7; 1 << 20]).unwrap();
    let active = bed.s().usage(&key("a")).await.unwrap();
    assert!(active.bytes >= 1 << 20 && active.inodes == 2, "{active:?}");
    bed.commit("c", "a").await.unwrap();
    std::fs::remove_file(files.join("big")).unwrap();
    let committed = bed.s().usage(&key("c")).await.unwrap();
    assert!(
        committed.bytes >= 1 << 20 && committed.inodes == 2,
        "{committed:?}"
    );
}

#[tokio::test]
async fn keys_are_any_text() {
    let mut bed = Bed::new().await;
    let keys = [
        "a/../../b",
        "with space",
        "nul\0inside",
        "\n",
        &"x".repeat(1 << 20),
    ];
    for name in keys {
        bed.prepare(name, "").await.unwrap();
    }
    bed.reopen().await;
    for name in keys {
        bed.s().mounts(&key(name)).await.unwrap();
        bed.s().remove(key(name)).await.unwrap();
    }
    assert_eq!(bed.names(&[]), Vec::<String>::new());
}

#[tokio::test]
async fn many_calls_about_one_key_have_one_winner() {
    let bed = Bed::new().await;
    let attempts = (0..16).map(|_| bed.prepare("same", ""));
    let results = futures::future::join_all(attempts).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert_eq!(bed.folders(), 1);
}

#[tokio::test]
async fn after_the_end_calls_are_refused() {
    let mut bed = Bed::new().await;
    let snapshotter = bed.s().clone();
    bed.snapshotter.take();
    snapshotter.close().await;
    let late = snapshotter.prepare(key("late"), None, Labels::new()).await;
    assert!(matches!(late, Err(Error::Stopping)));
}
