//! Overlay options and mounting, behind a trait with a recording fake.
//!
//! The only module that names mount system calls. It mounts layers (FUSE, on a descriptor that the
//! caller opened) and takes mounts down; the overlay itself is mounted by containerd, from options
//! that are put together here.

pub mod options;
