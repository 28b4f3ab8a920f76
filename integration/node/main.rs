//! Tests that need a real node: root, /dev/fuse, containerd, a registry.
//!
//! Each file is one behaviour; [`bed`] brings up what they need. A test that cannot run here prints
//! `skipped: REASON`.

mod cache;
mod registry_docker;
mod fs_layer;
mod fs_mount;
mod fs_overlay;
mod fs_scale;
