//! Tests that need a real node: root, /dev/fuse, containerd, a registry.

mod registry_docker;
mod fs_layer;
mod fs_mount;
mod fs_overlay;
