//! Every path of the course, in time that is only said.

use super::*;

const SILENCE: Duration = Duration::from_secs(30);

fn course(now: Instant) -> Course {
    let mut course = Course::new(SILENCE);
    course.start(now);
    assert_eq!(course.due(now), Some(Deed::Spawn));
    course.spawned(now);
    course
}

fn at(now: Instant, millis: u64) -> Instant {
    now + Duration::from_millis(millis)
}

#[test]
fn a_sound_server_is_back_at_once_and_a_failing_one_later_and_later() {
    let now = Instant::now();
    let mut course = course(now);
    course.ready(now);
    assert_eq!(course.ended(End::Signal(9), true, at(now, 100)), None);
    assert_eq!(course.deadline(), Some(at(now, 100)));
    let (mut time, mut pauses) = (at(now, 100), Vec::new());
    for _ in 0..12 {
        assert_eq!(course.due(time), Some(Deed::Spawn));
        course.spawned(time);
        assert_eq!(course.ended(End::Code(1), true, time), None);
        let next = course.deadline().unwrap();
        pauses.push((next - time).as_millis());
        assert_eq!(course.due(time), None, "not before its time");
        time = next;
    }
    assert_eq!(
        pauses,
        [
            20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10000, 10000, 10000
        ]
    );
}

#[test]
fn one_that_is_killed_again_and_again_is_not_waited_for_long() {
    let now = Instant::now();
    let mut killed = course(now);
    for _ in 0..10 {
        assert_eq!(killed.ended(End::Signal(9), true, now), None);
        killed.spawned(now);
    }
    killed.ended(End::Signal(9), true, now);
    assert_eq!(killed.deadline(), Some(now + PAUSE_KILLED));
}

#[test]
fn one_that_dies_on_the_first_request_is_not_waited_for_long() {
    let now = Instant::now();
    let mut course = course(now);
    for _ in 0..10 {
        course.ready(now);
        assert_eq!(course.ended(End::Signal(11), true, now), None);
        course.spawned(now);
    }
    course.ready(now);
    course.ended(End::Signal(11), true, now);
    assert_eq!(course.deadline(), Some(now + PAUSE_KILLED));
}

#[test]
fn a_first_start_that_fails_is_final_only_when_nothing_is_held() {
    let now = Instant::now();
    assert_eq!(
        course(now).ended(End::Code(2), false, now),
        Some(Deed::Ended(2))
    );
    assert_eq!(course(now).ended(End::Code(2), true, now), None);
    assert_eq!(course(now).ended(End::Signal(9), false, now), None);
    let mut proven = course(now);
    proven.ready(now);
    assert_eq!(proven.ended(End::Code(2), false, now), None);
}

#[test]
fn an_end_that_was_meant_is_final() {
    let now = Instant::now();
    for end in [End::Code(0), End::Signal(15), End::Signal(2)] {
        let mut course = course(now);
        course.ready(now);
        assert_eq!(
            course.ended(end, true, now),
            Some(Deed::Ended(0)),
            "{end:?}"
        );
    }
    let mut said = course(now);
    said.stopping();
    assert_eq!(said.ended(End::Unknown, true, now), Some(Deed::Ended(0)));
    let mut told = course(now);
    assert_eq!(told.stop(now), Some(Deed::Terminate));
    assert_eq!(
        told.due(now + END_LIMIT),
        Some(Deed::Kill("it did not end in time"))
    );
    assert_eq!(told.ended(End::Signal(9), true, now), Some(Deed::Ended(0)));
    assert_eq!(told.deadline(), None);
    // A word from the last one says nothing about the next.
    said.start(now);
    said.spawned(now);
    assert_eq!(said.ended(End::Unknown, true, now), None);
}

#[test]
fn silence_is_a_hang_only_after_ready() {
    let now = Instant::now();
    let mut course = course(now);
    assert_eq!(course.due(now + SILENCE), None);
    course.ready(now + SILENCE);
    course.alive(now + SILENCE + SILENCE / 2);
    assert_eq!(course.due(now + SILENCE * 2), None);
    let late = now + SILENCE * 3;
    assert_eq!(
        course.due(late),
        Some(Deed::Kill("it gave no sign of life"))
    );
    assert_eq!(course.due(late), None, "killed once, not in a loop");
    assert_eq!(course.ended(End::Signal(9), true, late), None);
    let mut slow = self::course(now);
    let why = "it did not become ready in time";
    assert_eq!(slow.due(now + START_LIMIT), Some(Deed::Kill(why)));
}

#[test]
fn an_upgrade_holds_or_is_rolled_back() {
    let now = Instant::now();
    let upgrading = || {
        let mut course = course(now);
        course.ready(now);
        assert_eq!(course.replace(now), Some(Deed::Terminate));
        assert!(!course.is_ready() && course.is_trial());
        assert_eq!(course.ready(now), None, "the old one's voice");
        assert_eq!(course.ended(End::Code(0), true, now), None);
        assert_eq!(course.due(now), Some(Deed::Spawn));
        course.spawned(now);
        course
    };
    let mut good = upgrading();
    assert_eq!(good.ready(now), Some(Deed::Commit));
    assert!(good.is_ready() && !good.is_trial());
    for end in [End::Code(0), End::Code(1), End::Signal(11)] {
        let mut bad = upgrading();
        assert_eq!(bad.ended(end, true, now), Some(Deed::RollBack));
        assert_eq!(bad.due(now), Some(Deed::Spawn), "the old one, at once");
        bad.spawned(now);
        assert_eq!(bad.ready(now), None);
    }
    let mut hangs = upgrading();
    assert!(matches!(hangs.due(now + TRIAL_LIMIT), Some(Deed::Kill(_))));
    assert_eq!(hangs.ended(End::Signal(9), true, now), Some(Deed::RollBack));
    let mut stopped = upgrading();
    stopped.stop(now);
    assert_eq!(stopped.ended(End::Code(0), true, now), Some(Deed::Ended(0)));
}
