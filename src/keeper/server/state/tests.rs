//! The table is read back by a successor as it was left, at any moment.

use super::*;

fn name(text: &str) -> FdName {
    FdName::new(text).unwrap()
}

fn mount(phase: Phase, byte: u8) -> Mount {
    Mount {
        phase,
        request: vec![byte; 104],
        reply: vec![byte + 1; 80],
    }
}

fn fresh() -> State {
    State::open(Arc::new(State::create().unwrap())).unwrap()
}

fn successor(state: &State) -> State {
    State::open(state.fd.clone()).unwrap()
}

fn open(ino: u64, unique: u64) -> Open {
    Open {
        ino,
        unique,
        backing: 7,
        mode: 1,
    }
}

#[test]
fn a_successor_finds_every_mount() {
    let state = fresh();
    for n in 0..100 {
        state
            .record(&name(&format!("m{n}")), mount(Phase::Answering, n))
            .unwrap();
    }
    state
        .record(&name("m3"), mount(Phase::Answered, 3))
        .unwrap();
    state
        .record(&name("m4"), mount(Phase::Answered, 200))
        .unwrap();
    state.forget(&name("m5")).unwrap();
    state.forget(&name("m5")).unwrap();
    let next = successor(&state);
    assert_eq!(next.names().len(), 99);
    assert_eq!(next.mount(&name("m3")), Some(mount(Phase::Answered, 3)));
    assert_eq!(next.mount(&name("m4")), Some(mount(Phase::Answered, 200)));
    assert_eq!(next.mount(&name("m5")), None);
    assert_eq!(next.mount(&name("m99")), Some(mount(Phase::Answering, 99)));
    let before = rustix::fs::fstat(&state.fd).unwrap().st_size;
    next.record(&name("new"), mount(Phase::Answered, 1))
        .unwrap();
    assert_eq!(
        rustix::fs::fstat(&state.fd).unwrap().st_size,
        before,
        "a free slot is used"
    );
    let long = Mount {
        request: vec![0; 113],
        ..mount(Phase::Answered, 0)
    };
    assert!(matches!(
        next.record(&name("long"), long),
        Err(Error::State(_))
    ));
}

#[test]
fn a_record_without_its_phase_was_never_there() {
    let state = fresh();
    state.record(&name("a"), mount(Phase::Answered, 1)).unwrap();
    let half = encode(&name("b"), &mount(Phase::Answered, 2)).unwrap();
    write(state.fd.as_fd(), &2u32.to_ne_bytes(), END_AT).unwrap();
    assert_eq!(successor(&state).names(), [name("a")]);
    write(state.fd.as_fd(), &half, mount_at(1)).unwrap();
    let next = successor(&state);
    assert_eq!(next.names(), [name("a")]);
    next.record(&name("c"), mount(Phase::Answered, 3)).unwrap();
    assert_eq!(
        successor(&next).mount(&name("c")),
        Some(mount(Phase::Answered, 3))
    );
    assert_eq!(
        successor(&next).mount(&name("a")),
        Some(mount(Phase::Answered, 1))
    );
}

#[test]
fn what_is_no_table_is_refused() {
    let cases: [&[(&[u8], u64)]; 4] = [
        &[(b"crfsSTA9", 0)],
        &[(&[255; 4], END_AT)],
        &[
            (&1u32.to_ne_bytes(), END_AT),
            (&9u32.to_ne_bytes(), MOUNTS_AT),
        ],
        &[
            (&1u32.to_ne_bytes(), END_AT),
            (&[1, 0, 0, 0, 255, 255], MOUNTS_AT),
        ],
    ];
    for case in cases {
        let fd = State::create().unwrap();
        case.iter()
            .for_each(|(bytes, at)| write(fd.as_fd(), bytes, *at).unwrap());
        assert!(State::open(Arc::new(fd)).is_err(), "{case:?}");
    }
}

#[test]
fn an_open_and_a_release_may_come_twice() {
    let state = fresh();
    let layer = name("m1");
    assert!(
        state.opened(&layer, open(5, 10)).is_err(),
        "the mount is not recorded"
    );
    state.record(&layer, mount(Phase::Answered, 1)).unwrap();
    let Opened::New(first) = state.opened(&layer, open(5, 10)).unwrap() else {
        panic!()
    };
    let next = successor(&state);
    assert_eq!(next.open_files(&layer), [first]);
    // The kernel asks again, and another backing id was made in the meantime: the first one holds.
    let again = Open {
        backing: 9,
        ..open(5, 10 | 1 << 63)
    };
    assert_eq!(next.opened(&layer, again).unwrap(), Opened::Again(first));
    // A request that is sent again but was not recorded is new.
    let Opened::New(second) = next.opened(&layer, open(5, 12 | 1 << 63)).unwrap() else {
        panic!()
    };
    assert_ne!(first.handle, second.handle);
    assert_eq!(next.released(first.handle).unwrap(), Some(first));
    let last = successor(&next);
    assert_eq!(last.released(first.handle).unwrap(), None);
    let Opened::New(third) = last.opened(&layer, open(6, 14)).unwrap() else {
        panic!()
    };
    assert_ne!(
        third.handle, first.handle,
        "a slot's second file has another handle"
    );
    assert_eq!(
        last.released(first.handle).unwrap(),
        None,
        "and is not closed by the first's"
    );
    assert_eq!(last.open_files(&layer), [third, second]);
    last.forget(&layer).unwrap();
    last.record(&layer, mount(Phase::Answered, 1)).unwrap();
    assert_eq!(successor(&last).open_files(&layer), []);
}
