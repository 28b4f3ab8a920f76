//! Hosts that send all of a blob when they are asked for a part of it.

use std::sync::Barrier;

use super::*;
use crate::registry::testing::Reply;

const SIZE: usize = 6_000_000;

/// A client that may keep whole blobs, and the folder it does that in.
fn keeping() -> (Client, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let spool = Some(folder.path().to_owned());
    let client = Client::with_spool(impatient(), Arc::new(Anonymous), spool);
    (client, folder)
}

/// A registry that knows no ranges.
fn without_ranges() -> (FakeRegistry, Vec<u8>, String) {
    let (server, content, path) = with_blob(SIZE);
    let whole = content.clone();
    server.script(move |_, _| Some(Reply::new(200).body(whole.clone())));
    (server, content, path)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_readers_have_their_part_of_one_transfer() {
    let (server, content, path) = without_ranges();
    let (client, folder) = keeping();
    let source = source(&client, &server, &content);
    let step = SIZE as u64 / 6;
    let parts = (0..6).map(|n| read(&source, n * step, (n + 1) * step));
    let parts = futures::future::try_join_all(parts).await.unwrap();
    assert!(parts.concat() == content);
    let asked = server.count(&path);
    assert!((1..=6).contains(&asked), "{asked}");
    assert!(read(&source, 5, 4_000_000).await.unwrap() == content[5..4_000_000]);
    assert!(read(&source, 0, SIZE as u64).await.unwrap() == content);
    assert_eq!(server.count(&path), asked, "it is here");
    assert_eq!(client.traffic().received(), SIZE as u64);
    let files = std::fs::read_dir(folder.path()).unwrap();
    assert_eq!(files.count(), 0, "what is kept has no name");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_waits_while_nobody_reads() {
    let (server, content, path) = with_blob(SIZE);
    let (whole, left) = (content.clone(), Arc::new(Barrier::new(2)));
    let until = Arc::clone(&left);
    server.script(move |_, _| {
        Some(Reply {
            stall: Some(SIZE / 6),
            until: Some(Arc::clone(&until)),
            ..Reply::new(200).body(whole.clone())
        })
    });
    let (client, _folder) = keeping();
    let source = source(&client, &server, &content);
    assert!(read(&source, 10_000, 20_000).await.unwrap() == content[10_000..20_000]);
    left.wait();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let early = client.traffic().received();
    assert!(early < SIZE as u64 / 2, "{early}");
    let end = SIZE as u64 - 10;
    assert!(read(&source, end, SIZE as u64).await.unwrap() == content[SIZE - 10..]);
    assert_eq!(server.count(&path), 1);
    assert_eq!(client.traffic().received(), SIZE as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_leaves_out_is_asked_for_and_what_came_is_kept() {
    let (server, content, path) = with_blob(SIZE);
    let whole = content.clone();
    server.script(move |_, before| {
        (before == 0).then(|| Reply {
            cut: Some(SIZE / 2),
            ..Reply::new(200).body(whole.clone())
        })
    });
    let (client, _folder) = keeping();
    let source = source(&client, &server, &content);
    let (start, end) = (SIZE as u64 / 3, SIZE as u64 / 3 * 2);
    assert!(read(&source, start, end).await.unwrap() == content[SIZE / 3..SIZE / 3 * 2]);
    assert_eq!(server.count(&path), 2);
    assert!(read(&source, 0, start).await.unwrap() == content[..SIZE / 3]);
    assert_eq!(server.count(&path), 2, "that had come");
    assert!(read(&source, end, SIZE as u64).await.unwrap() == content[SIZE / 3 * 2..]);
    assert_eq!(server.count(&path), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_are_not_given_again() {
    let (server, content, path) = with_blob(SIZE);
    server.script(|_, before| (before == 0).then(|| Reply::new(200).body(vec![0; SIZE])));
    let (client, _folder) = keeping();
    let source = source(&client, &server, &content);
    assert!(read(&source, 100, 200).await.unwrap() == [0; 100]);
    source.was_wrong(100..200);
    assert!(read(&source, 100, 200).await.unwrap() == content[100..200]);
    assert_eq!(server.count(&path), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_room_each_range_is_cut_from_its_own_answer() {
    let (server, content, path) = without_ranges();
    let spool = Some("/nowhere".into());
    let client = Client::with_spool(impatient(), Arc::new(Anonymous), spool);
    let source = source(&client, &server, &content);
    for start in [0, 5_000_000] {
        let got = read(&source, start, start + 10).await.unwrap();
        assert!(got == content[start as usize..start as usize + 10]);
    }
    assert_eq!(server.count(&path), 2);
}
