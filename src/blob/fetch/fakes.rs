//! A blob in memory behind a scripted registry, and the map of it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use parking_lot::Mutex;

use crate::blob::map::{ChunkId, ChunkInfo, LayerMap, Member, MemberId, Proof};
use crate::oci::Digest;
use crate::registry::{ByteStream, Error, RangeSource};

/// What a request meets with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// It is refused.
    Refuse,
    /// The answer ends with an error after so many bytes.
    Break(usize),
    /// Every byte of the answer's second half is wrong.
    Garble,
}

/// What an answer brings at a time.
const PIECE: usize = 16 << 10;

#[derive(Default)]
pub(super) struct Script {
    pub latency: Duration,
    /// Time that each [`PIECE`] takes.
    pub per_piece: Duration,
    /// While it is set, so many bytes of each answer come and no more.
    pub stops_after: Option<usize>,
    pub faults: VecDeque<Fault>,
    /// Once the faults are used up: for ever.
    pub always: Option<Fault>,
    /// All ranges that were asked for.
    pub asked: Vec<Range<u64>>,
    /// Bytes that were handed out.
    pub sent: u64,
}

/// The registry's side.
pub(super) struct FakeSource {
    blob: Bytes,
    digest: Digest,
    pub script: Arc<Mutex<Script>>,
}

impl FakeSource {
    pub(super) fn asked(&self) -> Vec<Range<u64>> {
        self.script.lock().asked.clone()
    }

    pub(super) fn sent(&self) -> u64 {
        self.script.lock().sent
    }
}

impl RangeSource for FakeSource {
    fn digest(&self) -> Digest {
        self.digest
    }

    fn size(&self) -> u64 {
        self.blob.len() as u64
    }

    fn range(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        let (latency, fault) = {
            let mut script = self.script.lock();
            script.asked.push(range.clone());
            (script.latency, script.faults.pop_front().or(script.always))
        };
        let mut body = self.blob[range.start as usize..range.end as usize].to_vec();
        let mut end = None;
        match fault {
            Some(Fault::Break(at)) => {
                body.truncate(at);
                end = Some(Err(Error::Protocol("the connection broke".into())));
            }
            Some(Fault::Garble) => {
                let half = body.len() / 2;
                body[half..].iter_mut().for_each(|byte| *byte ^= 0x55);
            }
            Some(Fault::Refuse) | None => {}
        }
        let script = Arc::clone(&self.script);
        async move {
            tokio::time::sleep(latency).await;
            if let Some(Fault::Refuse) = fault {
                return Err(Error::Protocol("refused".into()));
            }
            let body = Bytes::from(body);
            let pieces = (0..body.len()).step_by(PIECE);
            let pieces: Vec<_> = pieces
                .map(|at| Ok(body.slice(at..body.len().min(at + PIECE))))
                .chain(end)
                .collect();
            let pieces = (0..).step_by(PIECE).zip(pieces);
            let stream = futures::stream::iter(pieces).then(move |(at, piece)| {
                let script = Arc::clone(&script);
                async move {
                    let stops = || script.lock().stops_after.is_some_and(|after| at >= after);
                    while stops() {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    let delay = script.lock().per_piece;
                    if !delay.is_zero() {
                        tokio::time::sleep(delay).await;
                    }
                    script.lock().sent +=
                        piece.as_ref().map_or(0, |piece: &Bytes| piece.len() as u64);
                    piece
                }
            });
            Ok(stream.boxed())
        }
        .boxed()
    }
}

/// The index's side: chunks in members.
#[derive(Default)]
pub(super) struct FakeMap {
    members: Vec<Member>,
    chunks: Vec<ChunkInfo>,
    pub prefetch: Option<u64>,
    /// Time that looking for a member's chunks takes.
    pub slow: Duration,
    /// While it is set no thread gets on with what was fetched for the background.
    pub busy: Arc<AtomicBool>,
}

impl LayerMap for FakeMap {
    fn member_count(&self) -> u32 {
        self.members.len() as u32
    }

    fn member(&self, member: MemberId) -> Option<Member> {
        self.members.get(member.0 as usize).copied()
    }

    fn chunk_count(&self) -> u32 {
        self.chunks.len() as u32
    }

    fn chunk(&self, chunk: ChunkId) -> Option<ChunkInfo> {
        self.chunks.get(chunk.0 as usize).copied()
    }

    fn chunks_of(&self, member: MemberId, each: &mut dyn FnMut(ChunkId)) {
        std::thread::sleep(self.slow);
        let thread = std::thread::current();
        if thread
            .name()
            .is_some_and(|name| name.starts_with("decode-bg"))
        {
            while self.busy.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        for (id, chunk) in (0..).zip(&self.chunks) {
            if chunk.member == member {
                each(ChunkId(id));
            }
        }
    }

    fn prefetch_end(&self) -> Option<u64> {
        self.prefetch
    }
}

/// A blob of `members`, each a list of chunk contents.
pub(super) fn layer(members: &[Vec<Vec<u8>>]) -> (Arc<FakeSource>, FakeMap) {
    let mut blob = Vec::new();
    let mut map = FakeMap::default();
    for chunks in members {
        let (offset, mut inflated) = (blob.len() as u64, Vec::new());
        for chunk in chunks {
            map.chunks.push(ChunkInfo {
                proof: Proof::Sha256(Digest::of(chunk)),
                size: chunk.len() as u32,
                member: MemberId(map.members.len() as u32),
                inner: inflated.len() as u64,
            });
            inflated.extend_from_slice(chunk);
        }
        blob.extend(stored(&inflated));
        let len = blob.len() as u64 - offset;
        map.members.push(Member {
            offset,
            len,
            inflated: inflated.len() as u64,
        });
    }
    let digest = Digest::of(&blob);
    let source = FakeSource {
        blob: blob.into(),
        digest,
        script: Arc::default(),
    };
    (Arc::new(source), map)
}

/// A gzip member that does not compress: its length in the blob is its content's and 18 bytes, and
/// 5 for each 65535.
pub(super) fn stored(content: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let blocks: Vec<_> = content.chunks(0xffff).collect();
    for (number, block) in blocks.iter().enumerate() {
        let len = block.len() as u16;
        out.push(u8::from(number + 1 == blocks.len()));
        out.extend(len.to_le_bytes());
        out.extend((!len).to_le_bytes());
        out.extend_from_slice(block);
    }
    out.extend(crc32fast::hash(content).to_le_bytes());
    out.extend((content.len() as u32).to_le_bytes());
    out
}
