//! What containerd relies on when layers are lazy, over the real socket.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use tonic::Code;

use crate::snapshots_client::{Client, Daemon, Layer, RootFolder};
use crate::snapshots_daemon::SLOW;

const LAZY: Layer<'static> = Layer {
    image: "lazy",
    number: 1,
};
const PLAIN: Layer<'static> = Layer {
    image: "plain",
    number: 2,
};
const SLOW_LAYER: Layer<'static> = Layer {
    image: "slow",
    number: 3,
};

fn run(test: impl AsyncFnOnce(&RootFolder, &Client)) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let root = RootFolder::new();
        let (daemon, client) = Daemon::start(&root.path()).await;
        test(&root, &client).await;
        assert_eq!(daemon.terminate(), Some(0), "it ends in order");
    });
}

async fn found(client: &Client, layer: Layer<'_>, parent: &str) -> Vec<String> {
    let infos = client.find(layer, parent).await.unwrap();
    infos.into_iter().map(|info| info.name).collect()
}

#[test]
fn the_answer_and_the_filter_that_follows() {
    run(async |root, client| {
        let status = client
            .prepare("ns/1/extract-9 x", "", LAZY.labels())
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::AlreadyExists);
        let infos = client.find(LAZY, "").await.unwrap();
        assert_eq!(infos.len(), 1);
        assert_eq!(infos[0].labels, LAZY.labels(), "every label is kept");
        assert_eq!(root.mounts().len(), 1);
        let usage = client.usage(&infos[0].name).await.unwrap();
        assert_eq!(
            (usage.size, usage.inodes),
            (4096, 2),
            "what it holds on disk"
        );
        let mounts = client.view("ns/2/view", &infos[0].name).await.unwrap();
        let content = fs::read_to_string(format!("{}/file", mounts[0].source)).unwrap();
        assert_eq!(
            (mounts[0].r#type.as_str(), content.as_str()),
            ("bind", "content")
        );
    });
}

#[test]
fn a_second_namespace_and_the_same_again() {
    run(async |root, client| {
        for key in ["one/1/a", "one/2/b", "two/1/a"] {
            assert!(client.pull(key, "", LAZY).await.unwrap());
        }
        assert_eq!(found(client, LAZY, "").await.len(), 1);
        assert_eq!((root.folders(), root.mounts().len()), (1, 1));
    });
}

#[test]
fn eight_at_once_make_one_snapshot_and_leave_nothing_else() {
    run(async |root, client| {
        let keys: Vec<String> = (0..8).map(|n| format!("ns/{n}/extract")).collect();
        let pulls = keys.iter().map(|key| client.pull(key, "", SLOW_LAYER));
        let answers = futures::future::join_all(pulls).await;
        assert!(answers.into_iter().all(Result::unwrap));
        assert_eq!(
            client.list(&[]).await.unwrap().len(),
            1,
            "no active snapshot is left"
        );
        assert_eq!((root.folders(), root.mounts().len()), (1, 1));
    });
}

#[test]
fn lazy_plain_lazy() {
    run(async |root, client| {
        assert!(client.pull("k1", "", LAZY).await.unwrap());
        let first = found(client, LAZY, "").await.remove(0);
        let mounts = client.prepare("k2", &first, PLAIN.labels()).await.unwrap();
        assert!(
            mounts[0]
                .options
                .iter()
                .any(|option| option.starts_with("upperdir="))
        );
        assert!(mounts[0].options.iter().all(|option| option != "ro"));
        client.commit("plain", "k2").await.unwrap();
        assert!(client.pull("k3", "plain", SLOW_LAYER).await.unwrap());
        let top = found(client, SLOW_LAYER, "plain").await.remove(0);
        let mounts = client
            .prepare("container", &top, HashMap::new())
            .await
            .unwrap();
        let lower = mounts[0]
            .options
            .iter()
            .find_map(|o| o.strip_prefix("lowerdir="))
            .unwrap();
        assert_eq!(lower.split(':').count(), 3);
        let digest = PLAIN.digest();
        let line = root
            .log()
            .lines()
            .filter(|line| line.contains(&digest))
            .count();
        assert!(
            line <= 1,
            "one line says why it is not lazy, if a log is kept"
        );
    });
}

#[test]
fn a_client_that_gives_up_leaves_no_orphan_and_can_retry() {
    run(async |root, client| {
        let short = SLOW / 4;
        let gone = tokio::time::timeout(short, client.pull("k", "", SLOW_LAYER)).await;
        assert!(gone.is_err());
        assert!(client.pull("k", "", SLOW_LAYER).await.unwrap());
        assert_eq!((root.folders(), root.mounts().len()), (1, 1));
        // The same when nobody comes back: it ends up as a snapshot that containerd collects.
        let other = Layer {
            number: 4,
            ..SLOW_LAYER
        };
        let gone = tokio::time::timeout(short, client.pull("k", "", other)).await;
        assert!(gone.is_err());
        tokio::time::sleep(SLOW * 2).await;
        for name in found(client, other, "").await {
            client.remove(&name).await.unwrap();
        }
        client.cleanup().await.unwrap();
        assert_eq!((root.folders(), root.mounts().len()), (1, 1));
    });
}

#[test]
fn removal_of_a_mounted_layer_while_a_file_is_open() {
    run(async |root, client| {
        assert!(client.pull("k", "", LAZY).await.unwrap());
        let name = found(client, LAZY, "").await.remove(0);
        client
            .prepare("child", &name, HashMap::new())
            .await
            .unwrap();
        let refused = client.remove(&name).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains("remove"));
        client.remove("child").await.unwrap();
        let mount = root.mounts().remove(0);
        let mut file = fs::File::open(format!("{mount}/file")).unwrap();
        client.remove(&name).await.unwrap();
        client.cleanup().await.unwrap();
        assert_eq!((root.folders(), root.mounts().len()), (0, 0));
        let mut content = String::new();
        std::io::Read::read_to_string(&mut file, &mut content).unwrap();
        assert_eq!(content, "content");
    });
}

#[test]
fn cleanup_beside_prepares_takes_nothing_that_is_wanted() {
    run(async |_, client| {
        let prepares = async {
            for n in 0..30 {
                client
                    .prepare(&format!("p{n}"), "", HashMap::new())
                    .await
                    .unwrap();
                let layer = Layer {
                    image: "lazy",
                    number: 100 + n,
                };
                assert!(client.pull("x", "", layer).await.unwrap());
            }
        };
        let cleanups = async {
            for _ in 0..60 {
                client.cleanup().await.unwrap();
            }
        };
        tokio::join!(prepares, cleanups);
        for n in 0..30 {
            let mounts = client.mounts(&format!("p{n}")).await.unwrap();
            assert!(fs::metadata(&mounts[0].source).unwrap().is_dir());
        }
        assert_eq!(client.list(&[]).await.unwrap().len(), 60);
    });
}

#[test]
fn keys_are_any_text_up_to_a_megabyte_and_requests_have_a_limit() {
    run(async |_, client| {
        let long = "x".repeat(1 << 20);
        for key in ["a/b c", "nul\0", "../../etc", &long] {
            client.prepare(key, "", HashMap::new()).await.unwrap();
            client.mounts(key).await.unwrap();
        }
        assert_eq!(client.list(&[]).await.unwrap().len(), 4);
        client.prepare(&long, "", HashMap::new()).await.unwrap_err();
        client.remove(&long).await.unwrap();
        let status = client.prepare("", "", HashMap::new()).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        let label = HashMap::from([("k".to_owned(), "v".repeat(4096))]);
        let status = client.prepare("l", "", label).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        let status = client.list(&["name==".to_owned()]).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        let huge = "x".repeat(17 << 20);
        client.prepare(&huge, "", HashMap::new()).await.unwrap_err();
        client.mounts("a/b c").await.unwrap();
    });
}

#[test]
fn layers_come_back_after_a_kill_and_broken_ones_stop_nobody() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let root = RootFolder::new();
        let (daemon, client) = Daemon::start(&root.path()).await;
        let broken = Layer {
            image: "broken",
            number: 7,
        };
        assert!(client.pull("a", "", LAZY).await.unwrap());
        assert!(client.pull("b", "", broken).await.unwrap());
        let good = found(&client, LAZY, "").await.remove(0);
        let bad = found(&client, broken, "").await.remove(0);
        daemon.kill();
        let (daemon, client) = Daemon::start(&root.path()).await;
        client
            .prepare("on-good", &good, HashMap::new())
            .await
            .unwrap();
        let status = client
            .prepare("on-bad", &bad, HashMap::new())
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains(&broken.digest()), "{status}");
        client
            .mounts("on-bad")
            .await
            .expect_err("nothing is left of a Prepare that failed");
        client.remove(&bad).await.unwrap();
        client.cleanup().await.unwrap();
        assert_eq!(root.mounts().len(), 1);
        // A second daemon is told who has the root.
        let second = Daemon::spawn(&root.path(), None);
        assert_eq!(second.wait(), Some(3));
        assert!(root.log().contains("is in use by the crfs with process id"));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(daemon.terminate(), Some(0));
        assert_eq!(root.mounts().len(), 1, "nothing is unmounted at the end");
    });
}
