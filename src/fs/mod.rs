//! One layer as a read-only tree: a core that knows no FUSE, and a thin adapter.
//!
//! The way of a read: the kernel's READ comes in at `fuse.rs` (the adapter), which asks [`LayerFs`]
//! (the core); that finds the file and its chunks in the [`Index`] (mapped, not parsed) and copies
//! them from [`crate::blob`]'s cache. What is not there is fetched on the runtime, and the reply
//! goes with it. What a reader in order will ask for next, `populate` gives the kernel before.
//!
//! Promises: node ids and everything that is served are functions of the index alone, so a server
//! that takes over a mount answers as the one before; no FUSE thread waits for the network.

pub mod adopt;
mod attr;
mod buffers;
mod config;
mod counters;
mod errno;
mod error;
mod failed;
mod failure;
mod fuse;
pub mod index;
pub mod kept;
mod latency;
mod layer_fs;
mod memory;
mod opens;
mod poll;
mod populate;
mod serve;
mod tally;
mod unlisted;

pub use buffers::Buffer;
pub use config::Config;
pub use counters::{Counters, Counts, Totals, Turns};
pub use error::Error;
pub use failure::Failure;
pub use index::{Index, Ino, Inode, Kind};
pub use latency::{BOUNDS, Latencies};
pub use layer_fs::{Item, LayerFs, Reading, Statfs};
pub use memory::settle as settle_memory;
pub use populate::{Populate, run_if_filler};
pub use serve::{NoXattrs, OpenMode, ServeError, ServeOptions, Served, serve, set_read_ahead};
pub use tally::Tally;
pub use unlisted::{Below, Unlisted, unlisted};

#[cfg(test)]
mod tests;
