//! A layer of 5 GB, made as it is asked for: however it is read, no byte of it comes twice.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use tempfile::TempDir;

use super::fakes::stored;
use super::*;
use crate::blob::cache;
use crate::blob::map::{ChunkId, ChunkInfo, LayerMap, Member, MemberId, Proof};
use crate::blob::read::ReadAt as _;
use crate::blob::remote::Blob;
use crate::oci::Digest;
use crate::registry::{ByteStream, Error, RangeSource};

/// Bytes of a chunk, each a member of its own.
const CHUNK: usize = 128 << 10;
const CHUNKS: u32 = 40_960;
/// What gzip adds where nothing is compressed: header and trailer, and 5 bytes for each of 3 blocks.
const MEMBER: u64 = CHUNK as u64 + 18 + 3 * 5;

fn content(chunk: u32) -> Vec<u8> {
    let mut content = vec![0; CHUNK];
    content[..4].copy_from_slice(&chunk.to_le_bytes());
    content
}

/// One file that is the whole layer.
struct Large {
    digests: Vec<OnceLock<Digest>>,
    sent: Arc<AtomicU64>,
}

impl LayerMap for Large {
    fn member_count(&self) -> u32 {
        CHUNKS
    }

    fn member(&self, MemberId(member): MemberId) -> Option<Member> {
        (member < CHUNKS).then_some(Member {
            offset: u64::from(member) * MEMBER,
            len: MEMBER,
            inflated: CHUNK as u64,
        })
    }

    fn chunk_count(&self) -> u32 {
        CHUNKS
    }

    fn chunk(&self, ChunkId(chunk): ChunkId) -> Option<ChunkInfo> {
        let digest = self.digests.get(chunk as usize)?;
        let digest = digest.get_or_init(|| Digest::of(&content(chunk)));
        Some(ChunkInfo {
            proof: Proof::Sha256(*digest),
            size: CHUNK as u32,
            member: MemberId(chunk),
            inner: 0,
        })
    }

    fn chunks_of(&self, MemberId(member): MemberId, each: &mut dyn FnMut(ChunkId)) {
        each(ChunkId(member));
    }

    fn prefetch_end(&self) -> Option<u64> {
        None
    }
}

impl RangeSource for Large {
    fn digest(&self) -> Digest {
        Digest::of(b"five gigabytes")
    }

    fn size(&self) -> u64 {
        u64::from(CHUNKS) * MEMBER
    }

    fn range(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        let (members, sent) = (
            range.start / MEMBER..range.end.div_ceil(MEMBER),
            Arc::clone(&self.sent),
        );
        let pieces = futures::stream::iter(members).map(move |member| {
            let start = member * MEMBER;
            let within = range.start.max(start) - start..range.end.min(start + MEMBER) - start;
            let bytes = Bytes::from(stored(&content(u32::try_from(member).unwrap())));
            sent.fetch_add(within.end - within.start, Ordering::Relaxed);
            Ok(bytes.slice(within.start as usize..within.end as usize))
        });
        async move { Ok(pieces.boxed()) }.boxed()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_reads_of_five_gigabytes_fetch_no_byte_twice() {
    let (dir, sent) = (TempDir::new().unwrap(), Arc::new(AtomicU64::new(0)));
    let large = || Large {
        digests: (0..CHUNKS).map(|_| OnceLock::new()).collect(),
        sent: Arc::clone(&sent),
    };
    let max_size = ByteSize(8 << 30);
    let cache = Cache::open(dir.path(), &cache::Config { max_size }).unwrap();
    let config = Config {
        background: false,
        readahead: ByteSize(1 << 20),
        ..Config::default()
    };
    let fetcher = Fetcher::new(Arc::new(cache), config, Handle::current());
    let blob = Arc::new(Blob::new(&fetcher, Arc::new(large()), Arc::new(large())));
    let readers = (0..8_u32).map(|reader| {
        let blob = Arc::clone(&blob);
        tokio::spawn(async move {
            for turn in 0..125_u32 {
                // Four read here and there, four one after the other, two of them the same.
                let chunk = match reader {
                    0..4 => (turn * 7919 + reader * 104_729).wrapping_mul(2_654_435_761) % CHUNKS,
                    _ => reader / 2 * 5_000 + turn,
                };
                let found = blob.fetch(ChunkId(chunk), 0..CHUNKS).await.unwrap();
                assert_eq!(found[..4], chunk.to_le_bytes(), "{reader} {turn}");
            }
        })
    });
    futures::future::try_join_all(readers).await.unwrap();
    let mut before = u64::MAX;
    while before != sent.load(Ordering::Relaxed) {
        before = sent.load(Ordering::Relaxed);
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    let stats = blob.stats();
    assert!(stats.misses > 500 && stats.requests > 100, "{stats:?}");
    assert_eq!(stats.cached, blob.held(), "nothing was decoded twice");
    let once = blob.held() / CHUNK as u64 * MEMBER;
    assert_eq!(stats.fetched, once, "of {before} bytes that were sent");
}
