//! Tests that need a real node: root, /dev/fuse, containerd, a registry.

mod snapshots_client;
mod snapshots_damage;
mod snapshots_daemon;
mod snapshots_kill;
mod snapshots_load;
mod snapshots_remote;
