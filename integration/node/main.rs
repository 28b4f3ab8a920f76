//! Tests that need a real node: root, /dev/fuse, containerd, a registry.

mod takeover_fs;
mod takeover_kills;
mod takeover_rig;
mod takeover_server;
mod takeover_systemd;
