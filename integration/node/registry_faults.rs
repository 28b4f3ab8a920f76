//! A registry that misbehaves, under a container that reads and verifies: what the reader sees, how
//! long it waits, and how often the registry is asked.

use std::sync::Arc;
use std::time::Duration;

use crate::fake_registry::{Reply, Seen};
use crate::faulty::{DEADLINE, FORGOTTEN, SIZE, Ward, part};

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

type Fault = Arc<dyn Fn(&[u8], &Seen) -> Reply + Send + Sync>;

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

const ALWAYS: usize = usize::MAX;

fn once(
    name: &'static str,
    requests: usize,
    fault: impl Fn(&[u8], &Seen) -> Reply + Send + Sync + 'static,
) -> Case {
    Case {
        name,
        gets: Content,
        times: 1,
        requests,
        fault: Arc::new(fault),
    }
}

/// An answer that will not get better by asking again: one request, and no more.
fn refused(
    name: &'static str,
    fault: impl Fn(&[u8], &Seen) -> Reply + Send + Sync + 'static,
) -> Case {
    Case {
        name,
        gets: Error,
        times: ALWAYS,
        requests: 1,
        fault: Arc::new(fault),
    }
}

/// A right body with this `Content-Range`.
fn ranged(
    text: impl Fn(usize, usize, usize) -> String + Send + Sync + 'static,
) -> impl Fn(&[u8], &Seen) -> Reply + Send + Sync {
    move |blob, seen| {
        let (start, end) = seen.range().unwrap();
        let text = text(start, end, blob.len());
        Reply::new(206)
            .with("content-range", text)
            .body(&blob[start..end])
    }
}

/// A head of these lines and a body, as they are, and the end of the connection.
fn raw(lines: &'static str, body: &'static [u8]) -> impl Fn(&[u8], &Seen) -> Reply + Send + Sync {
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
        refused("H3 multipart, said to be the range", |blob, seen| {
            let kind = "multipart/byteranges; boundary=";
            let mut reply = part(blob, seen).with("content-type", kind);
            reply.body = "--x\r\n\r\n".repeat(100_000).into_bytes();
            reply
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
        once("H5 a head, a byte now and then", 2, |blob, seen| Reply {
            drip_head: Some(Duration::from_millis(100)),
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
    cases.push(once("H9 a relative redirect", 2, |_, _| {
        Reply::redirect("?moved=1")
    }));
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
fn check(ward: &Ward, case: &Case) -> Result<(), String> {
    let file = ward.fresh();
    let blob = ward.blob.clone();
    let Case {
        name,
        gets,
        times,
        requests,
        ref fault,
    } = *case;
    let fault = Arc::clone(fault);
    ward.script(move |seen, before| (before < times).then(|| fault(&blob, seen)));
    let outcome = ward.read(&[file]);
    let asked = ward.asked();
    let took = outcome.took;
    println!("{name}: {gets:?}, {asked} requests, {took:?}");
    let right = match gets {
        Content => outcome.ok,
        Error => !outcome.ok && took < DEADLINE,
        // The last attempt is made shortly before time is up.
        LateError => !outcome.ok && took >= DEADLINE.mul_f32(0.7) && took < DEADLINE.mul_f32(1.4),
    };
    let enough = match gets {
        LateError => (2..=8).contains(&asked),
        Error | Content => asked == requests,
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
    let ward = Ward::up(120);
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
    // Last, because from then on what comes after it in the blob is read from the same answer.
    let endless = once("H1 the whole blob, chunked, without end", 1, |blob, _| {
        Reply {
            chunked: true,
            endless: true,
            ..Reply::new(200).body(blob)
        }
    });
    let cases = [
        wrong_heads(),
        wrong_bodies(),
        wrong_statuses_and_bytes(),
        redirects(),
        late.into(),
        vec![endless],
    ];
    let wrong: Vec<_> = cases
        .into_iter()
        .flatten()
        .filter_map(|case| check(&ward, &case).err())
        .collect();
    assert!(
        wrong.is_empty(),
        "{}\n{}",
        ward.bed.crfs_log(),
        wrong.join("\n")
    );

    // Through all of it nothing else suffered: what was read stays readable with nobody to ask.
    ward.script(|_, _| Some(Reply::new(500)));
    assert!(ward.read(&[0]).ok);
    assert_eq!(ward.asked(), 0);
}

#[test]
fn a_container_reads_from_the_whole_blob_that_a_registry_sends() {
    let case = once("H1 the whole blob", 1, |blob, _| Reply::new(200).body(blob));
    check(&Ward::up(1), &case).unwrap();
}
