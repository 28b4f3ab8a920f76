//! The cache against a model, against crashes and against a disk that lies.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use tempfile::TempDir;

use super::record::{BLOCK, HEADER};
use super::*;
use crate::blob::map::Proof;
use crate::oci::Digest;

fn config(max_size: u64) -> Config {
    Config {
        max_size: ByteSize(max_size),
    }
}

pub(super) fn open(dir: &TempDir, max_size: u64) -> Cache {
    Cache::open(dir.path(), &config(max_size)).unwrap()
}

/// Content of `len` bytes that differs with `seed`.
pub(super) fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(step).collect()
}

fn proof(bytes: &[u8]) -> Proof {
    Proof::Sha256(Digest::of(bytes))
}

pub(super) fn key(bytes: &[u8]) -> Key {
    Key::new(&proof(bytes), u32::try_from(bytes.len()).unwrap())
}

pub(super) fn insert(cache: &Cache, bytes: &[u8]) -> u64 {
    let size = u32::try_from(bytes.len()).unwrap();
    cache.insert(&[Verified::check(&proof(bytes), size, bytes).unwrap()])
}

fn packs(dir: &TempDir) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "pack"))
        .collect();
    paths.sort();
    paths
}

pub(super) fn disk_bytes(dir: &TempDir) -> u64 {
    packs(dir)
        .iter()
        .map(|path| fs::metadata(path).unwrap().len())
        .sum()
}

fn pass_time(cache: &Cache) {
    cache.clock.skipped.fetch_add(10, Ordering::Relaxed);
}

#[test]
fn every_part_of_a_content_is_read_back() {
    let dir = TempDir::new().unwrap();
    let cache = open(&dir, 64 << 20);
    let block = BLOCK as usize;
    for len in [
        1,
        100,
        block - 1,
        block,
        block + 1,
        3 * block + 7,
        64 * block,
        65 * block + 1,
        5 << 20,
    ] {
        let bytes = content(len as u64, len);
        assert!(!cache.contains(&key(&bytes)));
        assert_eq!(insert(&cache, &bytes), len as u64);
        assert_eq!(insert(&cache, &bytes), 0, "held already");
        let edges = [
            0,
            1,
            block - 1,
            block,
            block + 1,
            64 * block,
            len / 2,
            len - 1,
            len,
        ];
        for from in edges.into_iter().filter(|from| *from <= len) {
            for to in edges.into_iter().filter(|to| (from..=len).contains(to)) {
                let mut out = vec![0; to - from];
                assert!(cache.read(&key(&bytes), u32::try_from(from).unwrap(), &mut out));
                assert!(out == bytes[from..to], "{len}: {from}..{to}");
            }
        }
        assert!(
            !cache.read(&key(&bytes), 1, &mut vec![0; len]),
            "beyond the end"
        );
        assert_eq!(cache.load(&key(&bytes)).unwrap(), bytes);
    }
}

#[test]
fn what_was_written_is_there_after_reopening() {
    let dir = TempDir::new().unwrap();
    let all: Vec<_> = (0..2000)
        .map(|seed| content(seed, 1 + (seed as usize * 37) % 5000))
        .collect();
    for round in all.chunks(500) {
        let cache = open(&dir, 16 << 20);
        for bytes in round {
            insert(&cache, bytes);
        }
        assert_eq!(cache.stats().held, disk_bytes_when_sealed(&cache));
    }
    let cache = open(&dir, 16 << 20);
    assert!(
        packs(&dir).len() > 3,
        "several packs, so that both lists and walks are read"
    );
    for bytes in &all {
        assert_eq!(cache.load(&key(bytes)).as_deref(), Some(&bytes[..]));
    }
}

fn disk_bytes_when_sealed(cache: &Cache) -> u64 {
    cache
        .packs
        .read()
        .values()
        .map(|pack| pack.charged().load(Ordering::Relaxed))
        .sum()
}

#[test]
fn the_bound_holds_and_the_least_recently_used_goes_first() {
    let dir = TempDir::new().unwrap();
    let max = 4 << 20;
    let cache = open(&dir, max);
    let kept: Vec<_> = (0..10).map(|seed| content(seed, 50_000)).collect();
    for (seed, bytes) in (500..).zip(&kept) {
        // Among others that are never read, so that no pack is all hot.
        insert(&cache, bytes);
        insert(&cache, &content(seed, 150_000));
    }
    for seed in 1000..1400 {
        pass_time(&cache);
        insert(&cache, &content(seed, 20_000 + (seed as usize % 7) * 9000));
        for bytes in &kept {
            assert!(
                cache.read(&key(bytes), 0, &mut [0; 10]),
                "used all the time, at {seed}"
            );
        }
        assert!(disk_bytes(&dir) <= max, "{} at {seed}", disk_bytes(&dir));
        assert!(cache.stats().held <= max);
    }
    assert!(cache.stats().evicted > 0);
    assert!(
        !cache.contains(&key(&content(1000, 20_000 + (1000 % 7) * 9000))),
        "never used"
    );
    assert!(cache.stats().held > max / 2, "it is used, not just bounded");
}

#[test]
fn tiny_records_stay_within_the_bound_too() {
    let dir = TempDir::new().unwrap();
    let cache = open(&dir, 1 << 20);
    for seed in 0..20_000 {
        insert(&cache, &content(seed, 13));
    }
    assert!(disk_bytes(&dir) <= 1 << 20);
    drop(cache);
    let cache = open(&dir, 100 << 10);
    assert!(
        disk_bytes(&dir) <= 100 << 10,
        "a smaller bound is enforced when it is opened"
    );
    assert!(cache.stats().entries > 100, "{:?}", cache.stats());
}

#[test]
fn a_read_goes_on_while_its_pack_is_evicted() {
    let dir = TempDir::new().unwrap();
    let cache = open(&dir, 1 << 20);
    let bytes = content(1, 40_000);
    insert(&cache, &bytes);
    let place = cache.index.peek(key(&bytes).short()).unwrap();
    let pack = cache.packs.read()[&place.pack].clone();
    evict::remove(&cache, place.pack);
    assert!(!cache.contains(&key(&bytes)));
    let mut out = vec![0; bytes.len()];
    pack.read(place.offset, &key(&bytes), 0, &mut out).unwrap();
    assert!(out == bytes);
}

#[test]
fn a_second_process_is_refused() {
    let dir = TempDir::new().unwrap();
    let first = open(&dir, 1 << 20);
    let refused = Cache::open(dir.path(), &config(1 << 20));
    assert!(matches!(refused, Err(Error::Locked(path)) if path == dir.path()));
    drop(first);
    open(&dir, 1 << 20);
}

#[test]
fn every_flipped_bit_is_noticed_and_what_it_hit_can_be_written_again() {
    let dir = TempDir::new().unwrap();
    let bytes = content(5, BLOCK as usize + 100);
    insert(&open(&dir, 1 << 20), &bytes);
    let path = packs(&dir).remove(0);
    let whole = fs::read(&path).unwrap();
    let interesting = (0..16 + HEADER + 8 + 20).chain((16 + HEADER..whole.len()).step_by(991));
    for at in interesting {
        let mut bad = whole.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(&path, &bad).unwrap();
        let cache = open(&dir, 1 << 20);
        let mut out = vec![0; bytes.len()];
        assert!(!cache.read(&key(&bytes), 0, &mut out), "byte {at}");
        assert!(
            !cache.contains(&key(&bytes)),
            "dropped, so that it is fetched again"
        );
        insert(&cache, &bytes);
        drop(cache);
        let cache = open(&dir, 1 << 20);
        assert!(
            cache.load(&key(&bytes)).unwrap() == bytes,
            "the newer record counts"
        );
        drop(cache);
        for path in packs(&dir) {
            fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn damage_elsewhere_does_not_cost_a_read_of_a_sound_block() {
    let dir = TempDir::new().unwrap();
    let cache = open(&dir, 1 << 20);
    let bytes = content(5, 3 * BLOCK as usize);
    insert(&cache, &bytes);
    let path = packs(&dir).remove(0);
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"garbage", fs::metadata(&path).unwrap().len() - 10)
        .unwrap();
    let mut out = [0; 4096];
    assert!(cache.read(&key(&bytes), BLOCK, &mut out));
    assert!(out == bytes[BLOCK as usize..][..4096]);
    assert!(!cache.read(&key(&bytes), 2 * BLOCK, &mut out));
    assert_eq!(cache.stats().damaged, 1);
    assert!(
        !cache.read(&key(&bytes), BLOCK, &mut out),
        "the content is dropped as a whole"
    );
}

#[test]
fn records_that_change_places_are_not_taken_for_each_other() {
    let dir = TempDir::new().unwrap();
    let (one, two) = (content(1, 500), content(2, 500));
    {
        let cache = open(&dir, 1 << 20);
        insert(&cache, &one);
        insert(&cache, &two);
    }
    let path = packs(&dir).remove(0);
    let whole = fs::read(&path).unwrap();
    let (head, records) = whole.split_at(16);
    let (first, second) = records.split_at(records.len() / 2);
    // Whole records, and only what follows the header.
    let payload = first.len() - HEADER;
    let swaps = [
        [head, second, first].concat(),
        [
            head,
            &first[..HEADER],
            &second[HEADER..],
            &second[..HEADER],
            &first[HEADER..],
        ]
        .concat(),
    ];
    assert!(payload > 500);
    for swapped in swaps {
        fs::write(&path, swapped).unwrap();
        let cache = open(&dir, 1 << 20);
        assert!(cache.load(&key(&one)).is_none());
        assert!(cache.load(&key(&two)).is_none());
    }
}

/// What a crash can leave of the pack that was being written: any prefix, zeros or garbage.
#[test]
fn no_crash_leaves_wrong_bytes() {
    let dir = TempDir::new().unwrap();
    let all: Vec<_> = (0..6)
        .map(|seed| content(seed, 30 + 8000 * seed as usize))
        .collect();
    {
        let cache = open(&dir, 1 << 24);
        all.iter().for_each(|bytes| _ = insert(&cache, bytes));
    }
    let path = packs(&dir).remove(0);
    let whole = fs::read(&path).unwrap();
    let cuts: Vec<_> = (0..200).chain((200..whole.len()).step_by(313)).collect();
    for cut in cuts {
        let kept = &whole[..cut];
        let zeros = vec![0; (whole.len() - cut).min(40_000)];
        let noise = content(cut as u64, zeros.len());
        for tail in [&[][..], &zeros, &noise] {
            fs::write(&path, [kept, tail].concat()).unwrap();
            check_after_crash(&dir, &all, cut);
            packs(&dir)
                .into_iter()
                .for_each(|path| fs::remove_file(path).unwrap());
        }
    }
}

fn check_after_crash(dir: &TempDir, all: &[Vec<u8>], cut: usize) {
    let cache = open(dir, 1 << 24);
    let mut end = 16;
    for bytes in all {
        end += key(bytes).record_len();
        let found = cache.load(&key(bytes));
        assert!(
            found.as_ref().is_none_or(|found| found == bytes),
            "wrong bytes after {cut}"
        );
        assert!(
            found.is_some() || end > cut as u64,
            "a whole record is lost after {cut}"
        );
    }
    all.iter().for_each(|bytes| _ = insert(&cache, bytes));
    drop(cache);
    let cache = open(dir, 1 << 24);
    assert!(
        all.iter()
            .all(|bytes| cache.load(&key(bytes)).unwrap() == bytes)
    );
}

#[test]
fn files_that_are_not_ours_do_no_harm() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("00000000.pack"), b"older format").unwrap();
    fs::write(dir.path().join("note.txt"), b"mine").unwrap();
    fs::create_dir(dir.path().join("00000001.pack")).unwrap();
    let victim = dir.path().join("victim");
    fs::write(&victim, b"precious").unwrap();
    std::os::unix::fs::symlink(&victim, dir.path().join("00000002.pack")).unwrap();
    let cache = open(&dir, 1 << 20);
    let bytes = content(1, 100);
    insert(&cache, &bytes);
    assert!(cache.load(&key(&bytes)).unwrap() == bytes);
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    assert_eq!(fs::read(dir.path().join("note.txt")).unwrap(), b"mine");
    assert!(!dir.path().join("00000000.pack").exists());
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u8),
    Read(u8, u16, u16),
    Reopen,
    PassTime,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => any::<u8>().prop_map(Step::Insert),
        6 => any::<(u8, u16, u16)>().prop_map(|(seed, at, len)| Step::Read(seed, at, len)),
        1 => Just(Step::Reopen),
        1 => Just(Step::PassTime),
    ];
    proptest::collection::vec(step, 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// The model holds everything ever inserted: the cache may have forgotten, but what it yields
    /// is what the model has, it never yields what was not inserted, and the last one is held.
    #[test]
    fn it_is_a_map_that_forgets(steps in steps(), small in any::<bool>()) {
        let max = if small { 300 << 10 } else { 64 << 20 };
        let dir = TempDir::new().unwrap();
        let mut cache = open(&dir, max);
        let mut model = HashMap::new();
        for step in steps {
            match step {
                Step::Insert(seed) => {
                    let bytes = content(seed.into(), 1 + usize::from(seed) * 150);
                    insert(&cache, &bytes);
                    prop_assert!(cache.contains(&key(&bytes)));
                    model.insert(seed, bytes);
                }
                Step::Read(seed, at, len) => {
                    let bytes = content(seed.into(), 1 + usize::from(seed) * 150);
                    let at = usize::from(at) % bytes.len();
                    let len = usize::from(len) % (bytes.len() - at + 1);
                    let mut out = vec![0; len];
                    let hit = cache.read(&key(&bytes), u32::try_from(at).unwrap(), &mut out);
                    prop_assert!(!hit || out == bytes[at..at + len]);
                    prop_assert!(!hit || model.contains_key(&seed));
                    prop_assert!(hit || small || !model.contains_key(&seed));
                }
                Step::Reopen => {
                    drop(cache);
                    cache = open(&dir, max);
                }
                Step::PassTime => pass_time(&cache),
            }
            prop_assert!(disk_bytes(&dir) <= max);
        }
        prop_assert_eq!(cache.stats().damaged, 0);
    }
}

/// What the cache says it holds a reader does not fetch: were that not to be had for long, the read would fail.
#[test]
fn what_is_evicted_is_not_held_while_it_goes() {
    let dir = TempDir::new().unwrap();
    let cache = open(&dir, 16 << 20);
    let first = content(0, 1000);
    let (stop, lost) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let tries = || cache.contains(&key(&first)) && cache.load(&key(&first)).is_none();
                if (0..16).all(|_| tries()) {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        // Each eviction goes over as many rows as a large cache has.
        for seed in 1..40_000 {
            insert(&cache, &content(seed, 1000));
            insert(&cache, &first);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(cache.stats().evicted > 16 << 20);
    assert_eq!(lost.into_inner(), 0);
}
