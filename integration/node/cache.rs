//! The chunk cache on a real disk: a full one, a writer that is killed, a hit that allocates
//! nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crfs::blob::cache::{Cache, Config, Key, Verified};
use crfs::blob::fetch::{self, Fetcher};
use crfs::blob::{
    Blob, ByteSize, ChunkId, ChunkInfo, LayerMap, Member, MemberId, Proof, ReadAt as _,
};
use crfs::oci::Digest;
use crfs::registry::{ByteStream, Error, RangeSource};
use futures::FutureExt as _;
use futures::future::BoxFuture;

/// The folder of the child that is killed.
const CHILD: &str = "CRFS_TEST_CACHE";

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator; the counter is a plain cell of the
// calling thread, made at compile time, so counting neither allocates nor fails.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps to the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    // Not by `alloc` and clearing: zeroed memory from the kernel need not be touched, and other
    // tests of this binary measure how much is.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps to the contract, which is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the memory came from `alloc` above, which is the system's.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn open(dir: &Path, max_size: u64) -> Cache {
    Cache::open(
        dir,
        &Config {
            max_size: ByteSize(max_size),
        },
    )
    .unwrap()
}

/// Content number `seed`, up to 100 kB.
fn content(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let len = 1 + next() as usize % 100_000;
    (0..len).map(|_| next().to_le_bytes()[3]).collect()
}

fn proof(bytes: &[u8]) -> Proof {
    Proof::Sha256(Digest::of(bytes))
}

fn insert(cache: &Cache, bytes: &[u8]) -> u64 {
    cache.insert(&[Verified::check(&proof(bytes), bytes.len() as u32, bytes).unwrap()])
}

fn load(cache: &Cache, bytes: &[u8]) -> Option<Bytes> {
    cache.load(&Key::new(&proof(bytes), bytes.len() as u32))
}

/// A tmpfs of 2 MiB that goes away with this.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let dir = tempfile::TempDir::new().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "crfs-test"])
            .arg(dir.path())
            .status()
            .unwrap();
        assert!(mounted.success(), "mounting a tmpfs needs root");
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_costs_the_cache_and_heals() {
    let disk = SmallDisk::new();
    let folder = disk.0.path().join("cache");
    let filler = disk.0.path().join("filler");
    let cache = open(&folder, 64 << 20);
    let first = content(1);
    insert(&cache, &first);
    // Somebody else takes the rest of the disk.
    let _ = std::fs::write(&filler, vec![1; 4 << 20]);
    let written: u64 = (100..140).map(|seed| insert(&cache, &content(seed))).sum();
    assert_eq!(written, 0);
    assert!(cache.stats().write_errors > 0);
    assert!(load(&cache, &first).is_none_or(|found| found == first));
    std::fs::remove_file(filler).unwrap();
    let patience = Instant::now() + Duration::from_secs(20);
    while insert(&cache, &content(500)) == 0 {
        assert!(Instant::now() < patience, "it does not heal");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(load(&cache, &content(500)).unwrap() == content(500));
}

#[test]
fn a_disk_smaller_than_the_bound_is_lived_with() {
    let disk = SmallDisk::new();
    let cache = open(disk.0.path(), 64 << 20);
    let deadline = Instant::now() + Duration::from_secs(6);
    let mut seed = 0;
    while Instant::now() < deadline {
        let bytes = content(seed);
        if insert(&cache, &bytes) > 0 {
            assert!(load(&cache, &bytes).unwrap() == bytes);
        }
        seed += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(cache.stats().write_errors > 0, "the disk was full");
    drop(cache);
    let cache = open(disk.0.path(), 64 << 20);
    for bytes in (0..seed).map(content) {
        assert!(load(&cache, &bytes).is_none_or(|found| found == bytes));
    }
}

/// Not a test of its own: what [`a_killed_writer_leaves_no_wrong_bytes`] kills.
#[test]
fn killed_child() {
    let Ok(dir) = std::env::var(CHILD) else {
        return;
    };
    let cache = open(Path::new(&dir), 8 << 20);
    println!("ready");
    for seed in 0.. {
        insert(&cache, &content(seed % 300));
    }
}

#[test]
fn a_killed_writer_leaves_no_wrong_bytes() {
    let dir = tempfile::TempDir::new().unwrap();
    let mut found = 0;
    for round in 0..30_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "cache::killed_child", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        assert!(out.lines().any(|line| line.unwrap().ends_with("ready")));
        std::thread::sleep(Duration::from_millis(round * 7 % 60));
        child.kill().unwrap();
        child.wait().unwrap();
        let cache = open(dir.path(), 8 << 20);
        for bytes in (0..300).map(content) {
            if let Some(held) = load(&cache, &bytes) {
                assert!(held == bytes, "wrong bytes in round {round}");
                found += 1;
            }
        }
        assert_eq!(cache.stats().damaged, 0, "what the index names is whole");
    }
    assert!(found > 1000, "{found}: hardly anything survived");
}

/// A layer of one member with one chunk.
struct OneChunk(Vec<u8>);

impl LayerMap for OneChunk {
    fn member_count(&self) -> u32 {
        1
    }

    fn member(&self, member: MemberId) -> Option<Member> {
        let inflated = self.0.len() as u64;
        (member.0 == 0).then_some(Member {
            offset: 0,
            len: 1,
            inflated,
        })
    }

    fn chunk_count(&self) -> u32 {
        1
    }

    fn chunk(&self, chunk: ChunkId) -> Option<ChunkInfo> {
        let size = self.0.len() as u32;
        let info = ChunkInfo {
            proof: proof(&self.0),
            size,
            member: MemberId(0),
            inner: 0,
        };
        (chunk.0 == 0).then_some(info)
    }

    fn chunks_of(&self, _: MemberId, each: &mut dyn FnMut(ChunkId)) {
        each(ChunkId(0));
    }

    fn prefetch_end(&self) -> Option<u64> {
        None
    }
}

/// A registry that has nothing.
pub struct NoRegistry;

impl RangeSource for NoRegistry {
    fn digest(&self) -> Digest {
        Digest::of(b"blob")
    }

    fn size(&self) -> u64 {
        1
    }

    fn range(&self, _: std::ops::Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        std::future::ready(Err(Error::Protocol("there is none".into()))).boxed()
    }
}

#[tokio::test]
async fn a_hit_allocates_nothing() {
    let dir = tempfile::TempDir::new().unwrap();
    let cache = Arc::new(open(dir.path(), 64 << 20));
    let bytes: Vec<_> = (0..30).flat_map(content).collect();
    assert!(bytes.len() > 1 << 20, "more than one group of checksums");
    insert(&cache, &bytes);
    let runtime = tokio::runtime::Handle::current();
    let fetcher = Fetcher::new(cache, fetch::Config::default(), runtime);
    let map = Arc::new(OneChunk(bytes.clone()));
    let blob = Blob::new(&fetcher, Arc::new(NoRegistry), map.clone());
    let mut out = vec![0; 128 << 10];
    // The digest in the map above is computed anew by each look-up, which does not allocate.
    let before = ALLOCATIONS.get();
    for at in [0, 100, 1 << 20, (1 << 20) - 5] {
        assert!(blob.try_read(ChunkId(0), at, &mut out).unwrap());
    }
    assert_eq!(ALLOCATIONS.get(), before);
    assert!(out == bytes[(1 << 20) - 5..][..128 << 10]);
    assert!(blob.fetch(ChunkId(0), 0..1).await.is_ok());
    assert_ne!(ALLOCATIONS.get(), before, "the counter counts");
}
