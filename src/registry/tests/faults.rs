//! Answers that are wrong, late, short or missing.

use std::time::Instant;

use super::*;
use crate::registry::testing::{Reply, Seen};

/// Scripts the first answer for the blob; the following ones are right.
fn first(server: &FakeRegistry, reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static) {
    server.script(move |seen, before| (before == 0).then(|| reply(seen)));
}

#[tokio::test]
async fn a_whole_blob_instead_of_a_range_is_cut_to_it() {
    let (server, content, path) = with_blob(3_000_000);
    let whole = content.clone();
    server.script(move |_, _| Some(Reply::new(200).body(whole.clone())));
    let client = client();
    let source = source(&client, &server, &content);
    let got = read(&source, 10_000, 20_000).await.unwrap();
    assert!(got == content[10_000..20_000]);
    assert!(
        client.traffic().received() < 2_000_000,
        "the rest is not read"
    );
    assert!(read(&source, 0, 3_000_000).await.unwrap() == content);
    assert_eq!(server.count(&path), 2);
}

#[tokio::test]
async fn answers_for_something_else_are_refused() {
    let (server, content, path) = with_blob(10_000);
    let part = || Reply::new(206).body(content[100..200].to_vec());
    let range = |text: &str| part().with("content-range", text);
    let cases = [
        range("bytes 101-200/10000"),
        range("bytes 100-199/10001"),
        range("bytes 100-199/*"),
        range("bytes 199-100/10000"),
        range("bytes 100-18446744073709551616/10000"),
        part(),
        part().with("content-type", "multipart/byteranges; boundary=x"),
        range("bytes 100-199/10000").with("content-encoding", "gzip"),
        Reply::new(206)
            .with("content-range", "bytes 100-199/10000")
            .body(vec![0; 101]),
        Reply::new(200).body(vec![0; 9_999]),
        Reply::new(204),
    ];
    for (asked, reply) in cases.into_iter().enumerate() {
        let text = format!("{reply:?}");
        server.script(move |_, _| Some(reply.clone()));
        let error = read(&source(&client(), &server, &content), 100, 200)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Protocol(_)), "{text}: {error}");
        assert_eq!(server.count(&path), asked + 1, "{text}: asked once");
    }
    server.script(|_, _| Some(Reply::new(416)));
    let error = read(&source(&client(), &server, &content), 100, 200)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Unsatisfiable {
                start: 100,
                end: 200,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_chunked_answer_may_neither_be_longer_nor_shorter() {
    let (server, content, path) = with_blob(10_000);
    for (size, requests) in [(99, 2), (100, 1)] {
        let before = server.count(&path);
        let mut part = Reply::part(&content, 100, 200);
        part.body.truncate(size);
        part.chunked = true;
        server.script(move |_, n| (n == before).then(|| part.clone()));
        let got = read(&source(&client(), &server, &content), 100, 200)
            .await
            .unwrap();
        assert!(got == content[100..200]);
        assert_eq!(server.count(&path) - before, requests, "{size} bytes");
    }
    assert_eq!(server.seen()[1].header("range"), Some("bytes=199-199"));
    let mut long = Reply::part(&content, 100, 200);
    long.body.push(0);
    long.chunked = true;
    server.script(move |_, _| Some(long.clone()));
    let error = read(&source(&client(), &server, &content), 100, 200)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("more bytes"), "{error}");
}

#[tokio::test]
async fn broken_and_stalled_bodies_go_on_where_they_ended() {
    let (server, content, path) = with_blob(200_000);
    let cut = |seen: &Seen, content: &[u8]| {
        let (start, end) = seen.range().unwrap();
        Reply::part(content, start, end)
    };
    for stall in [false, true] {
        let before = server.count(&path);
        let whole = content.clone();
        server.script(move |seen, n| {
            (n - before < 3).then(|| {
                let mut reply = cut(seen, &whole);
                match stall {
                    true => reply.stall = Some(50_000),
                    false => reply.cut = Some(50_000),
                }
                reply
            })
        });
        let client = client();
        let got = read(&source(&client, &server, &content), 0, 200_000)
            .await
            .unwrap();
        assert!(got == content);
        let ranges: Vec<_> = server.seen()[before..]
            .iter()
            .map(|s| s.range().unwrap())
            .collect();
        let starts: Vec<_> = ranges.iter().map(|r| r.0).collect();
        assert_eq!(
            starts,
            [0, 50_000, 100_000, 150_000],
            "nothing is fetched twice"
        );
        assert_eq!(client.traffic().received(), 200_000);
    }
}

#[tokio::test]
async fn a_dripping_body_is_a_stalled_one() {
    let (server, content, path) = with_blob(1_000);
    let whole = content.clone();
    first(&server, move |_| Reply {
        drip: Some(Duration::from_millis(50)),
        ..Reply::part(&whole, 0, 1_000)
    });
    let start = Instant::now();
    let got = read(&source(&client(), &server, &content), 0, 1_000)
        .await
        .unwrap();
    assert!(got == content);
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(server.count(&path), 2);
}

#[tokio::test]
async fn a_slow_reader_is_not_a_stalled_host() {
    let (server, content, path) = with_blob(8 << 20);
    let client = client();
    let mut pieces = source(&client, &server, &content)
        .range(0..8 << 20)
        .await
        .unwrap();
    let mut got = pieces.try_next().await.unwrap().unwrap().to_vec();
    tokio::time::sleep(impatient().progress_timeout * 3).await;
    while let Some(piece) = pieces.try_next().await.unwrap() {
        got.extend_from_slice(&piece);
    }
    assert!(got == content);
    assert_eq!(server.count(&path), 1);
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_nothing_else() {
    let (server, content, path) = with_blob(1_000);
    for (status, requests) in [
        (500, 3),
        (502, 3),
        (503, 3),
        (429, 3),
        (408, 3),
        (400, 1),
        (404, 1),
        (403, 1),
        (416, 1),
    ] {
        let before = server.count(&path);
        server.script(move |_, n| (n < before + 2).then(|| Reply::new(status)));
        let result = read(&source(&client(), &server, &content), 0, 10).await;
        assert_eq!(result.is_ok(), requests == 3, "{status}: {result:?}");
        assert_eq!(server.count(&path) - before, requests, "{status}");
    }
    let client = client();
    server.script(|_, _| Some(Reply::new(503).body("x\ny")));
    let error = read(&source(&client, &server, &content), 0, 10)
        .await
        .unwrap_err();
    assert_eq!(client.traffic().requests(), 5, "four retries");
    assert!(error.to_string().ends_with("answered 503: x y"), "{error}");
    server.script(|_, _| None);
    let again = read(&source(&client, &server, &content), 0, 10).await;
    assert!(again.is_ok(), "failures are not remembered");
}

#[tokio::test]
async fn retry_after_is_kept_by_all_but_not_for_ever() {
    let (server, content, path) = with_blob(1_000);
    first(&server, |_| Reply::new(429).with("retry-after", "86400"));
    let client = client();
    let source = source(&client, &server, &content);
    let start = Instant::now();
    let refused = tokio::spawn({
        let source = Arc::clone(&source);
        async move { read(&source, 0, 10).await }
    });
    while client.traffic().requests() == 0 || server.count(&path) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    read(&source, 10, 20).await.unwrap();
    assert!(
        start.elapsed() >= Duration::from_millis(1000),
        "{:?}",
        start.elapsed()
    );
    refused.await.unwrap().unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(server.count(&path), 3);
}

#[tokio::test]
async fn the_deadline_ends_what_never_answers() {
    let (server, content, _) = with_blob(1_000);
    server.script(|_, _| {
        Some(Reply {
            delay: Some(Duration::from_secs(30)),
            ..Reply::new(200)
        })
    });
    for progress in [Duration::from_millis(400), Duration::from_secs(20)] {
        let config = Config {
            deadline: Duration::from_secs(1),
            progress_timeout: progress,
            ..impatient()
        };
        let client = Client::new(config, Arc::new(Anonymous));
        let start = Instant::now();
        let source = source(&client, &server, &content);
        let error = read(&source, 0, 10).await.unwrap_err();
        assert!(matches!(error, Error::Deadline { .. }), "{error}");
        assert!(start.elapsed() < Duration::from_secs(3));
        assert!(error.to_string().contains(&server.host()), "{error}");
    }
}

#[tokio::test]
async fn nobody_there_is_said_with_the_host() {
    let (server, content, _) = with_blob(10);
    let image: Reference = "127.0.0.1:1/a/b:t".parse().unwrap();
    let config = Config {
        retries: 1,
        ..impatient()
    };
    let client = Client::new(config, Arc::new(Anonymous));
    let error = client.manifest(&image).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    assert!(
        error.to_string().to_lowercase().contains("refused"),
        "{error}"
    );
    let unused = source(&client, &server, &content);
    assert_eq!(unused.size(), 10);
}
