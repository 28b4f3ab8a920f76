//! Bytes of one remote blob through the verified local cache.
//!
//! `fs` sees the trait [`ReadAt`]; what it knows of where a layer's content lies in its blob comes
//! back down through the trait [`LayerMap`].

pub mod cache;
pub mod fetch;
mod first_reads;
mod map;
mod memory;
mod read;
mod remote;
mod size;
mod stats;
mod whole;

pub use cache::WholeFile;
pub use first_reads::{FirstRead, ReadLog};
pub use map::{ChunkId, ChunkInfo, LayerMap, Member, MemberId, Proof};
pub use memory::InMemory;
pub use read::{ReadAt, ReadError, Space};
pub use remote::Blob;
pub use size::{ByteSize, ByteSizeError};
pub use stats::LayerStats;
pub use whole::SMALLEST;
