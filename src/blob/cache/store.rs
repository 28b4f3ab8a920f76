//! A place for contents: a pack of many, or a whole file.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::blob::cache::blocks::Damage;
use crate::blob::cache::pack::Pack;
use crate::blob::cache::record::Key;
use crate::blob::cache::whole::Whole;

/// Either, shared with who reads it.
#[derive(Clone)]
pub(super) enum Store {
    /// Places in it are offsets.
    Pack(Arc<Pack>),
    /// Places in it are numbers of chunks.
    Whole(Arc<Whole>),
}

impl Store {
    /// Its number.
    pub(super) fn id(&self) -> u32 {
        match self {
            Self::Pack(pack) => pack.id(),
            Self::Whole(whole) => whole.id(),
        }
    }

    /// Bytes it is counted with.
    pub(super) fn charged(&self) -> &AtomicU64 {
        match self {
            Self::Pack(pack) => &pack.charged,
            Self::Whole(whole) => &whole.charged,
        }
    }

    /// Whether it must stay: the kernel reads it without asking.
    pub(super) fn is_pinned(&self) -> bool {
        match self {
            Self::Pack(_) => false,
            Self::Whole(whole) => whole.pins.load(Ordering::Relaxed) > 0,
        }
    }

    /// When it was used without its contents being asked for one by one, in ticks.
    pub(super) fn used(&self) -> u32 {
        match self {
            Self::Pack(_) => 0,
            Self::Whole(whole) => whole.used.load(Ordering::Relaxed),
        }
    }

    /// The name of what is at `offset`, if its header is sound.
    pub(super) fn key_at(&self, offset: u32) -> Option<Key> {
        match self {
            Self::Pack(pack) => pack.key_at(offset),
            Self::Whole(whole) => whole.key_at(offset),
        }
    }

    /// Copies a part of a content, each touched block checked. The caller has checked that it lies
    /// within the content.
    pub(super) fn read(
        &self,
        offset: u32,
        key: &Key,
        at: u32,
        out: &mut [u8],
    ) -> Result<(), Damage> {
        match self {
            Self::Pack(pack) => pack.read(offset, key, at, out),
            Self::Whole(whole) => whole.read(offset, key, at, out),
        }
    }
}
