//! A registry that misbehaves, under a container that reads and verifies: what the reader sees, how
//! long it waits, and how often the registry is asked.

use std::time::Duration;

use crate::fake_registry::{FakeRegistry, Reply, Seen};
use crate::faulty::{DEADLINE, SIZE, Ward, bearer, part};

/// What the reader gets.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Gets {
    /// The content.
    Content,
    /// `EIO`, at once.
    Error,
    /// `EIO`, after the deadline.
    LateError,
}
use Gets::{Content, Error, LateError};

type Fault = Box<dyn Fn(&[u8], &Seen) -> Reply + Send>;

/// One way to misbehave.
struct Case {
    name: &'static str,
    gets: Gets,
    /// Answers that are wrong; `usize::MAX` is all.
    times: usize,
    /// Requests for the blob until the reader has its answer.
    requests: usize,
    fault: Fault,
}

/// Longer than a mount remembers a failure for the kernel's second question.
const FORGOTTEN: Duration = Duration::from_millis(120);
const ALWAYS: usize = usize::MAX;

fn once(
    name: &'static str,
    requests: usize,
    fault: impl Fn(&[u8], &Seen) -> Reply + Send + 'static,
) -> Case {
    Case {
        name,
        gets: Content,
        times: 1,
        requests,
        fault: Box::new(fault),
    }
}

/// An answer that will not get better by asking again: one request, and no more.
fn refused(name: &'static str, fault: impl Fn(&[u8], &Seen) -> Reply + Send + 'static) -> Case {
    Case {
        name,
        gets: Error,
        times: ALWAYS,
        requests: 1,
        fault: Box::new(fault),
    }
}

/// A right body with this `Content-Range`.
fn ranged(
    text: impl Fn(usize, usize, usize) -> String + Send + 'static,
) -> impl Fn(&[u8], &Seen) -> Reply + Send {
    move |blob, seen| {
        let (start, end) = seen.range().unwrap();
        let text = text(start, end, blob.len());
        Reply::new(206)
            .with("content-range", text)
            .body(&blob[start..end])
    }
}

/// A head of these lines and a body, as they are, and the end of the connection.
fn raw(lines: &'static str, body: &'static [u8]) -> impl Fn(&[u8], &Seen) -> Reply + Send {
    move |blob, seen| {
        let (start, end) = seen.range().unwrap();
        let head = format!(
            "HTTP/1.1 206 Scripted\r\ncontent-range: bytes {start}-{}/{}\r\n{lines}\r\n\r\n",
            end - 1,
            blob.len()
        );
        Reply {
            raw: Some([head.as_bytes(), body].concat()),
            ..Reply::default()
        }
    }
}

fn wrong_heads() -> Vec<Case> {
    vec![
        once("H1 the whole blob", 1, |blob, _| Reply::new(200).body(blob)),
        once("H1 the whole blob, chunked, without end", 1, |blob, _| {
            Reply {
                chunked: true,
                endless: true,
                ..Reply::new(200).body(blob)
            }
        }),
        refused(
            "H2 another range",
            ranged(|start, end, size| format!("bytes {}-{end}/{size}", start + 1)),
        ),
        refused(
            "H2 reversed",
            ranged(|start, end, size| format!("bytes {end}-{start}/{size}")),
        ),
        refused(
            "H2 H20 another size",
            ranged(|start, end, size| format!("bytes {start}-{}/{}", end - 1, size + 1)),
        ),
        refused(
            "H2 no size",
            ranged(|start, end, _| format!("bytes {start}-{}/*", end - 1)),
        ),
        refused(
            "H2 overflow",
            ranged(|start, _, size| format!("bytes {start}-18446744073709551615/{size}")),
        ),
        refused(
            "H2 negative",
            ranged(|_, end, size| format!("bytes -1-{}/{size}", end - 1)),
        ),
        refused("H2 missing", |blob, seen| Reply {
            headers: Vec::new(),
            ..part(blob, seen)
        }),
        refused("H3 multipart", |_, _| {
            let kind = "multipart/byteranges; boundary=x";
            let one = "--x\r\ncontent-type: a/b\r\ncontent-range: bytes 0-0/1\r\n\r\nz\r\n";
            Reply::new(206)
                .with("content-type", kind)
                .body(one.repeat(100_000))
        }),
        refused("H3 multipart without end", |_, _| Reply {
            chunked: true,
            endless: true,
            ..Reply::new(206).with("content-type", "multipart/byteranges")
        }),
        refused("H4 a length that does not fit", |blob, seen| Reply {
            length: Some(SIZE * 3),
            ..part(blob, seen)
        }),
        refused(
            "H4 the length of nothing",
            raw("content-length: 9223372036854775808", b""),
        ),
        refused("H6 gzip", |blob, seen| {
            part(blob, seen).with("content-encoding", "gzip")
        }),
        refused("H6 br", |blob, seen| {
            part(blob, seen).with("content-encoding", "br")
        }),
        refused("H14 404", |_, _| Reply::new(404)),
        refused("H14 410", |_, _| Reply::new(410)),
        refused("H20 a size that ends before", |_, _| Reply::new(416)),
    ]
}

fn wrong_bodies() -> Vec<Case> {
    vec![
        once("H4 short", 2, |blob, seen| Reply {
            cut: Some(100_000),
            ..part(blob, seen)
        }),
        once("H4 short, chunked", 2, |blob, seen| {
            let mut short = part(blob, seen);
            short.body.truncate(100_000);
            Reply {
                chunked: true,
                ..short
            }
        }),
        once("H4 longer, chunked, without end", 1, |blob, seen| Reply {
            chunked: true,
            endless: true,
            ..part(blob, seen)
        }),
        once(
            "H4 two lengths",
            2,
            raw("content-length: 262144\r\ncontent-length: 262145", b"x"),
        ),
        once(
            "H4 a length beyond all numbers",
            2,
            raw("content-length: 99999999999999999999999", b""),
        ),
        once(
            "H4 chunks of no size",
            2,
            raw("transfer-encoding: chunked", b"zz\r\nx\r\n"),
        ),
        once(
            "H4 a chunk beyond all numbers",
            2,
            raw("transfer-encoding: chunked", b"fffffffffffffffff\r\nx"),
        ),
        once("H5 a byte now and then", 2, |blob, seen| Reply {
            drip: Some(Duration::from_millis(100)),
            ..part(blob, seen)
        }),
        once("H5 stalled half way", 2, |blob, seen| Reply {
            stall: Some(100_000),
            ..part(blob, seen)
        }),
        once("H5 accepted and silent", 2, |_, _| Reply {
            delay: Some(Duration::from_secs(20)),
            ..Reply::new(200)
        }),
        once("H5 reset half way", 2, |blob, seen| Reply {
            reset: true,
            cut: Some(100_000),
            ..part(blob, seen)
        }),
        once("H21 reset at once", 2, |_, _| Reply {
            raw: Some(Vec::new()),
            reset: true,
            ..Reply::default()
        }),
    ]
}

fn wrong_statuses_and_bytes() -> Vec<Case> {
    vec![
        Case {
            times: 3,
            ..once("H16 500", 4, |_, _| Reply::new(500))
        },
        Case {
            times: 2,
            ..once("H16 502", 3, |_, _| Reply::new(502))
        },
        Case {
            times: 2,
            ..once("H16 503", 3, |_, _| Reply::new(503))
        },
        Case {
            times: 2,
            ..once("H16 504", 3, |_, _| Reply::new(504))
        },
        once("H15 429", 2, |_, _| Reply::new(429)),
        once("H15 429, at once", 2, |_, _| {
            Reply::new(429).with("retry-after", "0")
        }),
        once("H15 429, garbage", 2, |_, _| {
            Reply::new(429).with("retry-after", "soon; -5")
        }),
        once("H15 429, a date", 2, |_, _| {
            Reply::new(429).with("retry-after", "Wed, 21 Oct 2037 07:28:00 GMT")
        }),
        once("H15 429, a day", 2, |_, _| {
            Reply::new(429).with("retry-after", "86400")
        }),
        once("H19 another tag", 1, |blob, seen| {
            part(blob, seen).with("etag", "\"other\"")
        }),
        once("H22 a flipped byte", 2, flipped),
        Case {
            times: 2,
            ..once("H22 a flipped byte, twice", 3, |blob, seen| {
                flipped(blob, seen)
            })
        },
        Case {
            gets: Error,
            times: ALWAYS,
            ..once("H22 a flipped byte, always", 3, |blob, seen| {
                flipped(blob, seen)
            })
        },
    ]
}

fn flipped(blob: &[u8], seen: &Seen) -> Reply {
    let mut reply = part(blob, seen);
    reply.body[200_000] ^= 1;
    reply
}

fn redirects() -> Vec<Case> {
    let mut cases: Vec<_> = [
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:169.254.169.254]/",
        "http://10.0.0.1/x",
        "http://100.64.0.1/x",
        "http://[fd00::1]/x",
        "http://[64:ff9b::10.0.0.1]/x",
        "http://[fe80::1]/x",
        "file:///etc/passwd",
        "unix:/run/x",
        "http://",
        "",
        "http://127.0.0.1:1/\u{e9}",
    ]
    .into_iter()
    .map(|to| {
        refused("H8 H9 a redirect that leads astray", move |_, _| {
            Reply::redirect(to)
        })
    })
    .collect();
    cases.push(refused("H9 a redirect without target", |_, _| {
        Reply::new(307)
    }));
    cases.push(refused("H9 a long one", |_, _| {
        Reply::redirect(format!("/{}", "x".repeat(64 << 10)))
    }));
    cases.push(Case {
        requests: 6,
        ..refused("H9 a circle", |_, seen| {
            Reply::redirect(seen.target.clone())
        })
    });
    cases
}

/// Reads a fresh file under the fault, and once more when the registry is well again.
fn check(ward: &Ward, case: Case) -> Result<(), String> {
    let file = ward.fresh();
    let blob = ward.blob.clone();
    let Case {
        name,
        gets,
        times,
        requests,
        fault,
    } = case;
    ward.script(move |seen, before| (before < times).then(|| fault(&blob, seen)));
    let outcome = ward.read(&[file]);
    let asked = ward.asked();
    let took = outcome.took;
    println!("{name}: {gets:?}, {asked} requests, {took:?}");
    let right = match gets {
        Content => outcome.ok,
        Error => !outcome.ok && took < DEADLINE,
        // Time is up when the next pause would go beyond it.
        LateError => !outcome.ok && took >= DEADLINE / 2 && took < DEADLINE.mul_f32(1.4),
    };
    let enough = match gets {
        LateError => (2..=8).contains(&asked),
        _ => asked == requests,
    };
    std::thread::sleep(FORGOTTEN);
    ward.home.reset();
    let again = ward.read(&[file]);
    let (asked_again, expected) = (ward.asked(), usize::from(gets != Content));
    match right && enough && again.ok && asked_again == expected {
        true => Ok(()),
        false => Err(format!(
            "{name}: {outcome:?}, {asked} requests for {requests}; then {again:?}, {asked_again} requests"
        )),
    }
}

#[test]
fn a_container_reads_through_what_a_registry_may_do() {
    let ward = Ward::up(80);
    let late = [
        Case {
            gets: LateError,
            times: ALWAYS,
            ..once("H16 down for long", 0, |_, _| Reply::new(503))
        },
        Case {
            gets: LateError,
            times: ALWAYS,
            ..once("H5 silent for long", 0, |_, _| Reply {
                delay: Some(Duration::from_secs(9)),
                ..Reply::new(200)
            })
        },
        Case {
            gets: LateError,
            times: ALWAYS,
            ..once("H21 nobody there", 0, |_, _| Reply {
                raw: Some(Vec::new()),
                reset: true,
                ..Reply::default()
            })
        },
    ];
    let cases = [
        wrong_heads(),
        wrong_bodies(),
        wrong_statuses_and_bytes(),
        redirects(),
        late.into(),
    ];
    let wrong: Vec<_> = cases
        .into_iter()
        .flatten()
        .filter_map(|case| check(&ward, case).err())
        .collect();
    assert!(
        wrong.is_empty(),
        "{}\n{}",
        wrong.join("\n"),
        ward.bed.crfs_log()
    );

    // Through all of it nothing else suffered: what was read stays readable with nobody to ask.
    ward.script(|_, _| Some(Reply::new(500)));
    assert!(ward.read(&[0]).ok);
    assert_eq!(ward.asked(), 0);
}

/// What no foreign host may get to see.
fn no_secrets(server: &FakeRegistry) {
    for seen in server.seen() {
        for secret in ["authorization", "cookie", "referer", "x-own"] {
            assert_eq!(seen.header(secret), None, "{secret} came along");
        }
        assert_eq!(seen.query("ns"), None);
    }
}

#[test]
fn credentials_stay_where_they_belong_and_are_renewed() {
    let ward = Ward::up(60);
    let storage = FakeRegistry::start_on("127.0.0.2:0");
    let far = FakeRegistry::start_on("127.0.0.3:0");
    far.add("/signed", "x", &ward.blob);
    ward.hosts(&format!(
        "server = \"{}\"\n[header]\nx-own = \"1\"",
        ward.home.url("")
    ));
    std::thread::sleep(Duration::from_millis(1100));

    // H7: by way of one foreign host to another.
    for (round, status) in [301, 302, 303, 307, 308].into_iter().enumerate() {
        let (first, second) = (storage.url("/hop"), far.url("/signed"));
        ward.script(move |seen, _| {
            let known = seen.header("authorization").is_some();
            known.then(|| Reply::new(status).with("location", first.clone()))
        });
        storage.script(move |_, _| Some(Reply::new(status).with("location", second.clone())));
        far.reset();
        // The place where the blob was found last time is gone.
        far.script(move |_, before| (round > 0 && before == 0).then(|| Reply::new(404)));
        let outcome = ward.read(&[ward.fresh()]);
        assert!(outcome.ok, "{status}: {outcome:?}");
        let own = ward
            .home
            .seen()
            .into_iter()
            .filter(|seen| seen.path() == ward.path);
        let own = own.last().unwrap();
        assert!(own.header("authorization").is_some() && own.header("x-own").is_some());
        assert_eq!(far.count("/signed"), 1 + usize::from(round > 0));
        [&storage, &far].into_iter().for_each(no_secrets);
    }

    // H13: an expired URL costs one question, however many read.
    let target = far.url("/signed?key=2");
    ward.script(move |_, _| Some(Reply::redirect(target.clone())));
    far.reset();
    far.script(|seen, _| (seen.query("key") != Some("2")).then(|| Reply::new(403)));
    let files: Vec<_> = (0..8).map(|_| ward.fresh()).collect();
    assert!(ward.read(&files).ok);
    assert_eq!(ward.asked(), 1, "asked anew once");

    // H10: the foreign host wants credentials, for a realm of its own.
    storage.reset();
    let realm = format!("Bearer realm=\"{}\",service=\"x\"", storage.url("/token"));
    far.reset();
    far.script(move |_, _| Some(Reply::new(401).with("www-authenticate", realm.clone())));
    let outcome = ward.read(&[ward.fresh()]);
    assert!(!outcome.ok && outcome.took < DEADLINE, "{outcome:?}");
    assert_eq!(storage.count("/token"), 0);
    [&storage, &far].into_iter().for_each(no_secrets);

    // H11: the token ends in the middle of a layer; one is fetched for all.
    far.reset();
    ward.home.reset();
    let warm = ward.fresh();
    far.script(|_, _| Some(Reply::new(403)));
    assert!(ward.read(&[warm]).ok, "the registry itself serves it now");
    ward.home.reset();
    ward.home.revoke();
    let files: Vec<_> = (0..8).map(|_| ward.fresh()).collect();
    assert!(ward.read(&files).ok);
    assert_eq!(ward.home.count("/token"), 1);
    assert!(ward.asked() <= 16, "{} requests for 8 files", ward.asked());

    // H12: the password was changed. What is here can be read; the rest, when the new one is known.
    ward.home.reset();
    ward.home.guard(bearer("dXNlcjpuZXc="));
    ward.home.revoke();
    let lost = ward.fresh();
    let outcome = ward.read(&[lost]);
    assert!(!outcome.ok && outcome.took < DEADLINE, "{outcome:?}");
    assert!(ward.read(&[warm]).ok);
    ward.login("user:new");
    std::thread::sleep(FORGOTTEN);
    assert!(ward.read(&[lost]).ok, "{}", ward.bed.crfs_log());
}

#[test]
fn many_readers_are_one_and_a_wish_to_be_left_alone_is_everyones() {
    let ward = Ward::up(20);
    // H25: one chunk, many processes.
    let file = ward.fresh();
    let blob = ward.blob.clone();
    ward.script(move |seen, _| {
        Some(Reply {
            delay: Some(Duration::from_millis(500)),
            ..part(&blob, seen)
        })
    });
    let outcome = ward.read(&[file; 60]);
    assert!(outcome.ok, "{outcome:?}");
    assert_eq!(ward.asked(), 1);

    // ... and when the first request fails, it fails for those who waited, and for nobody after.
    let file = ward.fresh();
    ward.script(|_, before| {
        (before == 0).then(|| Reply {
            delay: Some(Duration::from_millis(300)),
            ..Reply::new(404)
        })
    });
    let outcome = ward.read(&[file; 20]);
    assert!(ward.asked() <= 2, "{} requests, {outcome:?}", ward.asked());
    std::thread::sleep(FORGOTTEN);
    assert!(ward.read(&[file]).ok);

    // H15: eight readers; whoever is told first tells the others.
    let begun = std::time::Instant::now();
    ward.script(|_, before| (before == 0).then(|| Reply::new(429).with("retry-after", "1")));
    let first = ward.fresh();
    let files: Vec<_> = (0..7).map(|_| ward.fresh()).collect();
    let outcomes = std::thread::scope(|scope| {
        let home = ward.home.clone();
        let path = ward.path.clone();
        let watch = scope.spawn(move || {
            while home.count(&path) == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
            // Requests that were on their way already.
            std::thread::sleep(Duration::from_millis(150));
            let before = home.count(&path);
            std::thread::sleep(Duration::from_millis(600));
            (before, home.count(&path))
        });
        let all = [&[first][..], &files].concat();
        (ward.read(&all), watch.join().unwrap())
    });
    let (outcome, (before, after)) = outcomes;
    assert!(outcome.ok, "{outcome:?}");
    assert_eq!(
        before, after,
        "nobody asks while the registry wants to be left alone"
    );
    assert!(begun.elapsed() >= Duration::from_secs(1));
    // Those beside each other are asked for together.
    assert!((2..=9).contains(&ward.asked()), "{} requests", ward.asked());
}
