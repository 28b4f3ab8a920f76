//! Fetching against a scripted registry.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::fakes::{FakeMap, FakeSource, Fault, layer};
use super::*;
use crate::blob::cache;
use crate::blob::map::ChunkId;
use crate::blob::read::{ReadAt as _, ReadError};
use crate::blob::remote::Blob;

/// Only what is read; tests turn on what they are about.
pub(super) fn quiet() -> Config {
    Config {
        background: false,
        prefetch: false,
        ..Config::default()
    }
}

pub(super) struct Node {
    pub(super) fetcher: Arc<Fetcher>,
    _dir: TempDir,
}

pub(super) fn node(config: Config, cache_size: u64) -> Node {
    let dir = TempDir::new().unwrap();
    let config_cache = cache::Config {
        max_size: ByteSize(cache_size),
    };
    let cache = Arc::new(Cache::open(dir.path(), &config_cache).unwrap());
    Node {
        fetcher: Fetcher::new(cache, config, Handle::current()),
        _dir: dir,
    }
}

impl Node {
    pub(super) fn blob(&self, source: &Arc<FakeSource>, map: FakeMap) -> Blob {
        Blob::new(&self.fetcher, Arc::clone(source) as _, Arc::new(map))
    }
}

fn content(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (((at * 31 + seed * 7919) >> 3) ^ (at * seed)) as u8)
        .collect()
}

/// `count` members of one chunk each.
pub(super) fn plain(count: usize, len: usize) -> Vec<Vec<Vec<u8>>> {
    (0..count)
        .map(|seed| vec![content(seed + 1, len)])
        .collect()
}

pub(super) async fn read(blob: &Blob, chunk: u32) -> Result<Vec<u8>, ReadError> {
    let fetched = blob.fetch(ChunkId(chunk), chunk..chunk + 1);
    Ok(tokio::time::timeout(Duration::from_secs(20), fetched)
        .await
        .expect("hangs")?
        .to_vec())
}

pub(super) async fn until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..2000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what} did not come to be");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetched_member_is_a_hit_with_all_of_its_chunks() {
    let node = node(quiet(), 64 << 20);
    let members = vec![
        vec![content(1, 100), content(2, 70_000), content(3, 5)],
        vec![content(4, 9)],
    ];
    let (source, map) = layer(&members);
    let blob = node.blob(&source, map);
    let reads = blob.record_reads();
    let mut out = [0; 5];
    assert!(!blob.try_read(ChunkId(2), 0, &mut out).unwrap());
    assert_eq!(read(&blob, 1).await.unwrap(), members[0][1]);
    assert!(
        blob.try_read(ChunkId(2), 0, &mut out).unwrap(),
        "it came with the other"
    );
    assert_eq!(out[..], members[0][2]);
    assert!(!blob.try_read(ChunkId(3), 0, &mut out).unwrap());
    assert!(
        blob.try_read(ChunkId(2), 1, &mut out).is_err(),
        "beyond the chunk"
    );
    assert!(read(&blob, 4).await.is_err(), "no such chunk");
    assert_eq!(source.asked().len(), 1);
    let stats = blob.stats();
    assert_eq!((stats.hits, stats.misses, stats.cached), (1, 1, 70_105));
    assert_eq!(stats.fetched, source.sent());
    assert_eq!(blob.held(), 70_105);
    let first: Vec<_> = reads.list().iter().map(|read| read.chunk).collect();
    assert_eq!(first, [ChunkId(1), ChunkId(2)]);
    assert!(blob.space().disk_total > 0 && blob.space().layer == 70_105);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_readers_of_one_chunk_are_one_request() {
    let node = node(quiet(), 64 << 20);
    let members = plain(2, 100_000);
    let (source, map) = layer(&members);
    source.script.lock().latency = Duration::from_millis(20);
    let blob = Arc::new(node.blob(&source, map));
    let readers: Vec<_> = (0..1000)
        .map(|_| {
            let blob = Arc::clone(&blob);
            tokio::spawn(async move { read(&blob, 1).await })
        })
        .collect();
    for reader in readers {
        assert!(reader.await.unwrap().unwrap() == members[1][0]);
    }
    assert_eq!(source.asked().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_layers_share_content_and_a_restart_keeps_it() {
    let dir = TempDir::new().unwrap();
    let config = cache::Config {
        max_size: ByteSize(64 << 20),
    };
    let members = plain(3, 5000);
    for round in 0..2 {
        // Tasks of the round before may be about to end.
        let mut opened = Cache::open(dir.path(), &config);
        while opened.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
            opened = Cache::open(dir.path(), &config);
        }
        let cache = Arc::new(opened.unwrap());
        let fetcher = Fetcher::new(cache, quiet(), Handle::current());
        let (source, map) = layer(&members);
        let (other, other_map) = layer(&[vec![content(9, 10), members[2][0].clone()]]);
        let one = Blob::new(&fetcher, source.clone(), Arc::new(map));
        let two = Blob::new(&fetcher, other.clone(), Arc::new(other_map));
        if round == 0 {
            read(&one, 2).await.unwrap();
        }
        let mut out = vec![0; 5000];
        assert!(two.try_read(ChunkId(1), 0, &mut out).unwrap());
        assert!(out == members[2][0]);
        assert_eq!(source.asked().len(), 1 - round);
        assert!(other.asked().is_empty());
        drop((one, two, fetcher));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adjacent_chunks_are_one_range() {
    let config = Config {
        readahead: ByteSize(0),
        ..quiet()
    };
    let node = node(config, 64 << 20);
    let members = plain(20, 10_000);
    let (source, map) = layer(&members);
    source.script.lock().latency = Duration::from_millis(5);
    let blob = node.blob(&source, map);
    read(&blob, 7).await.unwrap();
    blob.will_read(3..12, 0..20);
    for chunk in 3..12 {
        assert!(read(&blob, chunk).await.unwrap() == members[chunk as usize][0]);
    }
    // Around the one that is here already, which is not fetched twice.
    assert_eq!(source.asked().len(), 3);
    assert_eq!(source.sent(), 9 * 10_023);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_one_small_file_after_the_other_seldom_waits() {
    let node = node(quiet(), 64 << 20);
    let members = plain(400, 20_000);
    let (source, map) = layer(&members);
    let blob = node.blob(&source, map);
    for chunk in 0..400 {
        assert!(read(&blob, chunk).await.unwrap() == members[chunk as usize][0]);
    }
    assert_eq!(source.sent(), 400 * 20_023, "nothing twice");
    assert!(source.asked().len() < 20, "{}", source.asked().len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_background_brings_all_once_and_skips_what_is_here() {
    let node = node(
        Config {
            background: true,
            ..quiet()
        },
        64 << 20,
    );
    let members = plain(100, 20_000);
    let (source, map) = layer(&members);
    let blob = node.blob(&source, map);
    read(&blob, 50).await.unwrap();
    blob.start();
    until("the whole layer", || blob.held() == 100 * 20_000).await;
    assert_eq!(source.sent(), 100 * 20_023);
    assert_eq!(
        source.asked().len(),
        5,
        "what was read, and four thirds of a window"
    );
    assert_eq!(blob.stats().background_left, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_are_fetched_in_the_order_of_mounting_and_after_a_failure_again() {
    let config = Config {
        background_connections: NonZeroU32::MIN,
        background: true,
        ..quiet()
    };
    let node = node(config, 64 << 20);
    let (first, first_map) = layer(&plain(4, 50_000));
    let (second, second_map) = layer(&[vec![content(99, 70_000)]]);
    first.script.lock().latency = Duration::from_millis(50);
    let (one, two) = (node.blob(&first, first_map), node.blob(&second, second_map));
    one.start();
    two.start();
    until("the second layer", || two.held() == 70_000).await;
    assert_eq!(one.held(), 200_000, "the first was first");

    let (failing, map) = layer(&[vec![content(77, 1000)]]);
    failing.script.lock().faults = [Fault::Refuse].into();
    let three = node.blob(&failing, map);
    three.start();
    until("the failed layer", || three.held() == 1000).await;
    assert_eq!(failing.asked().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_reader_does_not_wait_behind_the_background() {
    let config = Config {
        background_connections: NonZeroU32::MIN,
        background: true,
        ..quiet()
    };
    let node = node(config, 64 << 20);
    let members = plain(40, 100_000);
    let (source, map) = layer(&members);
    // The segment takes 1.3 s.
    source.script.lock().per_piece = Duration::from_millis(10);
    let blob = node.blob(&source, map);
    blob.start();
    until("the first request", || source.sent() > 0).await;
    let start = std::time::Instant::now();
    assert!(read(&blob, 19).await.unwrap() == members[19][0]);
    assert!(
        start.elapsed() < Duration::from_millis(600),
        "{:?}",
        start.elapsed()
    );
    assert!(source.asked().len() >= 2);
    source.script.lock().per_piece = Duration::ZERO;
    until("the rest", || blob.held() == 40 * 100_000).await;
    // Nothing twice but what was on its way when the segment was cut.
    assert!(source.sent() < 40 * 100_034 + 20_000, "{}", source.sent());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_is_silent_takes_no_room_from_the_others() {
    let config = Config {
        background: true,
        ..quiet()
    };
    let node = node(config, 64 << 20);
    let (silent, silent_map) = layer(&plain(40, 100_000));
    silent.script.lock().latency = Duration::from_secs(100);
    let blob = node.blob(&silent, silent_map);
    blob.start();
    until("the window to be full", || !node.fetcher.window.has_room()).await;
    let start = std::time::Instant::now();
    until("room for others", || node.fetcher.window.has_room()).await;
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_close_behind_a_segment_waits_for_it() {
    let config = Config {
        background_connections: NonZeroU32::MIN,
        background: true,
        ..quiet()
    };
    let node = node(config, 64 << 20);
    let members = plain(10, 100_000);
    let (source, map) = layer(&members);
    source.script.lock().per_piece = Duration::from_millis(2);
    let blob = node.blob(&source, map);
    blob.start();
    until("the first request", || source.sent() > 0).await;
    assert!(read(&blob, 3).await.unwrap() == members[3][0]);
    assert_eq!(source.asked().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removal_stops_requests_and_frees_waiters() {
    let node = node(
        Config {
            background: true,
            ..quiet()
        },
        64 << 20,
    );
    let members = plain(100, 100_000);
    let (source, map) = layer(&members);
    source.script.lock().per_piece = Duration::from_millis(5);
    let blob = node.blob(&source, map);
    blob.start();
    let waiting = blob.fetch(ChunkId(99), 99..100);
    until("some bytes", || source.sent() > 0).await;
    drop(blob);
    let outcome = tokio::time::timeout(Duration::from_secs(5), waiting)
        .await
        .expect("hangs");
    assert!(
        matches!(outcome, Err(ReadError::Closed { .. })),
        "{outcome:?}"
    );
    tokio::time::sleep(Duration::from_millis(50)).await;
    let sent = source.sent();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(source.sent(), sent, "nothing more is taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_landmark_is_one_range_and_the_mount_does_not_wait() {
    let node = node(
        Config {
            prefetch: true,
            ..quiet()
        },
        64 << 20,
    );
    let members = plain(30, 10_000);
    let (source, mut map) = layer(&members);
    map.prefetch = Some(20 * 10_023);
    let blob = node.blob(&source, map);
    let reads = blob.record_reads();
    assert_eq!(blob.before_landmark().len(), 20);
    blob.prefetch_landmark();
    until("the prefetch", || blob.held() == 20 * 10_000).await;
    assert_eq!(source.asked(), std::slice::from_ref(&(0..20 * 10_023)));
    assert!(reads.list().is_empty(), "a prefetch is no read");

    blob.prefetch(&[ChunkId(28), ChunkId(27), ChunkId(3)]);
    until("the profile", || blob.held() == 22 * 10_000).await;
    assert_eq!(source.asked()[1], 27 * 10_023..29 * 10_023);
    assert_eq!(source.asked().len(), 2);
    assert!(blob.holds(ChunkId(28)) && !blob.holds(ChunkId(29)) && blob.holds(ChunkId(30)));
    assert!(reads.list().is_empty(), "nor is that of a profile");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_background_begins_nothing_while_a_start_is_under_way() {
    let node = node(
        Config {
            background: true,
            ..quiet()
        },
        64 << 20,
    );
    let members = plain(50, 10_000);
    let (source, map) = layer(&members);
    let blob = node.blob(&source, map);
    let start = node.fetcher.precede();
    blob.start();
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(source.asked().is_empty(), "{:?}", source.asked());
    blob.prefetch(&[ChunkId(40)]);
    until("the prefetch", || blob.holds(ChunkId(40))).await;
    assert_eq!(read(&blob, 7).await.unwrap(), members[7][0]);
    assert_eq!(source.asked().len(), 2);
    drop(start);
    until("the background", || blob.held() == 50 * 10_000).await;
    assert_eq!(source.sent(), 50 * 10_023, "nothing twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sequential_reader_is_kept_ahead_of() {
    let node = node(
        Config {
            readahead: ByteSize(4 << 20),
            ..quiet()
        },
        256 << 20,
    );
    let members = plain(200, 100_000);
    let (source, map) = layer(&members);
    source.script.lock().latency = Duration::from_millis(10);
    let blob = node.blob(&source, map);
    let mut misses = 0;
    for chunk in 0..200 {
        let mut out = vec![0; 100_000];
        if !blob.try_read(ChunkId(chunk), 0, &mut out).unwrap() {
            misses += 1;
            out = blob.fetch(ChunkId(chunk), 0..200).await.unwrap().to_vec();
        }
        assert!(out == members[chunk as usize][0]);
        // A reader that does something with what it reads: 50 MB/s.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(source.asked().len() < 30, "{}", source.asked().len());
    assert!(misses < 60, "{misses}");
    assert_eq!(source.sent(), 200 * 100_028, "nothing twice, nothing else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_usable_cache_reads_work_all_the_same() {
    let node = node(
        Config {
            background: true,
            ..Config::default()
        },
        0,
    );
    let members = plain(5, 30_000);
    let (source, map) = layer(&members);
    let blob = Arc::new(node.blob(&source, map));
    blob.start();
    for _ in 0..2 {
        let readers: Vec<_> = (0..50)
            .map(|n| {
                let blob = Arc::clone(&blob);
                tokio::spawn(async move { (n % 5, read(&blob, n % 5).await) })
            })
            .collect();
        for reader in readers {
            let (chunk, bytes) = reader.await.unwrap();
            assert!(bytes.unwrap() == members[chunk as usize][0]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_larger_than_the_memory_budget_pass_one_by_one() {
    let node = node(
        Config {
            memory: ByteSize(256 << 10),
            ..quiet()
        },
        64 << 20,
    );
    let members = plain(12, 400_000);
    let (source, map) = layer(&members);
    let blob = Arc::new(node.blob(&source, map));
    let readers: Vec<_> = (0..12_u32)
        .rev()
        .map(|chunk| {
            let blob = Arc::clone(&blob);
            tokio::spawn(async move { (chunk, read(&blob, chunk).await) })
        })
        .collect();
    for reader in readers {
        let (chunk, bytes) = reader.await.unwrap();
        assert!(bytes.unwrap() == members[chunk as usize][0]);
    }
}
