//! Many clients at once, and many layers at a start.

use std::time::{Duration, Instant};

use crate::snapshots_client::{Client, Daemon, Layer, Random, RootFolder, is_long};

const CLIENTS: usize = 64;

/// Builds chains of lazy and plain layers and takes them down again, until the time is up.
async fn pull_and_remove(client: Client, number: usize, until: Instant) -> usize {
    let mut random = Random(number as u64);
    let mut calls = 0;
    while Instant::now() < until {
        let mut chain: Vec<String> = Vec::new();
        for depth in 0..1 + random.below(4) {
            let parent = chain.last().cloned().unwrap_or_default();
            let key = format!("{number}/extract {depth}");
            if random.below(2) == 0 {
                // Half of the lazy layers are wanted by everybody at once.
                let shared = depth == 0 && random.below(2) == 0;
                let number = if shared {
                    1
                } else {
                    1000 + number * 10 + depth
                };
                let layer = Layer {
                    image: "lazy",
                    number,
                };
                assert!(client.pull(&key, &parent, layer).await.unwrap());
                if shared {
                    // Anybody may remove it meanwhile, so nothing is built on it.
                    for info in client.find(layer, &parent).await.unwrap() {
                        let _ = client.remove(&info.name).await;
                    }
                    break;
                }
                chain.push(client.find(layer, &parent).await.unwrap().remove(0).name);
            } else {
                let name = format!("{number}/layer {depth}");
                client.prepare(&key, &parent, [].into()).await.unwrap();
                client.commit(&name, &key).await.unwrap();
                chain.push(name);
            }
            calls += 2;
        }
        let container = format!("{number}/container");
        let parent = chain.last().cloned().unwrap_or_default();
        client
            .prepare(&container, &parent, [].into())
            .await
            .unwrap();
        if let Some(parent) = chain.last() {
            client.remove(parent).await.unwrap_err();
        }
        client.remove(&container).await.unwrap();
        while let Some(name) = chain.pop() {
            client.remove(&name).await.unwrap();
        }
        if random.below(8) == 0 {
            client.cleanup().await.unwrap();
        }
        calls += 4;
    }
    calls
}

#[test]
fn sixty_four_clients_leave_nothing_behind() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let root = RootFolder::new();
        let (daemon, client) = Daemon::start(&root.path()).await;
        let seconds = if is_long() { 60 } else { 15 };
        let until = Instant::now() + Duration::from_secs(seconds);
        let tasks = (0..CLIENTS).map(|n| tokio::spawn(pull_and_remove(client.clone(), n, until)));
        let calls: Vec<_> = futures::future::try_join_all(tasks).await.unwrap();
        println!("{} calls in {seconds} s", calls.iter().sum::<usize>());
        for info in client.list(&[]).await.unwrap() {
            assert!(info.name.starts_with("lazy/"), "{}", info.name);
            client.remove(&info.name).await.unwrap();
        }
        client.cleanup().await.unwrap();
        assert_eq!((root.folders(), root.mounts().len()), (0, 0));
        assert_eq!(daemon.terminate(), Some(0));
    });
}

#[test]
fn a_start_with_five_hundred_layers_serves_at_once() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let count = 500;
        let root = RootFolder::new();
        let (daemon, client) = Daemon::start(&root.path()).await;
        for begin in (0..count).step_by(50) {
            let pull = |n: usize| {
                let client = client.clone();
                async move {
                    // One of them cannot be mounted again.
                    let image = if n == 77 { "broken" } else { "lazy" };
                    let layer = Layer { image, number: n };
                    client.pull(&format!("k{n}"), "", layer).await
                }
            };
            let pulled = futures::future::try_join_all((begin..begin + 50).map(pull)).await;
            assert!(pulled.unwrap().into_iter().all(|lazy| lazy));
        }
        daemon.kill();
        let began = Instant::now();
        let (daemon, client) = Daemon::start(&root.path()).await;
        assert_eq!(client.list(&[]).await.unwrap().len(), count);
        let took = began.elapsed();
        println!("{count} layers: serves after {took:?}");
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert_eq!(daemon.terminate(), Some(0));
    });
}

#[test]
fn a_chain_of_128_layers_can_be_used() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let root = RootFolder::new();
        let (daemon, client) = Daemon::start(&root.path()).await;
        let mut parent = String::new();
        for number in 0..128 {
            let layer = Layer {
                image: "lazy",
                number,
            };
            assert!(client.pull("k", &parent, layer).await.unwrap());
            parent = client.find(layer, &parent).await.unwrap().remove(0).name;
        }
        let mounts = client
            .prepare("container", &parent, [].into())
            .await
            .unwrap();
        let lower = mounts[0]
            .options
            .iter()
            .find_map(|o| o.strip_prefix("lowerdir="))
            .unwrap();
        assert_eq!(lower.split(':').count(), 128);
        assert_eq!(daemon.terminate(), Some(0));
    });
}
