//! How long the mounts of a view stay, and who brings them back.

use std::path::Path;
use std::time::Duration;

use super::{Bed, key};
use crate::store::Faults;

/// Who asked for a container's mounts mounts them a moment later.
#[tokio::test]
async fn a_view_that_was_lent_stays_for_a_while_but_no_restart() {
    let mut bed = Bed::new().await;
    assert!(bed.pull("x", 'a', "").await.unwrap());
    let layer = bed.find('a', "").remove(0);
    bed.prepare("container", &layer).await.unwrap();
    for name in ["lent", "own"] {
        bed.view(name, &layer).await.unwrap();
        bed.s().mounts(&key(name)).await.unwrap();
        if name == "lent" {
            bed.s().mounts(&key("container")).await.unwrap();
        }
        bed.s().remove(key(name)).await.unwrap();
    }
    bed.s().cleanup().await.unwrap();
    assert_eq!((bed.folders(), bed.layers.mounted()), (3, 2));
    bed.reopen().await;
    bed.s().cleanup().await.unwrap();
    assert_eq!(bed.folders(), 2);
}

/// Containers beside a view read through its mounts, and ask for nothing when the daemon is replaced.
#[tokio::test]
async fn a_start_serves_what_views_had_mounted_without_being_asked() {
    let mut bed = Bed::new().await;
    assert!(bed.pull("x", 'a', "").await.unwrap());
    let layer = bed.find('a', "").remove(0);
    let left = bed.view("left", &layer).await.unwrap();
    let gone = bed.view("gone", &layer).await.unwrap();
    bed.close().await;
    bed.layers.hand_over(Path::new(&left[0].source));
    bed.open(Faults::none()).await;
    for _ in 0..500 {
        if bed.layers.is_mounted(Path::new(&left[0].source)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(bed.layers.is_mounted(Path::new(&left[0].source)));
    assert!(
        !bed.layers.is_mounted(Path::new(&gone[0].source)),
        "nobody asked"
    );
}
