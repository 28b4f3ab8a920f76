//! The protocol against its documents, and against itself over real sockets.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::inherited::plan;
use super::*;

fn name(text: &str) -> FdName {
    FdName::new(text).unwrap()
}

fn listen(address: &SocketAddrUnix) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None).unwrap();
    rustix::net::bind(&socket, address).unwrap();
    socket
}

fn next(socket: &OwnedFd) -> (String, Vec<OwnedFd>) {
    let mut buffer = [0; MESSAGE_MAX];
    let got = wire::receive(socket.as_fd(), &mut buffer, RecvFlags::DONTWAIT).unwrap();
    (
        String::from_utf8(buffer[..got.length].to_vec()).unwrap(),
        got.fds,
    )
}

#[test]
fn names_are_systemds() {
    for good in ["a", "listen", "layer 12/x", &"n".repeat(255)] {
        assert_eq!(FdName::new(good).unwrap().as_str(), good);
    }
    for bad in [
        "",
        "a:b",
        "a\nb",
        "tab\t",
        "\u{e9}",
        "\x7f",
        &"n".repeat(256),
    ] {
        assert!(matches!(FdName::new(bad), Err(Error::Name(_))), "{bad:?}");
    }
}

#[test]
fn messages_are_read() {
    let store = Message {
        descriptors: Descriptors::Store(name("m1")),
        ..Message::default()
    };
    let unnamed = Message {
        descriptors: Descriptors::Store(name("stored")),
        ..Message::default()
    };
    let remove = Message {
        descriptors: Descriptors::Remove(name("m1")),
        ..Message::default()
    };
    let ready = Message {
        ready: true,
        status: Some("a=b".into()),
        ..Message::default()
    };
    let alive = Message {
        alive: true,
        ..Message::default()
    };
    let slow = Message {
        watchdog: Some(Duration::from_millis(3)),
        ..Message::default()
    };
    let cases = [
        ("FDSTORE=1\nFDNAME=m1\nFDPOLL=0", store),
        ("FDSTORE=1", unnamed),
        ("FDSTOREREMOVE=1\nFDNAME=m1\n", remove),
        ("READY=1\nSTATUS=a=b\n", ready),
        ("WATCHDOG=1", alive),
        ("WATCHDOG_USEC=3000", slow),
        (
            "STOPPING=1",
            Message {
                stopping: true,
                ..Message::default()
            },
        ),
        ("FDSTOREREMOVE=1", Message::default()),
        ("READY=0\nX\n=\nBARRIER=1", Message::default()),
        ("", Message::default()),
    ];
    for (text, want) in cases {
        assert_eq!(Message::parse(text.as_bytes()).unwrap(), want, "{text:?}");
    }
    assert!(matches!(
        Message::parse(b"FDSTORE=1\nFDNAME=a:b"),
        Err(Error::Name(_))
    ));
    assert!(matches!(Message::parse(&[0xff]), Err(Error::Text)));
    assert!(matches!(
        Message::parse(&[b'a'; MESSAGE_MAX + 1]),
        Err(Error::Text)
    ));
}

#[test]
fn handed_descriptors_are_named() {
    let names = |list: &[&str]| list.iter().map(|text| name(text)).collect::<Vec<_>>();
    assert_eq!(
        plan("2", Some("listen:m1")).unwrap(),
        names(&["listen", "m1"])
    );
    assert_eq!(
        plan("2", Some("listen:")).unwrap(),
        names(&["listen", "unknown"])
    );
    assert_eq!(plan("2", None).unwrap(), names(&["unknown", "unknown"]));
    assert_eq!(plan("0", Some("")).unwrap(), names(&[]));
    for (count, list) in [
        ("1", "a:b"),
        ("3", "a:b"),
        ("x", "a"),
        ("-1", "a"),
        ("1", "a\x01"),
    ] {
        assert!(plan(count, Some(list)).is_err(), "{count} {list:?}");
    }
    assert!(plan("99999999", None).is_err());
}

#[test]
fn a_store_hears_what_is_said_by_path_and_by_abstract_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let hidden = format!("crfs-protocol-test-{}", std::process::id());
    let sockets = [
        (
            SocketAddrUnix::new(&path).unwrap(),
            path.clone().into_os_string(),
        ),
        (
            SocketAddrUnix::new_abstract_name(hidden.as_bytes()).unwrap(),
            format!("@{hidden}").into(),
        ),
    ];
    for (address, variable) in sockets {
        let store = listen(&address);
        let notify = Notify::to(&variable).unwrap();
        notify.ready().unwrap();
        assert_eq!(next(&store).0, "READY=1");
        notify.status("three layers").unwrap();
        assert_eq!(next(&store).0, "STATUS=three layers");
        assert!(matches!(notify.status("a\nREADY=1"), Err(Error::Text)));
        notify.watchdog().unwrap();
        assert_eq!(next(&store).0, "WATCHDOG=1");
        let file = tempfile::tempfile().unwrap();
        notify
            .store(&name("m1"), file.as_fd(), Identity::Kept)
            .unwrap();
        let (text, fds) = next(&store);
        assert_eq!(text, "FDSTORE=1\nFDNAME=m1\nFDPOLL=0");
        assert_eq!(fds.len(), 1);
        let (ours, theirs) = (
            rustix::fs::fstat(&file).unwrap(),
            rustix::fs::fstat(&fds[0]).unwrap(),
        );
        assert_eq!((ours.st_dev, ours.st_ino), (theirs.st_dev, theirs.st_ino));
        let flags = rustix::io::fcntl_getfd(&fds[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        notify.remove(&name("m1")).unwrap();
        assert_eq!(next(&store).0, "FDSTOREREMOVE=1\nFDNAME=m1");
        drop(store);
        assert!(notify.ready().unwrap_err().is_dead_store());
    }
    for bad in ["", "relative", "@"] {
        assert!(
            matches!(Notify::to(bad.as_ref()), Err(Error::Address(_))),
            "{bad:?}"
        );
    }
}

#[test]
fn a_barrier_waits_for_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let store = listen(&SocketAddrUnix::new(&path).unwrap());
    let notify = Notify::to_path(&path).unwrap();
    assert!(matches!(
        notify.barrier(Duration::from_millis(20)),
        Err(Error::Silent)
    ));
    assert_eq!(next(&store).0, "BARRIER=1");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while wire::receive(store.as_fd(), &mut [0; 64], RecvFlags::empty())
                .unwrap()
                .fds
                .is_empty()
            {}
        });
        notify.barrier(Duration::from_secs(5)).unwrap();
    });
}
