//! Many readers and one registry: credentials that end, URLs that expire, requests that are shared.

use std::time::Duration;

use crate::fake_registry::{FakeRegistry, Reply};
use crate::faulty::{DEADLINE, FORGOTTEN, Ward, bearer, part};

/// What no foreign host may get to see.
pub fn no_secrets(server: &FakeRegistry) {
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
            let to = Reply::new(status).with("location", first.clone());
            known.then(|| to.with("set-cookie", "s=1; Path=/"))
        });
        storage.script(move |_, _| {
            let to = Reply::new(status).with("location", second.clone());
            Some(to.with("set-cookie", "s=2; Path=/"))
        });
        far.reset();
        // The place where the blob was found last time is gone.
        far.script(move |_, before| (round > 0 && before == 0).then(|| Reply::new(404)));
        let outcome = ward.read(&[ward.fresh()]);
        assert!(outcome.ok, "{status}: {outcome:?}");
        let mut own = ward
            .home
            .seen()
            .into_iter()
            .filter(|seen| seen.path() == ward.path);
        let own = own.next_back().unwrap();
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

    far.reset();
    far.script(|_, _| Some(Reply::new(401).with("www-authenticate", "Basic realm=\"far\"")));
    let outcome = ward.read(&[ward.fresh()]);
    assert!(!outcome.ok && outcome.took < DEADLINE, "{outcome:?}");
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
