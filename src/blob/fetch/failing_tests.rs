//! Registries that fail or lie: who is told, what is kept, and that the next read starts afresh.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::fakes::{Fault, layer};
use super::tests::{node, plain, quiet, read, until};
use super::*;
use crate::blob::map::ChunkId;
use crate::blob::read::{ReadAt as _, ReadError};
use crate::blob::remote::Blob;
use crate::registry::RangeSource as _;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_fails_its_readers_and_not_the_next_ones() {
    let node = node(quiet(), 64 << 20);
    let members = plain(4, 50_000);
    let (source, map) = layer(&members);
    let blob = node.blob(&source, map);
    source.script.lock().faults = [Fault::Refuse, Fault::Break(20_000)].into();
    for _ in 0..2 {
        assert!(matches!(
            read(&blob, 1).await,
            Err(ReadError::Source { .. })
        ));
        tokio::time::sleep(super::flight::MEMORY).await;
    }
    assert!(read(&blob, 1).await.unwrap() == members[1][0]);
    // What came before the break is not lost.
    source.script.lock().faults = [Fault::Break(120_000)].into();
    blob.will_read(2..4, 0..4);
    assert!(read(&blob, 2).await.unwrap() == members[2][0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_another_layer_do_not_share_the_failure() {
    let node = node(quiet(), 64 << 20);
    let members = plain(1, 50_000);
    let (bad, bad_map) = layer(&members);
    let (good, good_map) = layer(&members);
    bad.script.lock().always = Some(Fault::Refuse);
    bad.script.lock().latency = Duration::from_millis(30);
    let (leader, follower) = (node.blob(&bad, bad_map), node.blob(&good, good_map));
    let (first, second) = tokio::join!(read(&leader, 0), read(&follower, 0));
    assert!(first.is_err());
    assert!(second.unwrap() == members[0][0]);
    assert_eq!((bad.asked().len(), good.asked().len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_content_is_fetched_again_a_few_times_and_never_kept() {
    let node = node(
        Config {
            corrupt_retries: 2,
            ..quiet()
        },
        64 << 20,
    );
    let members = plain(2, 50_000);
    let (source, map) = layer(&members);
    let blob = node.blob(&source, map);
    source.script.lock().faults = [Fault::Garble, Fault::Garble].into();
    assert!(read(&blob, 0).await.unwrap() == members[0][0]);
    assert_eq!(source.asked().len(), 3);
    source.script.lock().always = Some(Fault::Garble);
    assert!(matches!(
        read(&blob, 1).await,
        Err(ReadError::Corrupt { attempts: 3, .. })
    ));
    assert_eq!(source.asked().len(), 6);
    assert_eq!(blob.stats().corrupt, 5);
    assert!(!blob.try_read(ChunkId(1), 0, &mut [0; 8]).unwrap());
    source.script.lock().always = None;
    tokio::time::sleep(super::flight::MEMORY).await;
    assert!(
        read(&blob, 1).await.unwrap() == members[1][0],
        "the next read starts afresh"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_late_for_what_has_just_failed_asks_for_nothing() {
    let node = node(quiet(), 64 << 20);
    let (source, map) = layer(&plain(2, 50_000));
    let blob = node.blob(&source, map);
    source.script.lock().always = Some(Fault::Refuse);
    let began = Instant::now();
    assert!(read(&blob, 1).await.is_err());
    // As the kernel's second request for the chunk does, when nobody has been told of the failure yet.
    blob.will_read(1..2, 0..2);
    assert!(read(&blob, 1).await.is_err());
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(source.asked().len() == 1 || is_forgotten(began));
}

/// Whether a failure since then may be forgotten by now: the machine stood still.
fn is_forgotten(since: Instant) -> bool {
    since.elapsed() >= super::flight::MEMORY
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_before_its_reader_waits_for_it_is_not_asked_for_again() {
    let node = node(quiet(), 64 << 20);
    let (source, map) = layer(&plain(2, 50_000));
    let blob = node.blob(&source, map);
    source.script.lock().always = Some(Fault::Refuse);
    let began = Instant::now();
    blob.will_read(0..1, 0..1);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(read(&blob, 0).await.is_err());
    assert!(source.asked().len() == 1 || is_forgotten(began));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_what_a_closed_layer_was_to_read() {
    let node = node(quiet(), 64 << 20);
    let members = plain(2, 50_000);
    let (source, map) = layer(&members);
    let (closed_source, closed_map) = layer(&members);
    closed_source.script.lock().latency = Duration::from_secs(60);
    let closed = node.blob(&closed_source, closed_map);
    closed.will_read(0..1, 0..1);
    drop(closed);
    let blob = node.blob(&source, map);
    assert!(read(&blob, 0).await.unwrap() == members[0][0]);
}

/// The second asks at any moment of the first's request, and of what becomes of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_chunk_that_two_ask_for_at_once_is_asked_for_once_when_it_fails() {
    for (fault, requests) in [(Fault::Refuse, 1), (Fault::Garble, 2)] {
        let config = Config {
            corrupt_retries: 1,
            readahead: ByteSize(0),
            ..quiet()
        };
        let node = node(config, 64 << 20);
        let (source, mut map) = layer(&plain(40, 50_000));
        map.slow = Duration::from_millis(2);
        let blob = Arc::new(node.blob(&source, map));
        source.script.lock().always = Some(fault);
        for chunk in 0..40 {
            let ask = |after| {
                let blob = Arc::clone(&blob);
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    blob.will_read(chunk..chunk + 1, chunk..chunk + 1);
                    read(&blob, chunk).await
                })
            };
            let late = Duration::from_micros(500) * chunk;
            let began = Instant::now();
            let (first, second) = tokio::join!(ask(Duration::ZERO), ask(late));
            assert!(first.unwrap().is_err() && second.unwrap().is_err());
            // Whoever still had something to do has done it.
            tokio::time::sleep(Duration::from_millis(10)).await;
            let asked = source.script.lock().asked.split_off(0);
            let once = asked.len() == requests || is_forgotten(began);
            assert!(once, "chunk {chunk}, {late:?}: {asked:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_wrong_in_two_ways_is_wrong_once() {
    let node = node(quiet(), 64 << 20);
    let (source, map) = layer(&plain(2, 50_000));
    let layer = Layer::new(&node.fetcher, source as _, Arc::new(map));
    let bad = [0, 1, 0, 1].map(|member| (member, "it is wrong".to_owned()));
    layer.decoded(0..2, bad.into());
    assert_eq!(layer.stats().corrupt, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_background_waits_for_a_cache_that_keeps_nothing() {
    let config = Config {
        background: true,
        ..quiet()
    };
    let node = node(config, 64 << 20);
    let (source, map) = layer(&plain(40, 50_000));
    source.script.lock().latency = Duration::from_millis(100);
    let blob = node.blob(&source, map);
    blob.start();
    until("the first requests", || !source.asked().is_empty()).await;
    node.fetcher.cache.fail_once();
    tokio::time::sleep(Duration::from_millis(700)).await;
    let asked = source.asked().len();
    until("the whole layer", || blob.is_complete()).await;
    let most = source.size() * 2;
    assert!(source.sent() <= most, "{} of {most}", source.sent());
    assert!(source.asked().len() > asked, "it had come before");
}

type Read = Result<Vec<u8>, ReadError>;

/// Readers of every second chunk, the others being left to nobody.
fn readers(blob: &Arc<Blob>, count: u32) -> Vec<(usize, JoinHandle<Read>)> {
    let reader = |chunk| {
        let blob = Arc::clone(blob);
        let read = tokio::spawn(async move { read(&blob, chunk).await });
        (chunk as usize, read)
    };
    (0..count).map(|number| reader(2 * number)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_does_not_answer_takes_no_connection_from_the_others() {
    let config = Config {
        max_connections_total: NonZeroU32::MIN.saturating_add(1),
        readahead: ByteSize(0),
        ..quiet()
    };
    let node = node(config, 64 << 20);
    let members = plain(8, 50_000);
    let (silent, silent_map) = layer(&members);
    silent.script.lock().latency = Duration::from_secs(100);
    let dead = Arc::new(node.blob(&silent, silent_map));
    let waiting = readers(&dead, 4);
    until("all connections to be taken", || silent.asked().len() == 2).await;
    let members = plain(1, 70_000);
    let (source, map) = layer(&members);
    let blob = node.blob(&source, map);
    assert!(read(&blob, 0).await.unwrap() == members[0][0]);
    until("who stood behind", || silent.asked().len() == 4).await;
    until("none to count", || node.fetcher.stats().requests_now == 0).await;
    waiting.iter().for_each(|(_, reader)| reader.abort());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_falls_silent_takes_no_memory_from_the_others() {
    let config = Config {
        memory: ByteSize(256 << 10),
        readahead: ByteSize(0),
        ..quiet()
    };
    let node = node(config, 64 << 20);
    // Each takes all of the memory.
    let members = plain(6, 100_000);
    let (silent, silent_map) = layer(&members);
    silent.script.lock().stops_after = Some(60_000);
    let falls_silent = Arc::new(node.blob(&silent, silent_map));
    let waiting = readers(&falls_silent, 3);
    until("all to be asked", || silent.asked().len() == 3).await;
    until("a piece", || silent.sent() > 50_000).await;
    let others = plain(1, 70_000);
    let (source, map) = layer(&others);
    let blob = node.blob(&source, map);
    assert!(read(&blob, 0).await.unwrap() == others[0][0]);
    silent.script.lock().stops_after = None;
    for (chunk, reader) in waiting {
        assert!(reader.await.unwrap().unwrap() == members[chunk][0]);
    }
    let again = silent.asked().len() - 3;
    assert!((1..=3).contains(&again), "{again} given up and asked again");
    until("all to be given back", || {
        node.fetcher.stats().in_flight == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stops_for_a_while_is_not_fetched_twice_unless_memory_is_short() {
    let node = node(quiet(), 64 << 20);
    let members = plain(4, 20_000);
    let (source, map) = layer(&members);
    source.script.lock().stops_after = Some(48 << 10);
    let blob = node.blob(&source, map);
    let all: Vec<_> = (0..4).map(ChunkId).collect();
    blob.prefetch(&all);
    until("two and a half", || source.sent() == 48 << 10).await;
    // What came as a whole is not kept back with what did not.
    assert!(read(&blob, 0).await.unwrap() == members[0][0]);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    source.script.lock().stops_after = None;
    for (chunk, member) in (0..).zip(&members) {
        assert!(read(&blob, chunk).await.unwrap() == member[0]);
    }
    assert_eq!(source.asked().len(), 1);
}
