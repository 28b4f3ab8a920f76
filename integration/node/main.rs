//! Tests that need a real node: root, /dev/fuse, containerd, a registry.

mod snapshots_daemon;
