//! containerd's state machine: prepare, view, commit, remove, mounts, usage, cleanup.
