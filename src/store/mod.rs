//! Durable metadata: the root folder's lock and schema version, one codec, and sled behind a
//! small typed API.
//!
//! [`Root`] claims a root folder for this process. [`Store`] keeps numbered records of one type in
//! sled; what it acknowledges has been flushed. It is the only place that names sled, and its
//! writer thread the only place where sled's blocking calls meet async code.
//!
//! # Layout
//! Below the root folder: `lock` (held with flock; the holder's process id as text), `version`
//! (the schema version as text, read before anything else is touched) and `store/` (sled). One
//! tree: an eight-byte big-endian id to a sealed record (see [`codec`]), and the one-byte key `n`
//! to the highest id ever given out.
//!
//! # Crash behaviour
//! A change is either in the database when [`Store::apply`] returns `Ok`, whatever happens to the
//! process or the machine afterwards, or the caller was told an error. After an error the database
//! is closed, opened again and made equal to what was acknowledged before the next change is
//! tried, so a full disk heals without a restart. sled does not report damage reliably (it rolls
//! back to an older state), which is why every snapshot's folder holds a second, sealed copy of
//! its record and start-up reconciles the two.

pub mod codec;
mod database;
mod error;
mod faults;
pub mod files;
mod root;
mod writer;

pub use error::Error;
pub use faults::{Faults, Step};
pub use root::{Root, SCHEMA};
pub use writer::{Change, Opened, Store};

#[cfg(test)]
mod tests;
