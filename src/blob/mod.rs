//! Bytes of one remote blob through the verified local cache.
//!
//! `fs` sees the trait [`ReadAt`]; what it knows of where a layer's content lies in its blob comes
//! back down through the trait [`LayerMap`].

mod map;
mod memory;
mod read;

pub use map::{ChunkId, ChunkInfo, LayerMap, Member, MemberId, Proof};
pub use memory::InMemory;
pub use read::{ReadAt, ReadError, Space};
