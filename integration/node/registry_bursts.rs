//! Registries that are unwell for a while: refusals in bursts and at random, a wish to be left alone,
//! connections that nobody reads from, and restarts of crfs in the midst of it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::bed;
use crate::fake_registry::Reply;
use crate::faulty::{DEADLINE, FORGOTTEN, Ward, bearer, part};

#[test]
fn bursts_are_waited_out_and_what_fails_at_random_is_asked_again() {
    let ward = Ward::up(60);
    // H16: broken for more than a second, from the first request on.
    const BROKEN: Duration = Duration::from_millis(1200);
    for status in [500, 502, 503, 504] {
        let begun = OnceLock::new();
        ward.script(move |_, _| {
            let begun = begun.get_or_init(Instant::now);
            (begun.elapsed() < BROKEN).then(|| Reply::new(status))
        });
        let outcome = ward.read(&[ward.fresh()]);
        assert!(outcome.ok, "{status}: {outcome:?}");
        let took = outcome.took;
        assert!(BROKEN <= took && took < DEADLINE, "{status}: {outcome:?}");
        assert!(
            (3..=7).contains(&ward.asked()),
            "{status}: {} requests",
            ward.asked()
        );
    }

    // One answer in twenty is a failure, and one byte in some hundred thousands is another.
    let (failed, flipped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (blob, failures, flips) = (ward.blob.clone(), Arc::clone(&failed), Arc::clone(&flipped));
    ward.script(move |seen, before| match before % 20 {
        3 => {
            failures.fetch_add(1, Ordering::SeqCst);
            Some(Reply::new(503))
        }
        7 => {
            flips.fetch_add(1, Ordering::SeqCst);
            let mut reply = part(&blob, seen);
            let middle = reply.body.len() / 2;
            reply.body[middle] ^= 1;
            Some(reply)
        }
        _ => None,
    });
    for _ in 0..40 {
        let outcome = ward.read(&[ward.fresh()]);
        assert!(outcome.ok, "{outcome:?}");
    }
    let (failed, flipped) = (
        failed.load(Ordering::SeqCst),
        flipped.load(Ordering::SeqCst),
    );
    assert!(failed >= 2 && flipped >= 2, "{failed} {flipped}");
    assert_eq!(
        ward.asked(),
        40 + failed + flipped,
        "only what failed is asked again"
    );
    let told = ward
        .bed
        .crfs_log()
        .matches("the registry sent wrong content")
        .count();
    assert_eq!(told, flipped, "each is told, with the layer and the place");
}

#[test]
fn the_background_leaves_a_registry_alone_as_readers_do() {
    let mut ward = Ward::up(40);
    // H15: the background fetch is under way, slowly, when it is told to stop; a reader comes then.
    let (blob, told) = (ward.blob.clone(), Arc::new(AtomicBool::new(false)));
    let tell = Arc::clone(&told);
    ward.script(move |seen, _| {
        if tell.swap(false, Ordering::SeqCst) {
            return Some(Reply::new(429).with("retry-after", "86400"));
        }
        Some(Reply {
            delay: Some(Duration::from_millis(60)),
            ..part(&blob, seen)
        })
    });
    let config = fs::read_to_string(ward.bed.value("CRFS_CONFIG")).unwrap();
    let slow = "background = true\nbackground_connections = 1\nrate_limit = \"2MiB\"";
    let config = config.replace("background = false", slow);
    fs::write(ward.bed.value("CRFS_CONFIG"), config).unwrap();
    ward.restart();
    bed::wait_for("the background to begin", 20, || ward.asked() >= 2);
    told.store(true, Ordering::SeqCst);
    bed::wait_for("somebody to be turned away", 20, || {
        !told.load(Ordering::SeqCst)
    });
    let asked = || ward.home.count(&ward.path);
    // Requests that were on their way already.
    thread::sleep(Duration::from_millis(150));
    let before = asked();
    let last = 39;
    let outcome = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            thread::sleep(Duration::from_millis(600));
            asked()
        });
        let outcome = ward.read(&[last]);
        (outcome, reader.join().unwrap())
    });
    assert_eq!(
        before, outcome.1,
        "nobody asks while the registry wants to be left alone"
    );
    assert!(outcome.0.ok && outcome.0.took < DEADLINE, "{outcome:?}");
    // A day is more than anybody waits: it goes on, and what is here is not asked for again.
    let mut last = (Instant::now(), asked());
    bed::wait_for("the background to be done", 60, || {
        if last.1 != asked() {
            last = (Instant::now(), asked());
        }
        last.0.elapsed() > Duration::from_secs(2)
    });
    ward.script(|_, _| Some(Reply::new(500)));
    let files: Vec<_> = (0..40).collect();
    assert!(ward.read(&files).ok, "{}", ward.bed.crfs_log());
    assert_eq!(ward.asked(), 0);
}

/// In front of a registry: the first connections are accepted, and nobody ever reads from them.
struct Deaf {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Deaf {
    fn start(registry: String, deaf: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // Inherited by what is accepted: a window of nearly nothing.
        rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 1).unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        thread::spawn(move || {
            let mut unread = Vec::new();
            for client in listener.incoming().flatten() {
                if count.fetch_add(1, Ordering::SeqCst) < deaf {
                    unread.push(client);
                    continue;
                }
                let server = TcpStream::connect(&registry).unwrap();
                let there = (client.try_clone().unwrap(), server.try_clone().unwrap());
                // One that went away is nobody's business.
                thread::spawn(move || carry(there.0, there.1).unwrap_or_default());
                thread::spawn(move || carry(server, client).unwrap_or_default());
            }
        });
        Self {
            address,
            connections,
        }
    }

    /// Bytes that clients have not got rid of, by the kernel's own table: the window is closed.
    fn unsent(&self) -> u64 {
        let port = format!(":{:04X}", self.address.port());
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let rows = table
            .lines()
            .skip(1)
            .map(|row| row.split_whitespace().collect::<Vec<_>>());
        let ours = rows.filter(|row| row[2].ends_with(&port));
        let queues = ours.filter_map(|row| u64::from_str_radix(row[4].split_once(':')?.0, 16).ok());
        queues.max().unwrap_or(0)
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer)? {
            0 => return to.shutdown(std::net::Shutdown::Write),
            size => to.write_all(&buffer[..size])?,
        }
    }
}

#[test]
fn a_connection_that_nobody_reads_from_is_given_up_for_another() {
    let ward = Ward::up(8);
    ward.home.open();
    // H5: the window closes before the request is out; so it is also with one that is short.
    for (header, deaf, at_most) in [("x".repeat(200 << 10), 1, 2), ("x".to_owned(), 1, 2)] {
        let long = header.len() > 1;
        let door = Deaf::start(ward.home.host(), deaf);
        ward.home.reset();
        ward.hosts(&format!(
            "server = \"http://{}\"\n[header]\nx-long = \"{header}\"",
            door.address
        ));
        thread::sleep(Duration::from_millis(1100));
        let (outcome, unsent) = thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let until = Instant::now() + Duration::from_secs(2);
                let mut most = 0;
                while Instant::now() < until && most == 0 {
                    thread::sleep(Duration::from_millis(300));
                    most = door.unsent();
                }
                most
            });
            (ward.read(&[ward.fresh()]), watch.join().unwrap())
        });
        assert!(outcome.ok && outcome.took < DEADLINE, "{outcome:?}");
        assert!(
            outcome.took >= Duration::from_millis(600),
            "it waited: {outcome:?}"
        );
        assert_eq!(unsent > 0, long, "{unsent} bytes are stuck");
        assert_eq!(door.connections.load(Ordering::SeqCst), at_most);
        assert_eq!(ward.asked(), 1);
    }
    // For ever: an error in time, and the next read works.
    let door = Deaf::start(ward.home.host(), usize::MAX);
    ward.hosts(&format!("server = \"http://{}\"", door.address));
    thread::sleep(Duration::from_millis(1100));
    let file = ward.fresh();
    let outcome = ward.read(&[file]);
    assert!(
        !outcome.ok && outcome.took < DEADLINE.mul_f32(1.4),
        "{outcome:?}"
    );
    assert!(door.connections.load(Ordering::SeqCst) <= 6);
    ward.hosts(&format!("server = \"{}\"", ward.home.url("")));
    thread::sleep(Duration::from_millis(1100));
    assert!(ward.read(&[file]).ok);
}

#[test]
fn a_start_needs_neither_the_registry_nor_credentials() {
    let mut ward = Ward::up(20);
    let warm = ward.fresh();
    assert!(ward.read(&[warm]).ok);

    // H12: the password was changed while crfs was away.
    ward.home.reset();
    ward.home.guard(bearer("dXNlcjpuZXc="));
    ward.home.revoke();
    ward.restart();
    assert!(ward.read(&[warm]).ok, "what is here needs no credentials");
    assert_eq!(ward.home.seen().len(), 0, "{:?}", ward.home.seen());
    let lost = ward.fresh();
    let outcome = ward.read(&[lost]);
    assert!(!outcome.ok && outcome.took < DEADLINE, "{outcome:?}");
    let (blob, tokens) = (ward.asked(), ward.home.count("/token"));
    assert!(blob <= 2 && tokens <= 4, "{blob} requests, {tokens} tokens");
    ward.login("user:new");
    thread::sleep(FORGOTTEN);
    ward.home.reset();
    assert!(ward.read(&[lost]).ok, "{}", ward.bed.crfs_log());
    assert_eq!(ward.home.count("/token"), 1);

    // H21: nobody is there when crfs starts.
    let gone = || Reply {
        raw: Some(Vec::new()),
        reset: true,
        ..Reply::default()
    };
    ward.home.reset();
    ward.home.script(move |_, _| Some(gone()));
    let began = Instant::now();
    ward.restart();
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(ward.home.seen().len(), 0);
    assert!(ward.read(&[warm, lost]).ok);
    // A new container of the image starts as well.
    let said = ward.bed.run(
        crate::faulty::IMAGE,
        "offline",
        &["busybox", "echo", "here"],
    );
    assert_eq!(said.trim(), "here");
    assert_eq!(ward.home.seen().len(), 0);
    let file = ward.fresh();
    let outcome = ward.read(&[file]);
    assert!(!outcome.ok, "{outcome:?}");
    let took = outcome.took;
    assert!(
        DEADLINE.mul_f32(0.7) <= took && took < DEADLINE.mul_f32(1.4),
        "{outcome:?}"
    );
    thread::sleep(FORGOTTEN);
    ward.home.reset();
    assert!(ward.read(&[file]).ok, "{}", ward.bed.crfs_log());
}
