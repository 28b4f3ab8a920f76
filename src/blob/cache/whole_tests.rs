//! Whole files: completed, opened, evicted, damaged, crashed.

use std::fs;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;

use super::tests::{content, insert, key, open};
use super::*;
use crate::blob::map::Proof;

const CHUNK: usize = 100_000;

/// A file of some chunks.
struct Sample {
    chunks: Vec<Vec<u8>>,
}

impl Sample {
    fn new(seed: u64, count: u64) -> Self {
        let chunks = (0..count)
            .map(|number| content(seed * 1000 + number, CHUNK))
            .collect();
        Self { chunks }
    }

    fn bytes(&self) -> Vec<u8> {
        self.chunks.concat()
    }

    fn name(&self) -> Digest {
        Digest::of(&self.bytes())
    }

    fn count(&self) -> u32 {
        u32::try_from(self.chunks.len()).unwrap()
    }

    fn begin(&self, cache: &Cache) -> Option<Large> {
        cache.begin_large(self.name(), self.bytes().len() as u64, self.count())
    }

    fn chunk(&self, number: u32) -> Option<(Key, u64)> {
        let bytes = self.chunks.get(number as usize)?;
        Some((key(bytes), u64::from(number) * CHUNK as u64))
    }

    /// Writes chunk `number` to its place.
    fn write(&self, cache: &Cache, large: &Large, number: u32) -> u64 {
        let bytes = &self.chunks[number as usize];
        let home = large.home(number, u64::from(number) * CHUNK as u64);
        let proof = Proof::Sha256(Digest::of(bytes));
        let good = Verified::check(&proof, CHUNK as u32, bytes).unwrap();
        cache.insert(&[good.at(Some(&home))])
    }

    fn complete(&self, cache: &Cache, large: &Large) -> bool {
        cache.complete_large(large, &|number| self.chunk(number), self.count())
    }

    /// All of it, in the cache and ready.
    fn made(&self, cache: &Cache) -> Large {
        let large = self.begin(cache).unwrap();
        for number in 0..self.count() {
            assert_eq!(self.write(cache, &large, number), CHUNK as u64);
        }
        assert!(self.complete(cache, &large));
        large
    }

    fn is_read_from(&self, cache: &Cache) -> bool {
        let same = |bytes: &Vec<u8>| cache.load(&key(bytes)).is_some_and(|read| read == bytes);
        self.chunks.iter().all(same)
    }
}

fn opened(dir: &TempDir, max_size: u64) -> Arc<Cache> {
    Arc::new(open(dir, max_size))
}

fn named(dir: &TempDir, end: &str) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|e| e == end))
        .collect();
    paths.sort();
    paths
}

fn whole_bytes(file: &WholeFile) -> Vec<u8> {
    let mut file = fs::File::from(file.as_fd().try_clone_to_owned().unwrap());
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn its_chunks_lie_in_it_and_nowhere_else() {
    let dir = TempDir::new().unwrap();
    let cache = opened(&dir, 64 << 20);
    let sample = Sample::new(1, 20);
    let large = sample.begin(&cache).unwrap();
    for number in (0..20).rev() {
        assert!(
            cache.open_large(&large).is_none(),
            "not while a chunk is missing"
        );
        assert!(!sample.complete(&cache, &large));
        assert_eq!(sample.write(&cache, &large, number), CHUNK as u64);
        assert!(cache.load(&key(&sample.chunks[number as usize])).is_some());
    }
    assert!(
        cache.open_large(&large).is_none(),
        "not before it was completed"
    );
    assert!(sample.complete(&cache, &large));
    assert!(whole_bytes(&cache.open_large(&large).unwrap()) == sample.bytes());
    assert!(sample.is_read_from(&cache));
    assert!(named(&dir, "pack").is_empty());
    let held = cache.stats().held;
    assert!((2_000_000..2_010_000).contains(&held), "{held}");
    let mut out = vec![0; 50_000];
    assert!(cache.read(&key(&sample.chunks[3]), 33_333, &mut out));
    assert!(out == sample.chunks[3][33_333..83_333]);
}

#[test]
fn what_lies_elsewhere_is_copied_to_its_place() {
    let dir = TempDir::new().unwrap();
    let cache = opened(&dir, 64 << 20);
    let mut sample = Sample::new(2, 12);
    sample.chunks[4] = vec![0; CHUNK];
    sample.chunks[5] = vec![0; CHUNK];
    sample.chunks[9] = sample.chunks[1].clone();
    for bytes in &sample.chunks[..8] {
        insert(&cache, bytes);
    }
    let large = sample.begin(&cache).unwrap();
    for number in [8, 10, 11] {
        sample.write(&cache, &large, number);
    }
    assert!(sample.complete(&cache, &large));
    assert!(whole_bytes(&cache.open_large(&large).unwrap()) == sample.bytes());
    assert!(sample.is_read_from(&cache));
}

#[test]
fn it_is_ready_again_after_a_restart_but_not_after_another_boot() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(3, 9);
    drop(sample.made(&opened(&dir, 64 << 20)));
    let cache = opened(&dir, 64 << 20);
    let held = cache.stats().held;
    assert!((900_000..905_000).contains(&held), "{held}");
    let large = cache.find_large(&sample.name()).unwrap();
    assert!(whole_bytes(&cache.open_large(&large).unwrap()) == sample.bytes());
    drop((large, cache));
    // The seal of another boot.
    let sums = fs::File::options()
        .read(true)
        .write(true)
        .open(&named(&dir, "sums")[0])
        .unwrap();
    let mut start = [0; sums::SUMS_HEADER + sums::SEAL];
    sums.read_exact_at(&mut start, 0).unwrap();
    let mut seal = sums::Seal::read(&start).unwrap();
    seal.boot[0] ^= 1;
    sums.write_all_at(&seal.write(), sums::SUMS_HEADER as u64)
        .unwrap();
    let cache = opened(&dir, 64 << 20);
    let large = cache.find_large(&sample.name()).unwrap();
    assert!(cache.open_large(&large).is_none());
    assert!(
        sample.is_read_from(&cache),
        "chunk by chunk, checked, it is there"
    );
    assert!(sample.complete(&cache, &large));
    assert!(cache.open_large(&large).is_some());
}

#[test]
fn damage_is_noticed_before_it_is_opened_and_repaired_in_place() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(4, 9);
    for reopen in [false, true] {
        let mut cache = opened(&dir, 64 << 20);
        let mut large = match cache.find_large(&sample.name()) {
            Some(large) => large,
            None => sample.made(&cache),
        };
        assert!(cache.open_large(&large).is_some());
        let data = fs::File::options()
            .write(true)
            .open(&named(&dir, "file")[0])
            .unwrap();
        data.write_all_at(&[sample.chunks[5][7] ^ 4], 5 * CHUNK as u64 + 7)
            .unwrap();
        if reopen {
            drop((large, cache));
            cache = opened(&dir, 64 << 20);
            large = cache.find_large(&sample.name()).unwrap();
        }
        assert!(cache.open_large(&large).is_none(), "it was written to");
        assert!(!sample.complete(&cache, &large), "and one chunk is damaged");
        assert!(cache.load(&key(&sample.chunks[5])).is_none());
        assert!(cache.load(&key(&sample.chunks[6])).is_some());
        assert_eq!(sample.write(&cache, &large, 5), CHUNK as u64);
        assert!(sample.complete(&cache, &large));
        assert!(whole_bytes(&cache.open_large(&large).unwrap()) == sample.bytes());
        assert!(
            cache.stats().held < 910_000,
            "rewritten chunks are not counted twice"
        );
    }
}

#[test]
fn an_open_file_stays_and_the_bound_holds() {
    let dir = TempDir::new().unwrap();
    let cache = opened(&dir, 4 << 20);
    let sample = Sample::new(5, 9);
    let file = cache.open_large(&sample.made(&cache)).unwrap();
    for seed in 0..100 {
        insert(&cache, &content(seed, 90_000));
        assert!(cache.stats().held <= 4 << 20);
    }
    assert!(whole_bytes(&file) == sample.bytes());
    assert_eq!(named(&dir, "file").len(), 1, "what is open is not evicted");
    drop(file);
    cache.clock.skipped.fetch_add(1000, Ordering::Relaxed);
    for seed in 100..200 {
        insert(&cache, &content(seed, 90_000));
    }
    assert!(named(&dir, "file").is_empty() && named(&dir, "sums").is_empty());
    assert!(cache.find_large(&sample.name()).is_none());
    assert!(cache.load(&key(&sample.chunks[0])).is_none());
    let again = sample.made(&cache);
    assert!(cache.open_large(&again).is_some());
}

#[test]
fn open_files_that_fill_the_cache_cost_keeping_not_serving() {
    let dir = TempDir::new().unwrap();
    let cache = opened(&dir, 4 << 20);
    let files: Vec<_> = (10..14)
        .map(|seed| {
            let large = Sample::new(seed, 10).made(&cache);
            cache.open_large(&large).unwrap()
        })
        .collect();
    let bytes = content(1, 300_000);
    assert_eq!(insert(&cache, &bytes), 0, "no room, and nothing to evict");
    assert!(cache.stats().held <= 4 << 20);
    drop(files);
    assert_eq!(insert(&cache, &bytes), 300_000);
    assert!(
        Sample::new(21, 11).begin(&cache).is_none(),
        "too large for this cache"
    );
}

#[test]
fn a_sweep_takes_what_nobody_keeps() {
    let dir = TempDir::new().unwrap();
    let cache = opened(&dir, 64 << 20);
    let (gone, kept) = (Sample::new(6, 10), Sample::new(7, 10));
    drop((gone.made(&cache), kept.made(&cache)));
    let mut sweep = cache.sweep();
    kept.chunks.iter().for_each(|bytes| sweep.keep(&key(bytes)));
    // One chunk of the other is shared with a layer that stays.
    sweep.keep(&key(&gone.chunks[2]));
    assert_eq!(sweep.finish().contents, 9);
    assert!(cache.find_large(&gone.name()).is_none());
    assert!(cache.load(&key(&gone.chunks[2])).unwrap() == gone.chunks[2]);
    let large = cache.find_large(&kept.name()).unwrap();
    assert!(cache.open_large(&large).is_some());
    assert_eq!(
        (named(&dir, "file").len(), named(&dir, "sums").len()),
        (1, 1)
    );
}

#[test]
fn no_crash_leaves_wrong_bytes() {
    let sample = Sample::new(8, 6);
    let dir = TempDir::new().unwrap();
    let cache = opened(&dir, 64 << 20);
    let large = sample.begin(&cache).unwrap();
    (0..5).for_each(|number| _ = sample.write(&cache, &large, number));
    drop((large, cache));
    let (data, sums) = (
        named(&dir, "file")[0].clone(),
        named(&dir, "sums")[0].clone(),
    );
    let (all, table) = (fs::read(&data).unwrap(), fs::read(&sums).unwrap());
    // Any prefix of either may be what reached the disk, the rest zero or missing.
    for part in 0..=20 {
        for zero in [false, true] {
            let cut = |bytes: &[u8], to: usize| {
                let mut cut = bytes[..to].to_vec();
                cut.resize(if zero { bytes.len() } else { to }, 0);
                cut
            };
            fs::write(&data, cut(&all, all.len() * part / 20)).unwrap();
            fs::write(&sums, cut(&table, table.len() * ((part * 7) % 21) / 20)).unwrap();
            let cache = opened(&dir, 64 << 20);
            for bytes in &sample.chunks {
                let found = cache.load(&key(bytes));
                assert!(found.is_none_or(|found| found == bytes), "{part}");
            }
            let large = sample.begin(&cache).unwrap();
            (0..6).for_each(|number| _ = sample.write(&cache, &large, number));
            assert!(sample.complete(&cache, &large), "{part}");
            assert!(whole_bytes(&cache.open_large(&large).unwrap()) == sample.bytes());
            drop((large, cache));
            for path in named(&dir, "file").iter().chain(&named(&dir, "sums")) {
                fs::remove_file(path).unwrap();
            }
        }
    }
    fs::write(&data, &all).unwrap();
    let cache = opened(&dir, 64 << 20);
    assert!(
        named(&dir, "file").is_empty(),
        "content without its checksums is nothing"
    );
    assert_eq!(cache.stats().held, 0);
}
