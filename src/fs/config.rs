//! The `[fuse]` section of the configuration.

use std::num::NonZeroUsize;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::fs::{Populate, ServeOptions};

/// The kernel's read-ahead while a layer is not complete, in bytes. A fault in a mapped file asks for that much around
/// it, and each chunk that it touches is fetched: the start of Python with numpy, nothing cached, needs
/// 16.8 MB with 32 KiB and 19.5 to 23 MB with the kernel's own 128 KiB, in the same time. `read(2)` asks for as much as it was given room for.
const COLD_READ_AHEAD: u32 = 32 << 10;

/// How mounts are served. Durations are written as people write them: `"60s"`, `"1m 30s"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long a read waits for content that has to be fetched before the application gets `EIO`.
    #[serde(with = "humantime_serde")]
    pub read_deadline: Duration,
    /// FUSE threads of each mount, at least 1. One answers all cached reads of a mount; a second
    /// helps where several readers of one layer run on several cores, and costs memory per mount.
    pub threads: NonZeroUsize,
    /// Whether the kernel may read large cached files by itself (passthrough), on layers whose
    /// files are large. A second overlay inside of a container then finds no room on such layers:
    /// the kernel stacks file systems two deep.
    pub passthrough: bool,
    /// Whether small cached files that follow those a reader takes in order are put into the page cache before
    /// he asks for them.
    pub populate: bool,
    /// For diagnosis only: how long the kernel remembers names and attributes. `0s` is for ever,
    /// which is right, as a layer never changes.
    #[serde(with = "humantime_serde")]
    pub entry_timeout: Duration,
    /// For diagnosis only: `false` does without `FUSE_NOTIFY_RESEND`, as kernels before 6.9 do.
    pub resend: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            read_deadline: Duration::from_secs(60),
            threads: NonZeroUsize::MIN,
            passthrough: true,
            populate: true,
            entry_timeout: Duration::ZERO,
            resend: true,
        }
    }
}

impl Config {
    /// The options of each mount, whose fetching reads run on `runtime`.
    #[must_use]
    pub fn options(&self, runtime: Handle) -> ServeOptions {
        ServeOptions {
            threads: self.threads,
            entry_timeout: Some(self.entry_timeout).filter(|timeout| !timeout.is_zero()),
            read_deadline: self.read_deadline,
            passthrough: self.passthrough,
            populate: self.populate.then(Populate::default),
            // Whoever mounts a layer knows when it is complete, and lets the kernel read further then.
            read_ahead: Some(COLD_READ_AHEAD),
            resend: self.resend,
            ..ServeOptions::new(runtime)
        }
    }
}
