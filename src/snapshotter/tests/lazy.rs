//! The lazy answer, and what containerd does with it.

use std::path::Path;
use std::time::Duration;

use super::{Bed, digest, key, target_labels};
use crate::layer::{NotLazy, Reason};
use crate::oci::label;
use crate::overlay::options::Mount;
use crate::snapshotter::{Error, Key, Prepared};
use crate::store::Faults;

#[tokio::test]
async fn a_lazy_layer_is_found_by_the_filter_that_comes_next() {
    let bed = Bed::new().await;
    assert!(bed.pull("ns/1/extract a", 'a', "").await.unwrap());
    let found = bed.find('a', "");
    assert_eq!(found.len(), 1);
    let record = bed.s().stat(&key(&found[0])).unwrap();
    assert_eq!(
        record.labels,
        target_labels('a'),
        "the labels of Prepare stay"
    );
    assert!(
        bed.s().stat(&key("ns/1/extract a")).is_err(),
        "the key is not taken"
    );
    assert!(bed.layers.is_mounted(&bed.s().files(&record)));
    assert_eq!(bed.s().usage(&record.key).await.unwrap().bytes, 1234);
    assert!(bed.pull("ns/2/extract b", 'b', &found[0]).await.unwrap());
    let above = bed.find('b', &found[0]);
    let mounts = bed.prepare("container", &above[0]).await.unwrap();
    let lower = mounts[0]
        .options
        .iter()
        .find(|option| option.starts_with("lowerdir="))
        .unwrap();
    assert!(
        lower.contains("/2/fs:") && lower.ends_with("/1/fs"),
        "the top first: {lower}"
    );
}

/// What containerd's diff is given: a view of what a container began with, then the container's mounts.
#[tokio::test]
async fn a_view_has_its_own_mounts_and_shares_them_while_it_is_there() {
    let mut bed = Bed::new().await;
    bed.layer("plain", "").await;
    assert!(bed.pull("x", 'a', "plain").await.unwrap());
    let base = bed.find('a', "plain").remove(0);
    assert!(bed.pull("y", 'b', &base).await.unwrap());
    let top = bed.find('b', &base).remove(0);
    let lower = |mounts: &[Mount]| {
        let mut options = mounts[0].options.iter();
        let lower = options.find_map(|option| option.strip_prefix("lowerdir="));
        let paths = lower.unwrap().split(':').map(str::to_owned);
        paths.collect::<Vec<_>>()
    };
    let containers = lower(&bed.prepare("container", &top).await.unwrap());
    let viewed = lower(&bed.view("view", &top).await.unwrap());
    assert_eq!(containers.len(), 3);
    let ids = ["view", &top, &base].map(|name| bed.s().stat(&key(name)).unwrap().id);
    let own = |layer: u64| format!("/{}/lower/{layer}", ids[0]);
    assert!(viewed[0].ends_with(&own(ids[1])), "{viewed:?}");
    assert!(viewed[1].ends_with(&own(ids[2])), "{viewed:?}");
    assert_eq!(viewed[2], containers[2], "what is not lazy is where it is");
    assert!(bed.layers.is_mounted(Path::new(&viewed[1])));

    let now = |bed: &Bed, name: &'static str| {
        let snapshotter = bed.s().clone();
        async move { snapshotter.mounts(&key(name)).await.unwrap() }
    };
    assert_eq!(lower(&now(&bed, "container").await), viewed);
    bed.prepare("elsewhere", &base).await.unwrap();
    assert_ne!(lower(&now(&bed, "elsewhere").await)[0], viewed[1]);

    // After a restart they are there again as soon as somebody asks.
    bed.reopen().await;
    assert_eq!(lower(&now(&bed, "container").await), containers);
    assert_eq!(lower(&now(&bed, "view").await), viewed);
    assert_eq!(lower(&now(&bed, "container").await), viewed);

    let mounted = bed.layers.mounted();
    bed.s().remove(key("view")).await.unwrap();
    assert_eq!(lower(&now(&bed, "container").await), containers);
    bed.s().cleanup().await.unwrap();
    assert_eq!(
        bed.layers.mounted(),
        mounted,
        "the container was given them"
    );
    for until in bed.s().0.lent.lock().values_mut() {
        *until = std::time::Instant::now();
    }
    bed.s().cleanup().await.unwrap();
    assert_eq!(bed.layers.mounted(), mounted - 2);
    assert!(!Path::new(&viewed[0]).exists());
}

#[tokio::test]
async fn a_view_of_one_lazy_layer_is_its_own_mount() {
    let bed = Bed::new().await;
    assert!(bed.pull("x", 'a', "").await.unwrap());
    let layer = bed.find('a', "").remove(0);
    let mounts = bed.view("view", &layer).await.unwrap();
    assert_eq!(mounts[0].options, ["ro", "rbind"]);
    assert!(mounts[0].source.ends_with("/lower/1"), "{mounts:?}");
    bed.layers.restorable('a', false);
    let failed = bed.view("other", &layer).await;
    assert!(matches!(failed, Err(Error::Degraded { .. })));
    assert_eq!(
        (bed.folders(), bed.layers.mounted()),
        (2, 2),
        "nothing is left of it"
    );
}

#[tokio::test]
async fn a_second_namespace_gets_the_same_snapshot() {
    let mut bed = Bed::new().await;
    for namespace in ["one", "two"] {
        let name = format!("{namespace}/1/extract");
        assert!(bed.pull(&name, 'a', "").await.unwrap());
    }
    bed.reopen().await;
    assert!(bed.pull("three/1/extract", 'a', "").await.unwrap());
    assert_eq!((bed.find('a', "").len(), bed.folders()), (1, 1));
    assert_eq!(bed.layers.calls("mount"), 1);
}

#[tokio::test]
async fn every_image_that_a_layer_is_pulled_as_is_kept() {
    let mut bed = Bed::new().await;
    assert!(bed.pull("ns/1/extract", 'a', "").await.unwrap());
    let before = bed.s().stat(&key(&bed.find('a', "")[0])).unwrap();
    for image in ["q.io/other:1", "q.io/other:2", "r.io/image:3", "p.io/third"] {
        let mut labels = target_labels('a');
        labels.insert(label::IMAGE_REF.to_owned(), image.to_owned());
        let prepared = bed.s().prepare(key("ns/2/extract"), None, labels);
        assert!(matches!(prepared.await.unwrap(), Prepared::Lazy));
    }
    // The same target by a manifest that has another blob for it: that is no source of this one.
    let mut labels = target_labels('a');
    labels.insert(label::IMAGE_REF.to_owned(), "liar.io/x:1".to_owned());
    labels.insert(label::LAYER_DIGEST.to_owned(), super::digest('z'));
    bed.s()
        .prepare(key("ns/3/extract"), None, labels)
        .await
        .unwrap();
    assert_eq!(bed.layers.calls("source"), 2);
    bed.reopen().await;
    let after = bed.s().stat(&key(&bed.find('a', "")[0])).unwrap();
    let lazy = after.lazy.as_ref().unwrap();
    assert_eq!(lazy.image, "r.io/image:tag");
    assert_eq!(
        lazy.also,
        ["q.io/other:1", "p.io/third:latest"],
        "one of a repository"
    );
    assert_eq!(
        (&after.labels, after.updated),
        (&before.labels, before.updated)
    );
    assert_eq!((bed.folders(), bed.layers.calls("mount")), (1, 1));
}

#[tokio::test]
async fn eight_at_once_make_one_snapshot() {
    let bed = Bed::new().await;
    bed.layers.slow_down(Duration::from_millis(50));
    let names: Vec<String> = (0..8).map(|n| format!("ns/{n}/extract")).collect();
    let pulls = names.iter().map(|name| bed.pull(name, 'a', ""));
    let answers = futures::future::join_all(pulls).await;
    assert!(answers.into_iter().all(Result::unwrap));
    assert_eq!(bed.layers.calls("mount"), 1);
    assert_eq!(
        (bed.names(&[]).len(), bed.folders(), bed.layers.mounted()),
        (1, 1, 1)
    );
}

#[tokio::test]
async fn an_image_whose_layer_is_refused_does_not_speak_for_another() {
    let bed = Bed::new().await;
    bed.layers.slow_down(Duration::from_millis(50));
    bed.layers.refuse_image("q.io/bad:1");
    let pull = |name: &str, image: &str| {
        let mut labels = target_labels('a');
        labels.insert(label::IMAGE_REF.to_owned(), image.to_owned());
        bed.s().prepare(key(name), None, labels)
    };
    let answers = [
        pull("ns/1/x", "q.io/bad:1"),
        pull("ns/2/x", "q.io/bad:1"),
        pull("ns/3/x", "r.io/good:1"),
        pull("ns/4/x", "r.io/good:1"),
    ];
    let answers = futures::future::join_all(answers).await;
    let lazy = answers.into_iter().map(Result::unwrap);
    let lazy: Vec<_> = lazy.map(|a| matches!(a, Prepared::Lazy)).collect();
    assert_eq!(lazy, [false, false, true, true]);
    assert_eq!(bed.layers.calls("mount"), 2);
}

#[tokio::test]
async fn a_layer_inherits_from_what_is_mounted() {
    let mut bed = Bed::new().await;
    assert!(bed.pull("x", 'a', "").await.unwrap());
    let base = bed.find('a', "").remove(0);
    assert!(bed.pull("y", 'b', &base).await.unwrap());
    let top = bed.find('b', &base).remove(0);
    bed.layers.restorable('a', false);
    bed.reopen().await;
    while bed.s().degraded().iter().all(|layer| layer.tries == 0) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bed.layers.restorable('a', true);
    assert!(bed.pull("z", 'c', &top).await.unwrap());
    assert_eq!(bed.layers.absent(), [] as [std::path::PathBuf; 0]);
}

#[tokio::test]
async fn the_same_layer_on_another_parent_is_another_snapshot() {
    let bed = Bed::new().await;
    bed.layer("p", "").await;
    assert!(bed.pull("x", 'a', "").await.unwrap());
    assert!(bed.pull("y", 'a', "p").await.unwrap());
    assert_eq!((bed.find('a', "").len(), bed.find('a', "p").len()), (1, 1));
}

#[tokio::test]
async fn a_layer_that_cannot_be_lazy_gets_writable_mounts() {
    let bed = Bed::new().await;
    bed.layers.refuse('b', NotLazy::PlainGzip);
    assert!(bed.pull("x", 'a', "").await.unwrap());
    let below = bed.find('a', "").remove(0);
    let prepared = bed
        .s()
        .prepare(key("e b"), Key::optional(&*below), target_labels('b'))
        .await;
    let Prepared::Mounts(mounts) = prepared.unwrap() else {
        panic!("it cannot be lazy");
    };
    assert!(
        mounts[0]
            .options
            .iter()
            .any(|option| option.starts_with("upperdir="))
    );
    assert!(!mounts[0].options.iter().any(|option| option == "ro"));
    let labels = target_labels('b');
    bed.s()
        .commit(key("ns/3/b"), key("e b"), labels)
        .await
        .unwrap();
    assert!(
        bed.pull("z", 'c', "ns/3/b").await.unwrap(),
        "lazy above plain above lazy"
    );
    bed.s().cleanup().await.unwrap();
    assert_eq!((bed.folders(), bed.layers.mounted()), (3, 2));
}

#[tokio::test]
async fn why_a_layer_is_not_lazy_is_counted_and_outlives_commit_and_restart() {
    let mut bed = Bed::new().await;
    let registry = |reason| NotLazy::Registry {
        reason,
        why: "no".to_owned(),
    };
    let cases = [
        (NotLazy::NoTocDigest, Reason::NoTocDigest),
        (NotLazy::PlainGzip, Reason::PlainGzip),
        (NotLazy::MediaType("tar".to_owned()), Reason::MediaType),
        (
            NotLazy::NotInManifest {
                manifest: digest('m').parse().unwrap(),
            },
            Reason::NotInManifest,
        ),
        (NotLazy::TooLarge("1 GB".to_owned()), Reason::TooLarge),
        (NotLazy::Invalid("x".repeat(5000)), Reason::Invalid),
        (registry(Reason::Unauthorized), Reason::Unauthorized),
        (registry(Reason::NotFound), Reason::NotFound),
        (registry(Reason::Unreachable), Reason::Unreachable),
        (registry(Reason::Registry), Reason::Registry),
        (NotLazy::Local("full".to_owned()), Reason::Local),
        (NotLazy::Internal("bug".to_owned()), Reason::Internal),
    ];
    for (letter, (why, reason)) in ('a'..).zip(&cases) {
        bed.layers.refuse(letter, why.clone());
        let name = format!("e {letter}");
        assert!(!bed.pull(&name, letter, "").await.unwrap());
        let active = bed.s().stat(&key(&name)).unwrap();
        assert_eq!(active.refused.as_ref().unwrap().reason, *reason);
        bed.s()
            .commit(
                key(&format!("done {letter}")),
                key(&name),
                target_labels(letter),
            )
            .await
            .unwrap();
        assert_eq!(bed.s().counts().refused[reason.index()], 1, "{reason:?}");
    }
    let mut unnamed = target_labels('z');
    unnamed.remove(label::IMAGE_REF);
    bed.s()
        .prepare(key("unnamed"), None, unnamed)
        .await
        .unwrap();
    assert!(bed.pull("lazy", 'y', "").await.unwrap());
    let counts = bed.s().counts();
    assert_eq!(counts.refused.iter().sum::<u64>(), cases.len() as u64 + 1);
    assert_eq!(counts.lazy, 1);
    bed.reopen().await;
    for (letter, (why, reason)) in ('a'..).zip(&cases) {
        let record = bed.s().stat(&key(&format!("done {letter}"))).unwrap();
        let kept = record.refused.as_ref().unwrap();
        assert_eq!(kept.reason, *reason);
        assert!(why.to_string().starts_with(&kept.why) && kept.why.len() <= 1000);
        assert_eq!(kept.image.as_deref(), Some("r.io/image:tag"));
        assert_eq!(kept.layer, Some(digest(letter).parse().unwrap()));
    }
    let unnamed = bed.s().stat(&key("unnamed")).unwrap();
    let kept = unnamed.refused.as_ref().unwrap();
    assert_eq!((kept.reason, &kept.image), (Reason::Labels, &None));
}

#[tokio::test]
async fn labels_that_do_not_name_a_layer_lead_to_the_ordinary_way() {
    let bed = Bed::new().await;
    for (n, gone) in [
        label::IMAGE_REF,
        label::MANIFEST_DIGEST,
        label::LAYER_DIGEST,
    ]
    .into_iter()
    .enumerate()
    {
        let mut labels = target_labels('a');
        labels.remove(gone);
        let prepared = bed
            .s()
            .prepare(key(&format!("k{n}")), None, labels)
            .await
            .unwrap();
        assert!(matches!(prepared, Prepared::Mounts(_)), "without {gone}");
    }
    assert_eq!(bed.layers.calls("mount"), 0);
}

#[tokio::test]
async fn a_missing_parent_is_no_matter_for_the_network() {
    let bed = Bed::new().await;
    let refused = bed.pull("x", 'a', "none").await;
    assert!(matches!(refused, Err(Error::ParentNotFound(_))));
    assert_eq!(bed.layers.calls("announce"), 0);
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_the_layer_and_a_retry_finds_it() {
    let bed = Bed::new().await;
    bed.layers.slow_down(Duration::from_millis(100));
    let gone = tokio::time::timeout(Duration::from_millis(20), bed.pull("x", 'a', "")).await;
    assert!(gone.is_err(), "the client did not wait");
    assert!(bed.pull("x", 'a', "").await.unwrap());
    assert_eq!((bed.layers.calls("mount"), bed.folders()), (1, 1));
}

#[tokio::test]
async fn a_parent_removed_meanwhile_leaves_nothing() {
    let bed = Bed::new().await;
    bed.layer("p", "").await;
    bed.layers.slow_down(Duration::from_millis(50));
    let remove = async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        bed.s().remove(key("p")).await
    };
    let (pulled, removed) = tokio::join!(bed.pull("x", 'a', "p"), remove);
    removed.unwrap();
    assert!(matches!(pulled, Err(Error::ParentNotFound(_))));
    bed.s().cleanup().await.unwrap();
    assert_eq!((bed.folders(), bed.layers.mounted()), (0, 0));
}

#[tokio::test]
async fn removal_unmounts_and_cleanup_tells_what_is_left() {
    let bed = Bed::new().await;
    assert!(bed.pull("x", 'a', "").await.unwrap());
    assert!(bed.pull("y", 'b', "").await.unwrap());
    let name = bed.find('a', "").remove(0);
    bed.s().remove(key(&name)).await.unwrap();
    assert!(bed.find('a', "").is_empty());
    bed.s().cleanup().await.unwrap();
    assert_eq!((bed.layers.mounted(), bed.folders()), (1, 1));
    assert_eq!(bed.layers.swept().len(), 1);
    assert!(bed.pull("x", 'a', "").await.unwrap(), "it can be had again");
}

#[tokio::test]
async fn a_start_mounts_all_again_and_lives_with_what_cannot_be() {
    let mut bed = Bed::new().await;
    assert!(bed.pull("x", 'a', "").await.unwrap());
    assert!(bed.pull("y", 'b', "").await.unwrap());
    let (good, bad) = (bed.find('a', "").remove(0), bed.find('b', "").remove(0));
    bed.prepare("on-bad", &bad).await.unwrap();
    bed.layers.restorable('b', false);
    bed.reopen().await;
    bed.prepare("on-good", &good).await.unwrap();
    let refused = bed.s().mounts(&key("on-bad")).await.unwrap_err();
    assert!(
        matches!(refused, Error::Degraded { .. }),
        "never an empty folder: {refused}"
    );
    let degraded = bed.s().degraded();
    assert_eq!(degraded.len(), 1);
    assert!(degraded[0].why.is_some() && degraded[0].tries >= 1);
    bed.layers.restorable('b', true);
    bed.s().mounts(&key("on-bad")).await.unwrap();
    assert!(bed.s().degraded().is_empty());
    bed.layers.restorable('b', false);
    bed.reopen().await;
    bed.s().remove(key("on-bad")).await.unwrap();
    bed.s().remove(key(&bad)).await.unwrap();
    assert!(
        bed.s().degraded().is_empty(),
        "a degraded layer can be removed"
    );
}

#[tokio::test]
async fn a_name_that_is_taken_is_not_a_reason_to_fail() {
    let bed = Bed::with(Faults::none()).await;
    assert!(bed.pull("x", 'a', "").await.unwrap());
    let name = bed.find('a', "").remove(0);
    bed.s().remove(key(&name)).await.unwrap();
    bed.prepare(&name, "").await.unwrap();
    assert!(bed.pull("x", 'a', "").await.unwrap());
    assert_ne!(bed.find('a', ""), [name]);
}

#[tokio::test]
async fn a_prepare_on_a_degraded_layer_leaves_nothing() {
    let mut bed = Bed::new().await;
    assert!(bed.pull("x", 'a', "").await.unwrap());
    let name = bed.find('a', "").remove(0);
    bed.layers.restorable('a', false);
    bed.reopen().await;
    let refused = bed.prepare("k", &name).await;
    assert!(matches!(refused, Err(Error::Degraded { .. })));
    assert_eq!(bed.folders(), 1);
    bed.layers.restorable('a', true);
    bed.prepare("k", &name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn an_attempt_that_begins_as_another_ends_finds_its_snapshot() {
    let bed = Bed::new().await;
    bed.layers.slow_down(Duration::from_millis(50));
    let second = async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        // It has seen that there is no such snapshot; when it goes on, there is.
        bed.layers.announce_slowly(Duration::from_millis(300));
        bed.pull("y", 'a', "").await
    };
    let (first, second) = tokio::join!(bed.pull("x", 'a', ""), second);
    assert!(first.unwrap() && second.unwrap());
    assert_eq!((bed.layers.calls("mount"), bed.find('a', "").len()), (1, 1));
}
