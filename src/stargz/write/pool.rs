//! Work on all cores, results in order.
//!
//! One thread makes jobs, `threads` workers compress and hash them, one thread consumes the results
//! in the order the jobs were made. All queues are bounded, so memory follows the number of
//! threads; what is written depends on the jobs alone, never on the threads.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use flate2::Crc;
use parking_lot::Mutex;

use super::error::Error;
use super::gzip::Packer;
use crate::oci::Digest;

/// A part of the tar that becomes one gzip member, with the lines of the TOC that belong to it.
#[derive(Default)]
pub(super) struct Member {
    pub(super) raw: Vec<u8>,
    /// The lines' texts, one after the other.
    pub(super) json: Vec<u8>,
    pub(super) lines: Vec<Line>,
}

/// One object of the TOC.
pub(super) struct Line {
    /// Where its text ends in `Member::json`; it begins where the one before ends.
    pub(super) json_end: usize,
    /// The data it describes.
    pub(super) data: Option<Data>,
}

/// A piece of a file in a member.
#[derive(Clone, Copy)]
pub(super) struct Data {
    /// Where it begins in `Member::raw`.
    pub(super) inner: usize,
    /// Its length.
    pub(super) len: usize,
    /// Its offset in the file.
    pub(super) at: u64,
    /// Length of the whole file.
    pub(super) of: u64,
}

/// What a worker does.
pub(super) enum Job {
    /// Compress a member and hash the data in it.
    Member(Member),
    /// Compress a block of the TOC's member.
    Block { raw: Vec<u8>, last: bool },
}

/// What came of a job.
pub(super) enum Done {
    Member {
        member: Member,
        packed: Vec<u8>,
        /// One for each line that has data.
        digests: Vec<Digest>,
    },
    Block {
        raw: Vec<u8>,
        packed: Vec<u8>,
        crc: Crc,
    },
}

type Answer = io::Result<Done>;

/// Where jobs are handed in.
pub(super) struct Pool {
    jobs: SyncSender<(Job, SyncSender<Answer>)>,
    order: SyncSender<Receiver<Answer>>,
}

impl Pool {
    /// Hands in the next job; waits while too much is under way.
    pub(super) fn push(&self, job: Job) -> Result<(), Error> {
        // The consumer ended early: its own error is what the caller of `run` gets to see.
        let stopped = || Error::Output(io::ErrorKind::BrokenPipe.into());
        let (answer, receiver) = sync_channel(1);
        self.order.send(receiver).map_err(|_| stopped())?;
        self.jobs.send((job, answer)).map_err(|_| stopped())
    }
}

/// Runs `produce` on this thread and `consume` on another, with workers between them.
pub(super) fn run<T>(
    threads: usize,
    level: u32,
    produce: &mut dyn FnMut(&Pool) -> Result<T, Error>,
    consume: &mut (dyn FnMut(Done) -> Result<(), Error> + Send),
) -> Result<T, Error> {
    let threads = threads.max(1);
    let (jobs, queue) = sync_channel::<(Job, SyncSender<Answer>)>(threads);
    let (order, results) = sync_channel::<Receiver<Answer>>(3 * threads);
    let queue = Mutex::new(queue);
    let (produced, consumed) = std::thread::scope(|scope| {
        let queue = &queue;
        for _ in 0..threads {
            scope.spawn(move || work(queue, &mut Packer::new(level)));
        }
        let consumer = scope.spawn(move || {
            results.iter().try_for_each(|result| match result.recv() {
                Ok(done) => consume(done.map_err(Error::Output)?),
                Err(_) => Err(Error::Output(io::ErrorKind::BrokenPipe.into())),
            })
        });
        let pool = Pool { jobs, order };
        let produced = produce(&pool);
        drop(pool);
        let dead = |_| Err(Error::Output(io::Error::other("the writing thread died")));
        (produced, consumer.join().unwrap_or_else(dead))
    });
    consumed.and(produced)
}

fn work(queue: &Mutex<Receiver<(Job, SyncSender<Answer>)>>, packer: &mut Packer) {
    loop {
        // The lock is held while waiting: the next idle worker waits for it instead.
        let next = queue.lock().recv();
        let Ok((job, answer)) = next else { return };
        // A consumer that has given up does not want the answer.
        let _ = answer.send(perform(job, packer));
    }
}

fn perform(job: Job, packer: &mut Packer) -> Answer {
    match job {
        Job::Member(member) => {
            let packed = packer.member(&member.raw)?;
            let data = member.lines.iter().filter_map(|line| line.data);
            let bytes = data.map(|d| member.raw.get(d.inner..d.inner + d.len));
            let digests = bytes.map(|b| Digest::of(b.unwrap_or_default())).collect();
            Ok(Done::Member {
                member,
                packed,
                digests,
            })
        }
        Job::Block { raw, last } => {
            let (packed, crc) = packer.block(&raw, last)?;
            Ok(Done::Block { raw, packed, crc })
        }
    }
}
