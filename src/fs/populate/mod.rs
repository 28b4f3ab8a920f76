//! Small files that are read one after another: the next ones are put into the kernel's page cache
//! before anybody asks for them.
//!
//! The kernel reads ahead within a file, never from one file into the next, so whoever goes through a
//! tree of small files pays a round trip to this process for each: 45 us on a machine of two virtual
//! processors, of which 32 are the two processors waking each other. Where a reader takes the files of a
//! layer in their order ([`Streaks`]), what follows and is held here is stored by `FUSE_NOTIFY_STORE`
//! (`fs/fuse/dev.c`) while the reader is still busy with what came before.
//!
//! Measured, 45,000 files of 50 to 3,000 bytes, all cached, kernel cold: 2.76 s by READ, 0.75 s so, 0.69 s once
//! the kernel has them all. By polling ([`super::poll`]), which
//! helps where this does not: 1.83 s.
//!
//! 1. here: what FUSE threads ask for goes to one thread, which reads it from the cache;
//! 2. [`streaks`]: decides what is worth it. Pure;
//! 3. [`told`]: which files the kernel knows and can be given;
//! 4. [`message`]: the kernel's message;
//! 5. [`filler`]: the process that writes these to the device, and why it is one.
//!
//! Promises: nothing is fetched for it; no FUSE thread waits for it; where anything in it fails or is slow,
//! reads are answered as without it. What readers passed over is noted as read; what they did not reach is not.
//!
//! The kernel charges the pages to this process's memory cgroup, as the pages of the cache's own files. They
//! are clean, so they go before anything else does.
//!
//! Locking: a mutex per mount around its streaks, one around the way to the thread; both for moments.

mod filler;
mod message;
mod streaks;
mod told;

use std::ops::Range;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::{debug, warn};

use self::filler::Filler;
pub use self::filler::run_if_filler;
use self::message::Batch;
use self::streaks::{Step, Streaks};
use self::told::Told;
use crate::fs::counters::Counters;
use crate::fs::{Ino, Kind, LayerFs};

/// Largest file that is stored ahead of its reader, in bytes: beyond, the round trips weigh little, and
/// the kernel reads ahead by itself.
const SMALL: u64 = 64 << 10;
/// Most bytes stored ahead in one step.
const STEP_BYTES: usize = 1 << 20;
/// Steps that may wait; more are dropped, and their files read one by one.
const QUEUE: usize = 4;
/// After this long without a step the other process is let go.
const IDLE: Duration = Duration::from_secs(60);
/// How soon after one process another may be started.
const AGAIN: Duration = Duration::from_secs(10);
/// Stack of the thread.
const STACK: usize = 256 << 10;

/// The thread and the process that all mounts share; clones are the same ones. Neither runs before a reader
/// goes through files in order.
#[derive(Debug, Clone, Default)]
pub struct Populate(Arc<Mutex<Way>>);

/// The way to the thread.
#[derive(Debug, Default)]
enum Way {
    #[default]
    NotYet,
    Open(SyncSender<Job>),
    /// There is none, and was said so.
    Closed,
}

/// What one mount gives and wants.
#[derive(Clone)]
pub(super) struct Populated {
    populate: Populate,
    fd: Arc<OwnedFd>,
    fs: Arc<LayerFs>,
    counters: Arc<Counters>,
    streaks: Arc<Mutex<Streaks>>,
    told: Arc<Told>,
}

struct Job {
    mount: Populated,
    step: Step,
}

impl Populate {
    /// For one mount.
    pub(super) fn mount(
        &self,
        fd: Arc<OwnedFd>,
        fs: Arc<LayerFs>,
        counters: Arc<Counters>,
    ) -> Populated {
        let nodes = fs.index().summary().inodes;
        Populated {
            populate: self.clone(),
            fd,
            fs,
            counters,
            streaks: Arc::default(),
            told: Arc::new(Told::new(nodes)),
        }
    }

    /// Hands a job to the thread unless it has enough to do.
    fn take(&self, job: Job) {
        let mut way = self.0.lock();
        if matches!(*way, Way::NotYet) {
            *way = start();
        }
        if let Way::Open(jobs) = &*way {
            let _ = jobs.try_send(job);
        }
    }
}

fn start() -> Way {
    let (jobs, taken) = sync_channel(QUEUE);
    let thread = thread::Builder::new()
        .name("populate".to_owned())
        .stack_size(STACK);
    match thread.spawn(move || work(&taken)) {
        Ok(_) => Way::Open(jobs),
        Err(error) => {
            warn!(%error, "small files are not stored ahead of their readers: no thread could be started");
            Way::Closed
        }
    }
}

impl Populated {
    /// Says that `len` bytes from `offset` of a file were read from what is held here.
    pub(super) fn read(&self, ino: Ino, offset: u64, len: usize) {
        // Large files and pieces of files say nothing of the order of small ones.
        if offset != 0 || len as u64 > SMALL {
            return;
        }
        let step = self.streaks.lock().read(ino.0);
        if let Some(step) = step {
            let mount = self.clone();
            self.populate.take(Job { mount, step });
        }
    }

    /// Says that the kernel was told of a node when it listed the folder.
    pub(super) fn tell(&self, ino: Ino) {
        self.told.add(ino.0);
    }

    /// Says that the kernel forgot it.
    pub(super) fn forget(&self, ino: Ino) {
        self.told.remove(ino.0);
    }

    /// The size of a small file and its chunks; `None` for all else.
    fn small(&self, ino: u64) -> Option<(u32, Range<u32>)> {
        match self.fs.getattr(Ino(ino)).ok()?.kind {
            Kind::File { size, chunks } if (1..=SMALL).contains(&size) => {
                Some((u32::try_from(size).ok()?, chunks))
            }
            _ => None,
        }
    }
}

/// The thread: until nobody can hand it jobs any more.
fn work(jobs: &Receiver<Job>) {
    let (mut filler, mut started) = (None, None::<Instant>);
    loop {
        let job = match jobs.recv_timeout(IDLE) {
            Ok(job) => job,
            Err(RecvTimeoutError::Timeout) => {
                filler = None;
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        for ino in job.step.passed.clone() {
            if let Some((_, chunks)) = job.mount.small(ino) {
                job.mount.fs.was_read(chunks);
            }
        }
        if filler.is_none() && started.is_none_or(|started| started.elapsed() > AGAIN) {
            started = Some(Instant::now());
            filler = match Filler::start() {
                Ok(filler) => Some(filler),
                Err(error) => {
                    if let Some(error) = error {
                        warn!(%error, "small files are not stored ahead of their readers for now");
                    }
                    None
                }
            };
        }
        let Some(to) = &filler else { continue };
        if let Err(error) = job.store(to) {
            debug!(%error, "the process that stores files ahead of their readers is gone");
            filler = None;
        }
    }
}

impl Job {
    /// Reads what is next from the cache and sends it on, up to the first file that is not here or that the
    /// kernel does not know.
    fn store(&self, filler: &Filler) -> std::io::Result<()> {
        let mount = &self.mount;
        let mut batch = Batch::default();
        let (mut bytes, mut files) = (0, 0);
        let (mut gap, mut reached) = (None, self.step.next.end);
        for ino in self.step.next.clone() {
            let Some((size, _)) = mount.small(ino) else {
                continue;
            };
            // Whoever comes to the one that is left out is a sign that the rest is wanted too.
            if gap.is_none() && ino >= self.step.gap {
                gap = Some(ino);
                continue;
            }
            if bytes >= STEP_BYTES || !mount.told.has(ino) {
                reached = ino;
                break;
            }
            let Ok(Some(content)) = mount.fs.peek(Ino(ino), size) else {
                reached = ino;
                break;
            };
            batch.add(ino, &content);
            bytes += content.len();
            files += 1;
            if batch.is_full() {
                filler.send(mount.fd.as_fd(), &mut batch)?;
            }
        }
        mount.counters.populate(files);
        let gap = gap.filter(|gap| *gap < reached).unwrap_or(reached);
        let mut streaks = mount.streaks.lock();
        streaks.stored(self.step.next.end, gap, reached, files);
        drop(streaks);
        filler.send(mount.fd.as_fd(), &mut batch)
    }
}
