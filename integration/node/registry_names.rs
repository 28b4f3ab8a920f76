//! Names under a container that reads and verifies: those that change their mind, those that nobody
//! knows, and those with an address that leads nowhere.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{self, AddressFamily, SocketType};
use tempfile::TempDir;

use crate::dns::{Dns, Says};
use crate::fake_registry::{FakeRegistry, Reply};
use crate::faulty::{DEADLINE, FORGOTTEN, Ward, part};

/// Longer than crfs believes its files.
const NOTICED: Duration = Duration::from_millis(1100);
/// Where clouds keep what only the node may know.
const METADATA: &str = "169.254.169.254";
const INSIDE: &str = "10.66.0.9";

/// Has crfs ask a registry by its name only.
fn by_name(ward: &Ward, registry: &FakeRegistry, name: &str) {
    let port = port(registry);
    ward.hosts(&format!("server = \"http://{name}:{port}\""));
    thread::sleep(NOTICED);
}

fn port(registry: &FakeRegistry) -> String {
    registry.host().rsplit_once(':').unwrap().1.to_owned()
}

#[test]
fn a_name_that_changes_its_mind_leads_nowhere_inside() {
    let folder = TempDir::new().unwrap();
    let dns = Dns::alone(
        folder.path(),
        &["169.254.169.254/32", "10.66.0.1/32", "10.66.0.9/32"],
    );
    let ward = Ward::up(60);
    let store = FakeRegistry::start_on("127.0.0.4:0");
    let port = port(&store);
    let inside = [METADATA, INSIDE].map(|ip| FakeRegistry::start_on(&format!("{ip}:{port}")));
    for server in inside.iter().chain([&store]) {
        let blob = ward.blob.clone();
        // Each request is a new connection, and so a new question for the name.
        server.script(move |seen, _| {
            Some(Reply {
                cut: Some(usize::MAX),
                ..part(&blob, seen)
            })
        });
    }
    let untouched = || inside.iter().all(|server| server.connections() == 0);
    ward.home.open();
    let target = format!("http://store.test:{port}/x");
    ward.script(move |_, _| Some(Reply::redirect(target.clone())));

    // H8: the storage has an address as the registry has, then one that is not for registries.
    dns.has("store.test", &["127.0.0.4"]);
    assert!(ward.read(&[ward.fresh()]).ok, "{}", ward.bed.crfs_log());
    let served = store.seen().len();
    assert_eq!(served, 1);
    for address in [
        METADATA,
        INSIDE,
        "::ffff:169.254.169.254",
        "fd00::1",
        "fe80::1",
    ] {
        dns.has("store.test", &[address]);
        let file = ward.fresh();
        let asked = ward.asked();
        let outcome = ward.read(&[file]);
        assert!(
            !outcome.ok && outcome.took < DEADLINE,
            "{address}: {outcome:?}"
        );
        assert!(dns.asked() > 0 && untouched(), "{address}");
        assert_eq!(
            ward.asked() - asked,
            1,
            "{address}: the registry is asked where it is now"
        );
        dns.has("store.test", &["127.0.0.4"]);
        thread::sleep(FORGOTTEN);
        assert!(ward.read(&[file]).ok, "{address}: {}", ward.bed.crfs_log());
    }
    // Of several addresses those are used that may be; and none that comes between question and use.
    dns.has("store.test", &[METADATA, "127.0.0.4", INSIDE]);
    assert!(ward.read(&[ward.fresh()]).ok);
    let turns = ["127.0.0.4", METADATA].map(|ip| ip.parse().unwrap());
    dns.says("store.test", Says::InTurn(turns.to_vec()));
    for _ in 0..10 {
        ward.read(&[ward.fresh()]);
    }
    assert!(dns.asked() >= 10 && untouched());
    a_registry_inside_leads_not_to_this_machine(&ward, &dns);
}

fn a_registry_inside_leads_not_to_this_machine(ward: &Ward, dns: &Dns) {
    // A registry inside leads to what is inside, and not to this machine.
    let outer = FakeRegistry::start_on("10.66.0.1:0");
    ward.fill(&outer);
    dns.has("outer.test", &["10.66.0.1"]);
    dns.has("own.test", &["127.0.0.1"]);
    by_name(ward, &outer, "outer.test");
    assert!(ward.read(&[ward.fresh()]).ok, "{}", ward.bed.crfs_log());
    let own = ward.home.connections();
    for host in [
        "127.0.0.1",
        "[::1]",
        "localhost.",
        "own.test",
        "[::ffff:7f00:1]",
    ] {
        let own_port = ward.home.host().rsplit_once(':').unwrap().1.to_owned();
        let target = format!("http://{host}:{own_port}{}", ward.path);
        outer.script(move |_, _| Some(Reply::redirect(target.clone())));
        let outcome = ward.read(&[ward.fresh()]);
        assert!(
            !outcome.ok && outcome.took < DEADLINE,
            "{host}: {outcome:?}"
        );
    }
    assert_eq!(ward.home.connections(), own, "nobody came");
}

#[test]
fn names_that_nobody_knows_are_waited_for_and_asked_for_once() {
    let folder = TempDir::new().unwrap();
    let dns = Dns::alone(folder.path(), &[]);
    let mut ward = Ward::up(60);
    ward.home.open();
    dns.has("reg.test", &["127.0.0.1"]);
    by_name(&ward, &ward.home, "reg.test");
    let warm = ward.fresh();
    assert!(ward.read(&[warm]).ok, "{}", ward.bed.crfs_log());
    // Connections are kept: those after a restart are new.
    for says in [Says::Error(3), Says::Error(2), Says::Silence] {
        dns.says("reg.test", says.clone());
        let began = Instant::now();
        ward.restart();
        assert!(began.elapsed() < Duration::from_secs(15), "{says:?}");
        assert_eq!(dns.asked(), 0, "{says:?}: a start asks for nothing");
        let files: Vec<_> = (0..12).map(|_| ward.fresh()).collect();
        ward.home.reset();
        let (outcome, others) = thread::scope(|scope| {
            let others = scope.spawn(|| {
                thread::sleep(Duration::from_millis(700));
                let began = Instant::now();
                let list = ward
                    .bed
                    .try_ctr(&["snapshots", "--snapshotter", "crfs", "ls"]);
                (ward.read(&[warm]), list.status.success(), began.elapsed())
            });
            (ward.read(&files), others.join().unwrap())
        });
        let took = outcome.took;
        let in_time = DEADLINE.mul_f32(0.7) <= took && took < DEADLINE.mul_f32(1.4);
        assert!(!outcome.ok && in_time, "{says:?}: {outcome:?}");
        assert_eq!(
            outcome.said.matches("Input/output error").count(),
            12,
            "once each"
        );
        println!(
            "{says:?}: {took:?}, {} questions, others {others:?}",
            dns.asked()
        );
        let (cached, listed, _) = others;
        assert!(
            cached.ok && cached.took < Duration::from_secs(1) && listed,
            "{says:?}: {cached:?}"
        );
        if matches!(says, Says::Silence) {
            // Each look-up is two questions and holds a thread; twelve readers have one between them.
            assert!(dns.asked() <= 6, "{} questions", dns.asked());
        }
        assert_eq!(ward.home.seen().len(), 0);
        dns.has("reg.test", &["127.0.0.1"]);
        thread::sleep(Duration::from_millis(2100));
        let again = ward.read(&files);
        assert!(again.ok, "{says:?}: {again:?}\n{}", ward.bed.crfs_log());
    }
}

/// A port of ::1 that answers no SYN: its queue is full, and stays so.
struct Blackhole {
    _listener: OwnedFd,
    _queue: Vec<TcpStream>,
}

impl Blackhole {
    fn at(port: u16) -> Self {
        let listener = net::socket(AddressFamily::INET6, SocketType::STREAM, None).unwrap();
        let address = std::net::SocketAddrV6::new(std::net::Ipv6Addr::LOCALHOST, port, 0, 0);
        net::bind(&listener, &address).unwrap();
        net::listen(&listener, 0).unwrap();
        let mut queue = Vec::new();
        let brief = Duration::from_millis(300);
        while let Ok(one) = TcpStream::connect_timeout(&address.into(), brief) {
            queue.push(one);
            assert!(queue.len() < 10, "the queue does not fill");
        }
        Self {
            _listener: listener,
            _queue: queue,
        }
    }
}

#[test]
fn an_address_that_leads_nowhere_is_passed_over() {
    let folder = TempDir::new().unwrap();
    let dns = Dns::alone(folder.path(), &[]);
    let mut ward = Ward::up(10);
    ward.home.open();
    let _hole = Blackhole::at(port(&ward.home).parse().unwrap());
    // H21: the better address of two swallows everything.
    dns.has("reg.test", &["::1", "127.0.0.1"]);
    by_name(&ward, &ward.home, "reg.test");
    ward.restart();
    ward.home.reset();
    let outcome = ward.read(&[ward.fresh()]);
    assert!(outcome.ok, "{outcome:?}\n{}", ward.bed.crfs_log());
    let took = outcome.took;
    let waited = Duration::from_millis(250)..Duration::from_millis(900);
    assert!(
        waited.contains(&took),
        "it is tried first, and not for long: {took:?}"
    );
    assert_eq!(ward.asked(), 1);
    // The connection is kept.
    let next = ward.read(&[ward.fresh()]);
    assert!(
        next.ok && next.took < Duration::from_millis(250),
        "{next:?}"
    );
    // Nothing but the one that leads nowhere: an error in time, and on when there is another.
    dns.has("reg.test", &["::1"]);
    ward.restart();
    let file = ward.fresh();
    let outcome = ward.read(&[file]);
    let took = outcome.took;
    let in_time = DEADLINE.mul_f32(0.7) <= took && took < DEADLINE.mul_f32(1.4);
    assert!(!outcome.ok && in_time, "{outcome:?}");
    dns.has("reg.test", &["::1", "127.0.0.1"]);
    thread::sleep(FORGOTTEN);
    assert!(ward.read(&[file]).ok, "{}", ward.bed.crfs_log());
}
