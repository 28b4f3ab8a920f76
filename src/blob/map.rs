//! Where a layer's content lies in its blob, and what proves it: values and the seam to the index.
//!
//! A layer's files are cut into *chunks*, each with a digest of its own; chunks are compressed in
//! *members* (one gzip member each, of one big chunk or many small ones), and members follow each
//! other in the blob.

use crate::oci::Digest;

/// A chunk of one layer: its position in the layer's chunk table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkId(pub u32);

/// A gzip member of one layer's blob; members are numbered in the order they lie in the blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId(pub u32);

/// One gzip member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Where it starts, in bytes from the start of the blob.
    pub offset: u64,
    /// Its compressed bytes, up to the next known offset (it may be followed by members that hold
    /// no content, for instance tar headers).
    pub len: u64,
    /// How many bytes must be inflated to have all of its chunks.
    pub inflated: u64,
}

/// What a chunk's bytes must hash to, and what names them in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proof {
    /// The verified TOC promises this sha256 of the content.
    Sha256(Digest),
    /// Legacy stargz without chunk digests: nothing can be verified, and the name is derived from
    /// where the bytes lie (blob digest, member offset, inner offset, size), so that it can never
    /// name another layer's content.
    Unverified(Digest),
}

impl Proof {
    /// The name in the cache.
    #[must_use]
    pub const fn key(&self) -> &Digest {
        match self {
            Self::Sha256(digest) | Self::Unverified(digest) => digest,
        }
    }

    /// Whether `content` is what is proven; always true of what cannot be verified.
    #[must_use]
    pub fn accepts(&self, content: &[u8]) -> bool {
        match self {
            Self::Sha256(digest) => Digest::of(content) == *digest,
            Self::Unverified(_) => true,
        }
    }
}

/// One chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkInfo {
    /// What its bytes must be.
    pub proof: Proof,
    /// Its length in bytes, at least 1.
    pub size: u32,
    /// The member that holds it.
    pub member: MemberId,
    /// Where it starts in the inflated member, in bytes.
    pub inner: u64,
}

/// Where a layer's content lies in its blob. `fs` implements it over the mapped index; every
/// method is a look-up without I/O or locks. Values that lie outside of the blob are refused when
/// the index is built, but nothing here relies on it for safety.
pub trait LayerMap: Send + Sync {
    /// Number of members.
    fn member_count(&self) -> u32;

    /// A member, `None` from `member_count` on. Offsets ascend with the number and members do not
    /// overlap.
    fn member(&self, member: MemberId) -> Option<Member>;

    /// Number of chunks. The chunks of one file have consecutive numbers in file order.
    fn chunk_count(&self) -> u32;

    /// A chunk, `None` from `chunk_count` on.
    fn chunk(&self, chunk: ChunkId) -> Option<ChunkInfo>;

    /// Calls `each` with every chunk until it says no, or one cannot be read; whether neither happened.
    fn all_chunks(&self, each: &mut dyn FnMut(&ChunkInfo) -> bool) -> bool {
        let mut chunks = (0..self.chunk_count()).map(|chunk| self.chunk(ChunkId(chunk)));
        chunks.all(|info| info.is_some_and(|info| each(&info)))
    }

    /// Calls `each` with every chunk that lies in `member`, in no particular order.
    fn chunks_of(&self, member: MemberId, each: &mut dyn FnMut(ChunkId));

    /// Where a chunk starts in its file, in bytes; 0 for the first of each file. `None` where that
    /// is not known: then no file of the layer can be kept as a file of its own.
    fn place(&self, chunk: ChunkId) -> Option<u64> {
        let _ = chunk;
        None
    }

    /// Whether a chunk need not be fetched with what lies before the prefetch landmark.
    fn is_unread(&self, chunk: ChunkId) -> bool {
        let _ = chunk;
        false
    }

    /// How far from its start the blob should be fetched at mount, but for chunks that are
    /// [unread](Self::is_unread): the offset of the eStargz prefetch landmark, if the layer has one.
    fn prefetch_end(&self) -> Option<u64>;
}

/// The members before the landmark of a layer that have anything to be read.
pub(super) fn before_landmark(map: &dyn LayerMap) -> impl Iterator<Item = u32> {
    let end = map.prefetch_end().unwrap_or(0);
    let before = move |member: &u32| {
        let place = map.member(MemberId(*member));
        place.is_some_and(|member| member.offset < end)
    };
    let is_read = |member: &u32| {
        let mut read = false;
        map.chunks_of(MemberId(*member), &mut |chunk| {
            read |= !map.is_unread(chunk)
        });
        read
    };
    (0..map.member_count()).take_while(before).filter(is_read)
}
