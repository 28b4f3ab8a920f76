//! Tests that need a real node: root, /dev/fuse, containerd, a registry.
//!
//! Each file is one behaviour; [`bed`] brings up what they need. A test that cannot run here prints
//! `skipped: REASON`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, also in its helpers"
)]

mod bed;
mod bench;
mod cache;
mod cli;
mod cli_mount;
mod credentials;
mod cri;
mod deploy_binary;
mod deploy_deb;
mod deploy_host;
mod deploy_pod;
mod dns;
mod docs;
#[path = "../../src/registry/testing.rs"]
mod fake_registry;
mod fault_h2;
mod faulty;
mod first_start;
mod fs_layer;
mod fs_mount;
mod fs_overlay;
mod fs_passthrough;
mod fs_passthrough_speed;
mod fs_scale;
mod health;
mod layer_formats;
mod lazy_run;
mod many_files;
mod many_layers;
mod mixed;
mod operator;
mod operator_config;
mod operator_metrics;
mod operator_setup;
#[path = "../../src/registry/testing_pki.rs"]
mod pki;
mod populate;
mod profile;
mod pull;
mod pull_complete;
mod random_tree;
mod registry_bursts;
mod registry_docker;
mod registry_fallback;
mod registry_faults;
mod registry_hosts;
mod registry_names;
mod registry_proxy;
mod registry_readers;
mod round_trips;
mod same_tree;
mod seed_estale;
mod serve;
mod snapshots_client;
mod snapshots_daemon;
mod snapshots_damage;
mod snapshots_kill;
mod snapshots_load;
mod snapshots_remote;
mod survive;
mod survive_calls;
mod survive_memory;
mod survive_passthrough;
mod survive_removed;
mod survive_systemd;
mod survivors;
mod takeover_fs;
mod takeover_gaps;
mod takeover_kills;
mod takeover_rig;
mod takeover_server;
mod takeover_systemd;
mod tars;
mod trees;
