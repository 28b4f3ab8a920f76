//! Serving one mount: threads, what the kernel may remember, and when it ends.
//!
//! fuser runs one thread for each that is asked for and one that waits for them. Each of the
//! former has a receive buffer of 16 MiB, of which a read-only file system touches the first page
//! (requests are short): the rest stays address space, for which `memory.rs` provides.
//!
//! One thread a mount is the default: it answers only from memory and cache, and 500 mounts must
//! stay cheap. A second one helps where several readers of one layer run on several cores.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fuser::{Config, Session, SessionACL};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::fs::counters::{Counters, Counts, Turns};
use crate::fs::fuse::Adapter;
use crate::fs::index::Summary;
use crate::fs::kept::{self, Device};
use crate::fs::opens::Opens;
use crate::fs::poll::Poll;
use crate::fs::populate::Populate;
use crate::fs::tally::Tally;
use crate::fs::{LayerFs, adopt, memory};
use crate::overlay::DeviceId;

/// How long the kernel may remember what it was told of a layer, which never changes: beyond any
/// machine's uptime, and far from overflowing the kernel's jiffies.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);
/// Mean size of a layer's files, in bytes, from which on it pays to answer OPEN in order to pass
/// files through: an OPEN costs about 70 us, READ some 0.15 ns a byte more than the host's disk,
/// and each file is taken to be opened and read once.
const LARGE_MEAN: u64 = 512 << 10;
/// Stack of the thread that waits for fuser's.
const WAITER_STACK: usize = 256 << 10;

/// How a mount is served.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Where reads that have to fetch run.
    pub runtime: Handle,
    /// FUSE threads of this mount.
    pub threads: NonZeroUsize,
    /// For diagnosis only: how long the kernel remembers names and attributes; `None` is for ever.
    pub entry_timeout: Option<Duration>,
    /// When a read that has to fetch is answered `EIO`.
    pub read_deadline: Duration,
    /// Whether files are opened by a request.
    pub open: OpenMode,
    /// What is said of extended attributes where there are none.
    pub no_xattrs: NoXattrs,
    /// Whether the kernel may read complete large files by itself, on mounts where that pays.
    pub passthrough: bool,
    /// Whether the kernel is asked to repeat what a predecessor left unanswered. `false` behaves as on a
    /// kernel before 6.9, which cannot.
    pub resend: bool,
    /// The kernel's read-ahead on this mount in bytes, and with it the size of requests; `None`
    /// leaves the kernel's 128 KiB.
    pub read_ahead: Option<u32>,
    /// Stores small files in the page cache ahead of their readers, for all mounts; `None` leaves each to be asked
    /// for.
    pub populate: Option<Populate>,
    /// What all mounts together have done.
    pub tally: Tally,
}

/// What is said of extended attributes on a layer that has none at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoXattrs {
    /// That such a file system has no attributes (`ENOSYS`, once; the kernel says `EOPNOTSUPP` from then on).
    /// overlayfs asks for one whenever a file is looked up, so this halves the requests of a container that goes
    /// through many small files.
    Unsupported,
    /// That this file has none (`ENODATA`), each time. Who compares files by their attributes, as containerd's
    /// diff does, takes the other answer for a failure.
    Absent,
}

/// Whether OPEN is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// No: the first gets `ENOSYS`, after which the kernel opens files by itself.
    Skip,
    /// Yes: a round trip for each, needed on kernels that deadlock without, and for passthrough.
    Answer,
}

/// Why a mount cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The kernel's first message did not come or could not be answered, or what is kept of it from
    /// the server before is not usable.
    #[error("the fuse connection {device} could not be set up: {source}")]
    Handshake {
        /// The mount.
        device: DeviceId,
        /// What went wrong.
        source: adopt::Error,
    },
    /// No thread could be started.
    #[error("no thread could be started for the fuse connection {device}: {source}")]
    Thread {
        /// The mount.
        device: DeviceId,
        /// What went wrong.
        source: io::Error,
    },
}

/// A mount that is being served. Dropping it changes nothing: the mount is served until it is
/// unmounted.
#[derive(Debug)]
pub struct Served {
    device: DeviceId,
    fd: Arc<OwnedFd>,
    threads: usize,
    resend: bool,
    counters: Arc<Counters>,
    ended: watch::Receiver<bool>,
    thread: JoinHandle<io::Result<()>>,
}

impl ServeOptions {
    /// The defaults: one thread, names remembered for ever, reads given up after a minute, OPEN
    /// skipped where this kernel is safe without, requests of 1 MiB, nothing stored ahead.
    #[must_use]
    pub fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            threads: NonZeroUsize::MIN,
            entry_timeout: None,
            read_deadline: Duration::from_secs(60),
            open: OpenMode::of_this_kernel(),
            no_xattrs: NoXattrs::Unsupported,
            passthrough: true,
            resend: true,
            read_ahead: Some(1 << 20),
            populate: None,
            tally: Tally::default(),
        }
    }

    /// Whether complete files of such a layer are passed through to the kernel. That takes a
    /// request for each open, so it pays where files are large ([`LARGE_MEAN`]), or where OPEN has
    /// to be answered anyway.
    #[must_use]
    pub fn passes_through(&self, layer: &Summary) -> bool {
        let mean = layer.content.checked_div(layer.files.into()).unwrap_or(0);
        self.passthrough && (self.open == OpenMode::Answer || mean >= LARGE_MEAN)
    }
}

impl OpenMode {
    /// What is safe on the running kernel.
    #[must_use]
    pub fn of_this_kernel() -> Self {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
        Self::of_kernel(release.as_deref().unwrap_or_default())
    }

    /// What is safe on a kernel of this release. From 6.9 on a kernel can deadlock under memory
    /// pressure when files are read ahead that were opened without a request (CVE-2025-68821);
    /// fixed in 6.12.64, 6.18.3 and 6.19. Unknown releases get the answer that is always safe.
    #[must_use]
    pub fn of_kernel(release: &str) -> Self {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        let mut next = || numbers.next().and_then(|number| number.parse().ok());
        let (Some(major), Some(minor)) = (next(), next()) else {
            return Self::Answer;
        };
        let patch: u32 = next().unwrap_or(0);
        let fixed = match (major, minor) {
            (6, 9..=11 | 13..=17) => false,
            (6, 12) => patch >= 64,
            (6, 18) => patch >= 3,
            (0..=5 | 6.., _) => true,
        };
        if fixed { Self::Skip } else { Self::Answer }
    }
}

impl Served {
    /// The mount's device number.
    #[must_use]
    pub const fn device(&self) -> DeviceId {
        self.device
    }

    /// What happened so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counters.get()
    }

    /// How long ago the last read came that the kernel did not answer itself; `None` if none has.
    #[must_use]
    pub fn since_last_read(&self) -> Option<Duration> {
        self.counters.since_last_read()
    }

    /// How far its threads are.
    #[must_use]
    pub fn turns(&self) -> Turns {
        // A mount that is gone has no queue.
        let queued = adopt::readable(self.fd.as_fd(), Duration::ZERO).unwrap_or(false);
        self.counters.turns(queued)
    }

    /// Lets every thread stop once it has answered what it has read: for the end of the process. With RESEND
    /// the successor gets what is unanswered, so nothing is done.
    ///
    /// A thread that waits for a request would take one more at any moment. So each gets a `statfs` of
    /// `target`, where the mount is, and stops after it; one that comes too late stays in the queue, and goes
    /// with this process.
    pub fn part(&self, target: &Path) {
        if self.resend || self.is_over() {
            return;
        }
        self.counters.part();
        for _ in 0..self.threads {
            let target = target.to_owned();
            let ask = thread::Builder::new()
                .stack_size(WAITER_STACK)
                .spawn(move || drop(rustix::fs::statvfs(&target)));
            if let Err(error) = ask {
                warn!(device = %self.device, %error, "a fuse thread may be reading when this process ends");
            }
        }
    }

    /// After [`Self::part`]: threads that did not stop yet and reads that wait for the network. What lies in
    /// the kernel's queue is the successor's.
    #[must_use]
    pub fn unsettled(&self) -> u64 {
        if self.resend || self.is_over() {
            return 0;
        }
        let running = self.threads.saturating_sub(self.counters.parked());
        self.counters.fetching() + u64::try_from(running).unwrap_or(u64::MAX)
    }

    /// Whether it is over: the file system was unmounted and nobody uses it, or serving failed.
    #[must_use]
    pub fn is_over(&self) -> bool {
        *self.ended.borrow()
    }

    /// Waits until it is over.
    pub fn over(&self) -> impl Future<Output = ()> + use<> {
        let mut ended = self.ended.clone();
        async move {
            // An error means that the thread is gone, which is what is waited for.
            let _ = ended.wait_for(|ended| *ended).await;
        }
    }

    /// Waits until it is over, and says how it ended.
    ///
    /// # Errors
    /// Reading requests failed for another reason than an unmount.
    pub fn join(self) -> io::Result<()> {
        let panicked = |_| Err(io::Error::other("the fuse thread panicked"));
        self.thread.join().unwrap_or_else(panicked)
    }
}

/// Serves a mount, fresh or taken over, on threads of its own until it is unmounted. Returns when the
/// kernel's first message has been answered. Whoever served it before must be gone.
///
/// # Errors
/// [`ServeError`]; the descriptor stays the caller's.
pub fn serve(
    device: &Device,
    fs: Arc<LayerFs>,
    options: &ServeOptions,
) -> Result<Served, ServeError> {
    memory::settle();
    let layer = *fs.index().blob();
    let counters = options.tally.enter();
    let has_xattrs = fs.index().has_xattrs();
    let adapter = Adapter {
        pass_through: options.passes_through(&fs.index().summary()),
        opens: Opens::new(device, &fs),
        poll: (options.threads.get() == 1).then(|| Poll::new(Arc::clone(&device.fd))),
        populated: options.populate.as_ref().map(|populate| {
            populate.mount(
                Arc::clone(&device.fd),
                Arc::clone(&fs),
                Arc::clone(&counters),
            )
        }),
        fs,
        runtime: options.runtime.clone(),
        counters: Arc::clone(&counters),
        ttl: options.entry_timeout.unwrap_or(FOREVER),
        read_deadline: options.read_deadline,
        failed: Arc::default(),
        skip_open: options.open == OpenMode::Skip,
        skip_opendir: false,
        skip_xattrs: options.no_xattrs == NoXattrs::Unsupported && !has_xattrs,
    };
    let mut config = Config::default();
    config.n_threads = Some(options.threads.get());
    // A connection may have several threads on one descriptor, never a cloned one: a successor
    // could not take over what was read from a clone.
    config.clone_fd = false;
    let (session, resend) = attach(adapter, device, config, options.resend)?;
    let (device, fd) = (device.id, Arc::clone(&device.fd));
    if let Some(bytes) = options.read_ahead {
        // Only speed depends on it, and a container may see a read-only /sys.
        if let Err(error) = set_read_ahead(device, bytes) {
            warn!(%layer, %device, %error, "the mount's read-ahead could not be set");
        }
    }
    let (sender, ended) = watch::channel(false);
    let thread = thread::Builder::new()
        .name(format!("fuse-{}", device.minor))
        .stack_size(WAITER_STACK)
        .spawn(move || {
            let outcome = session.run();
            match &outcome {
                Ok(()) => info!(%layer, %device, "the mount is no longer served: unmounted"),
                Err(error) => warn!(%layer, %device, %error, "the mount is no longer served"),
            }
            let _ = sender.send(true);
            outcome
        })
        .map_err(|source| ServeError::Thread { device, source })?;
    Ok(Served {
        device,
        fd,
        threads: options.threads.get(),
        resend,
        counters,
        ended,
        thread,
    })
}

fn attach(
    adapter: Adapter,
    device: &Device,
    config: Config,
    resend: bool,
) -> Result<(Session<Adapter>, bool), ServeError> {
    let options = adopt::Options {
        acl: SessionACL::All,
        config,
        resend,
    };
    let (id, taken_over) = (device.id, device.is_taken_over());
    let attached = kept::attach(
        adapter,
        device.fd.as_fd(),
        options,
        &device.state,
        &device.name,
    )
    .map_err(|source| ServeError::Handshake { device: id, source })?;
    if taken_over && !attached.resend {
        let waiting = adopt::waiting(id.minor).unwrap_or_default();
        if waiting > 0 {
            let abort = format!("/sys/fs/fuse/connections/{}/abort", id.minor);
            warn!(device = %id, waiting, "this kernel (before 6.9) does not repeat the requests that the \
                last server left unanswered: what waits for them cannot even be killed. Write 1 to {abort} and \
                restart the containers of this layer");
        }
    }
    if attached.dropped != 0 {
        let flags = format!("{:#x}", attached.dropped);
        warn!(device = %id, flags, "the mount was set up by a server with more capabilities");
    }
    Ok((attached.session, attached.resend))
}

/// Sets the kernel's read-ahead on a mount, in bytes, and with it the size of requests: small while
/// every byte must be fetched, large when all of it is here. Files that are open keep what they
/// have. The kernel starts every FUSE mount at 128 KiB.
///
/// # Errors
/// The file in `/sys` could not be written.
pub fn set_read_ahead(device: DeviceId, bytes: u32) -> io::Result<()> {
    let file = PathBuf::from(format!("/sys/class/bdi/{device}/read_ahead_kb"));
    std::fs::write(file, (bytes / 1024).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_is_answered_on_kernels_that_deadlock_without() {
        use OpenMode::{Answer, Skip};
        for (release, mode) in [
            ("5.15.0-91-generic", Skip),
            ("6.1.0-18-amd64", Skip),
            ("6.8.0", Skip),
            ("6.9.1", Answer),
            ("6.12.63+deb13", Answer),
            ("6.12.64", Skip),
            ("6.17.9", Answer),
            ("6.18", Answer),
            ("6.18.2", Answer),
            ("6.18.44-fc", Skip),
            ("6.19.0-rc1", Skip),
            ("7.0.1", Skip),
            ("", Answer),
            ("plan9", Answer),
        ] {
            assert_eq!(OpenMode::of_kernel(release), mode, "{release}");
        }
    }
}
