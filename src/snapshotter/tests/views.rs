//! How long the mounts of a view stay, and who brings them back.

use super::{Bed, key};

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
