//! crfs, a containerd remote snapshotter: containers start before their image is downloaded.
//!
//! containerd calls [`service`], which asks [`snapshotter`] for overlay mounts; a layer that can be
//! read lazily is opened by [`layer`] and served by [`fs`] through a FUSE mount of its own, whose
//! bytes come from [`blob`] (the verified local cache) and, below it, from [`registry`].
//!
//! Modules have ranks, lowest first in the list below; a module names only modules of lower rank.
//! `integration/tidy.rs` holds the tree to that.

// Printing this way panics once nobody reads any more; `cli::out` does not.
#![cfg_attr(not(test), deny(clippy::print_stdout))]

pub mod oci;

pub mod containerd;
pub mod keeper;
pub mod overlay;
pub mod registry;
pub mod stargz;
pub mod store;

pub mod blob;

pub mod fs;

pub mod layer;

pub mod snapshotter;

pub mod report;

pub mod convert;
pub mod cri;
pub mod metrics;
pub mod pull;
pub mod service;

pub mod config;
pub mod telemetry;

pub mod daemon;

pub mod setup;

pub mod cli;
