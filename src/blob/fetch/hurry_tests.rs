//! What was fetched for the background, and is wanted before the background's turn to decode has come: on a busy node that may
//! be long.

use std::time::Duration;

use super::fakes::layer;
use super::tests::{node, plain, quiet, read, until};
use super::*;
use crate::blob::map::ChunkId;
use crate::blob::read::ReadAt as _;

const LEN: usize = 20_000;

fn background() -> Config {
    Config {
        background: true,
        background_connections: NonZeroU32::MIN,
        ..quiet()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wanted_overtakes_what_was_received_for_the_background() {
    let node = node(background(), 64 << 20);
    let (source, map) = layer(&plain(100, LEN));
    let busy = Arc::clone(&map.busy);
    busy.store(true, Ordering::Relaxed);
    let blob = node.blob(&source, map);
    blob.start();
    let all = 100 * (LEN as u64 + 23);
    until("the whole layer", || source.sent() == all).await;
    assert_eq!(blob.held(), 0);
    blob.prefetch(&[ChunkId(50)]);
    until("what a start needs", || blob.holds(ChunkId(50))).await;
    blob.will_read(70..72, 70..72);
    until("what will be read", || blob.holds(ChunkId(71))).await;
    read(&blob, 90).await.unwrap();
    assert!(!blob.holds(ChunkId(20)));
    busy.store(false, Ordering::Relaxed);
    until("the rest", || blob.held() == 100 * LEN as u64).await;
    assert_eq!(source.sent(), all, "nothing came twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wanted_on_its_way_does_not_wait_with_the_background() {
    let node = node(background(), 64 << 20);
    let (source, map) = layer(&plain(50, LEN));
    source.script.lock().per_piece = Duration::from_millis(5);
    let busy = Arc::clone(&map.busy);
    busy.store(true, Ordering::Relaxed);
    let blob = node.blob(&source, map);
    blob.start();
    until("the first bytes", || source.sent() > 0).await;
    blob.prefetch(&[ChunkId(8)]);
    until("what a start needs", || blob.holds(ChunkId(8))).await;
    assert!(!blob.holds(ChunkId(2)));
    busy.store(false, Ordering::Relaxed);
    until("the rest", || blob.held() == 50 * LEN as u64).await;
    assert_eq!(source.sent(), 50 * (LEN as u64 + 23));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wanted_does_not_wait_for_memory_that_the_background_holds() {
    let config = Config {
        memory: ByteSize(256 << 10),
        ..background()
    };
    let node = node(config, 64 << 20);
    let (source, map) = layer(&plain(20, LEN));
    let busy = Arc::clone(&map.busy);
    busy.store(true, Ordering::Relaxed);
    let blob = node.blob(&source, map);
    blob.start();
    until("a full budget", || {
        node.fetcher.stats().in_flight >= 100 << 10
    })
    .await;
    read(&blob, 10).await.unwrap();
    blob.prefetch(&[ChunkId(18)]);
    until("what a start needs", || blob.holds(ChunkId(18))).await;
    assert!(!blob.holds(ChunkId(0)) && !blob.holds(ChunkId(19)));
    assert_eq!(source.asked().len(), 1, "the request goes on");
    busy.store(false, Ordering::Relaxed);
    until("the rest", || blob.held() == 20 * LEN as u64).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_up_by_lack_of_memory_is_in_nobodys_way() {
    let config = Config {
        memory: ByteSize(256 << 10),
        background: true,
        ..quiet()
    };
    let node = node(config, 64 << 20);
    let (source, map) = layer(&plain(150, LEN));
    let busy = Arc::clone(&map.busy);
    busy.store(true, Ordering::Relaxed);
    let blob = node.blob(&source, map);
    blob.start();
    until("a full window", || !node.fetcher.window.has_room()).await;
    until("room for others", || node.fetcher.window.has_room()).await;
    busy.store(false, Ordering::Relaxed);
    until("the rest", || blob.held() == 150 * LEN as u64).await;
    assert_eq!(source.sent(), 150 * (LEN as u64 + 23), "nothing came twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_start_is_under_way_nothing_else_is_decoded() {
    let node = node(background(), 64 << 20);
    let (source, map) = layer(&plain(30, LEN));
    source.script.lock().per_piece = Duration::from_millis(5);
    let blob = node.blob(&source, map);
    blob.start();
    until("the first bytes", || source.sent() > 0).await;
    let all = 30 * (LEN as u64 + 23);
    {
        let (_start, _another) = (node.fetcher.precede(), node.fetcher.precede());
        let held = blob.held();
        until("the whole layer", || source.sent() == all).await;
        blob.prefetch(&[ChunkId(25)]);
        until("what a start needs", || blob.holds(ChunkId(25))).await;
        read(&blob, 20).await.unwrap();
        assert!(blob.held() < held + 10 * LEN as u64, "{}", blob.held());
    }
    until("the rest", || blob.held() == 30 * LEN as u64).await;
    assert_eq!(source.sent(), all, "nothing came twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_background_does_not_rest_for_ever() {
    let node = node(background(), 64 << 20);
    let (source, map) = layer(&plain(50, LEN));
    let rest = Duration::from_millis(200);
    let _first = node.fetcher.pool.rest(rest);
    let blob = node.blob(&source, map);
    let began = std::time::Instant::now();
    blob.start();
    until("the whole layer", || source.sent() > 0).await;
    let _second = node.fetcher.pool.rest(rest * 1000);
    assert_eq!(blob.held(), 0);
    until("the rest", || blob.held() == 50 * LEN as u64).await;
    assert!(began.elapsed() >= rest / 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_reader_takes_out_of_the_last_request_is_fetched_too() {
    let config = Config {
        background_connections: NonZeroU32::new(2).unwrap(),
        ..background()
    };
    let node = node(config, 64 << 20);
    let (source, map) = layer(&plain(34, LEN));
    source.script.lock().per_piece = Duration::from_millis(10);
    let blob = node.blob(&source, map);
    blob.start();
    until("the first bytes", || source.sent() > 0).await;
    assert_eq!(source.asked().len(), 1, "all of it");
    read(&blob, 30).await.unwrap();
    until("the rest", || blob.is_complete()).await;
    // The piece in which the first request was broken off.
    let most = 34 * (LEN as u64 + 23) + (16 << 10);
    assert!(source.sent() <= most, "{}", source.sent());
}
