//! The keeper itself: one process, one thread, one loop. To be read in this order:
//!
//! 1. here: the loop waits for something to happen, and does what is decided;
//! 2. [`course`]: decides when a server is started, ended, killed, taken back. Pure;
//! 3. [`shelf`]: the kept descriptors;
//! 4. [`child`]: starts the server with them;
//! 5. [`hear`]: what the server says, in systemd's protocol;
//! 6. [`talk`]: what fronts and commands ask;
//! 7. [`begin`]: how a process becomes the keeper; [`spec`]: what it was told to run.
//!
//! It keeps, starts, and passes on. It reads no request of a file system, no configuration, no network, and
//! never waits for anybody: every answer is sent or dropped.
//!
//! Layout: in the root folder the sockets `keeper.sock` (requests, `control.rs`) and `notify.sock`
//! (systemd's protocol), both 0600, `keeper.lock`, and `server.pid`.
//!
//! Memory: what is held (a name and a number per mount), the server's description, and one message at
//! a time. Nothing grows with traffic; the keeper never waits on a kept descriptor, since a wait on
//! `/dev/fuse` is woken by each request.
//!
//! Crash behaviour: killing the keeper kills nothing else. The server sees its connection close,
//! starts another keeper, introduces itself (`A`) and stores its descriptors again.
//!
//! Order that matters: a dead server's last messages are read before its death is acted on, so a
//! descriptor that it stored with its last breath is kept; its successor is started only after the
//! kernel reports the whole process gone, so that two never answer for one mount.

mod begin;
mod child;
mod course;
mod hear;
mod shelf;
mod spec;
mod talk;

pub use begin::{is_started_as, run_if_keeper};

use std::io::{self, Write};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;

use self::begin::{Sockets, point_output};
use self::child::{Job, Origin, Server};
use self::course::{Course, Deed, End};
use self::shelf::Shelf;
use self::spec::Spec;
use self::talk::{Connection, Role};
use super::control::Reply;
use super::protocol::FdName;
use super::signals::{self, Wish};
use super::{Folder, LOCK, memory};

/// How long a ready server may be silent, unless it says otherwise (`WATCHDOG_USEC=`).
const SILENCE: Duration = Duration::from_secs(30);

/// How often an idle keeper looks whether its layers were unmounted, and how long one that was never
/// asked for anything stays.
const SWEEP: Duration = Duration::from_secs(5);

/// How long nothing must happen before the code is given back that the last thing needed.
const QUIET: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct Keeper {
    folder: Folder,
    origin: Origin,
    sockets: Sockets,
    shelf: Shelf,
    course: Course,
    silence: Duration,
    server: Option<Server>,
    spec: Option<Spec>,
    /// The program before the upgrade that is under way.
    old: Option<Spec>,
    connections: Vec<Connection>,
    starts: u64,
    error: String,
    status: String,
    /// Why the server was killed that is about to be buried.
    killed: Option<&'static str>,
    sweep: Instant,
    used: bool,
    /// Whether the server is to read its configuration again once it is ready.
    reread: bool,
    /// Whether code was run since it was last given back.
    stirred: bool,
}

/// What has something to say.
#[derive(Debug, Clone, Copy)]
enum Source {
    Signals,
    Notify,
    Control,
    Connection(usize),
    Server,
}

impl Keeper {
    fn new(folder: Folder, origin: Origin, sockets: Sockets) -> Self {
        Self {
            folder,
            origin,
            sockets,
            shelf: Shelf::default(),
            course: Course::new(SILENCE),
            silence: SILENCE,
            server: None,
            spec: None,
            old: None,
            connections: Vec::new(),
            starts: 0,
            error: String::new(),
            status: String::new(),
            killed: None,
            sweep: Instant::now() + SWEEP,
            used: false,
            reread: false,
            stirred: true,
        }
    }

    /// Runs until nothing is held and no server is wanted.
    fn run(&mut self) -> io::Result<()> {
        loop {
            while let Some(deed) = self.course.due(Instant::now()) {
                self.act(deed);
            }
            if self.is_idle() && self.has_nothing() {
                return Ok(());
            }
            let awake = self.wait()?;
            self.tidy(!awake.is_empty());
            for source in awake {
                match source {
                    Source::Signals => self.on_signal(),
                    Source::Notify => self.hear(),
                    Source::Control => self.accept(),
                    Source::Connection(at) => self.on_request(at),
                    Source::Server => self.bury(),
                }
            }
            self.connections.retain(|connection| connection.open);
        }
    }

    /// Gives code back once nothing happens any more: what a burst needed is not held for ever, and a burst
    /// does not read it again at each step.
    fn tidy(&mut self, stirred: bool) {
        if self.stirred && !stirred {
            memory::forget_code();
        }
        self.stirred = stirred;
    }

    fn is_idle(&self) -> bool {
        !self.course.is_wanted() && !self.course.is_up()
    }

    /// Of an idle keeper: whether it may leave.
    fn has_nothing(&mut self) -> bool {
        if self.sweep <= Instant::now() {
            self.shelf.sweep();
            self.sweep = Instant::now() + SWEEP;
            self.used = true;
        }
        self.used && self.shelf.layers() == 0
    }

    /// Sleeps until something is said or due.
    fn wait(&self) -> io::Result<Vec<Source>> {
        let sockets = &self.sockets;
        let mut sources = vec![
            (Source::Signals, &sockets.signals),
            (Source::Notify, &sockets.notify),
            (Source::Control, &sockets.control),
        ];
        let connections = self.connections.iter().enumerate();
        sources.extend(connections.map(|(at, own)| (Source::Connection(at), &own.fd)));
        sources.extend(self.server.iter().map(|own| (Source::Server, &own.pidfd)));
        let mut until = self.course.deadline();
        if self.is_idle() {
            until = Some(self.sweep);
        }
        if self.stirred {
            let quiet = Instant::now() + QUIET;
            until = Some(until.map_or(quiet, |until| until.min(quiet)));
        }
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let polled = sources.iter().map(|(_, fd)| PollFd::new(fd, PollFlags::IN));
        let mut polled: Vec<_> = polled.collect();
        match rustix::event::poll(&mut polled, left.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(errno) => return Err(errno.into()),
        }
        let awake = sources
            .iter()
            .zip(&polled)
            .filter(|(_, polled)| !polled.revents().is_empty());
        Ok(awake.map(|((source, _), _)| *source).collect())
    }

    fn act(&mut self, deed: Deed) {
        match deed {
            Deed::Spawn => self.spawn(),
            Deed::Terminate => self.signal(Signal::TERM),
            Deed::Kill(why) => {
                note(&format!("the server is killed: {why}"));
                self.killed = Some(why);
                self.signal(Signal::KILL);
            }
            Deed::Commit => {
                self.old = None;
                self.tell(
                    Role::Upgrader,
                    &Reply::Ready("the new program serves".to_owned()),
                );
            }
            Deed::RollBack => {
                self.fail(format!(
                    "the new program did not come up, back to the old: {}",
                    self.error
                ));
                self.spec = self.old.take().or(self.spec.take());
                self.tell(Role::Upgrader, &Reply::Failed(self.error.clone()));
            }
            Deed::Ended(code) => self.over(code),
        }
    }

    fn spawn(&mut self) {
        self.starts += 1;
        self.status.clear();
        // This one reads it anyway.
        self.reread = false;
        self.course.spawned(Instant::now());
        match self.try_spawn() {
            Ok(server) => {
                self.note_server(server);
                memory::forget_code();
            }
            Err(error) => {
                let path = self.spec.as_ref().map(Spec::path);
                let path = path.unwrap_or("no program".as_ref()).display();
                self.fail(format!("cannot run {path}: {error}"));
                self.on_end(End::Code(127));
                self.note_next_start();
            }
        }
    }

    /// Starts the server with all that is held, and with the lock: nobody else starts one, not even
    /// after this keeper's death.
    fn try_spawn(&mut self) -> io::Result<Server> {
        let spec = self.spec.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let lock = self.folder.lock_server()?;
        let lock = lock.ok_or_else(|| io::Error::other("another server lives"))?;
        let name = FdName::new(LOCK).map_err(io::Error::other)?;
        self.shelf
            .put(name.clone(), lock)
            .map_err(io::Error::other)?;
        let job = Job {
            spec,
            folder: &self.folder,
            fds: self.shelf.sorted(),
            silence: self.silence,
            origin: &self.origin,
        };
        let server = Server::spawn(&job);
        self.shelf.remove(&name);
        server
    }

    fn note_server(&mut self, server: Server) {
        if let Err(error) = self.folder.write_pid(server.pid) {
            let path = self.folder.server_pid();
            self.fail(format!("cannot write {}: {error}", path.display()));
        }
        self.server = Some(server);
        self.used = true;
    }

    fn signal(&mut self, signal: Signal) {
        if let Some(server) = &self.server {
            // One that is dead already needs no signal.
            let _ = rustix::process::pidfd_send_signal(&server.pidfd, signal);
        }
    }

    /// Passes the wish on for the configuration to be read again. One that is not ready may not know the signal
    /// yet, and would die of it.
    fn pass_reread(&mut self) {
        if self.reread && self.course.is_ready() {
            self.reread = false;
            self.signal(Signal::HUP);
        }
    }

    /// The server is dead.
    fn bury(&mut self) {
        self.hear();
        let Some(server) = self.server.take() else {
            return;
        };
        let end = server.end();
        let how = match (end, self.killed.take()) {
            (_, Some(why)) => format!("because its keeper killed it: {why}"),
            (End::Code(code), None) if !self.status.is_empty() => {
                format!("with exit code {code}: {}", self.status)
            }
            (End::Code(code), None) => format!("with exit code {code}"),
            (End::Signal(signal), None) => format!("by signal {signal}"),
            (End::Unknown, None) => "in an unknown way".to_owned(),
        };
        let pid = server.pid.as_raw_nonzero();
        let text = format!("the server, process {pid}, ended {how}");
        if self.course.is_wanted() {
            self.error.clone_from(&text);
        }
        self.on_end(end);
        // One that is not started again has said itself what there was to say.
        if self.course.is_wanted() {
            note(&text);
            self.note_next_start();
        }
    }

    fn on_end(&mut self, end: End) {
        let now = Instant::now();
        let held = self.shelf.layers() > 0;
        let deed = self.course.ended(end, held, now);
        deed.into_iter().for_each(|deed| self.act(deed));
    }

    fn note_next_start(&self) {
        let next = self.course.deadline().filter(|_| !self.course.is_up());
        let pause = next.map(|next| next.saturating_duration_since(Instant::now()));
        if let Some(pause) = pause.filter(|pause| !pause.is_zero()) {
            note(&format!("the server is started again in {pause:.0?}"));
        }
    }

    /// No server is wanted any more.
    fn over(&mut self, code: i32) {
        self.spec = self.old.take().or(self.spec.take());
        let _ = std::fs::remove_file(self.folder.server_pid());
        let left = Reply::Failed("the server was stopped".to_owned());
        self.tell(Role::Upgrader, &left);
        self.tell(Role::Front, &Reply::Ended(code));
        self.tell(Role::Stopper, &Reply::Ended(code));
        self.shelf.sweep();
        let layers = self.shelf.layers();
        if layers > 0 {
            note(&format!(
                "{layers} layers stay mounted and are kept until the server is back"
            ));
            // They wait for the connection to close: at once, or with this process.
            self.hang_up();
        }
        // Nobody should wait for the end of an output that only the keeper still holds.
        point_output(None);
        self.sweep = Instant::now();
    }

    fn on_signal(&mut self) {
        match signals::next(&self.sockets.signals) {
            Some(Wish::End) => {
                let deed = self.course.stop(Instant::now());
                deed.into_iter().for_each(|deed| self.act(deed));
            }
            Some(Wish::Reread) => {
                self.reread = true;
                self.pass_reread();
            }
            None => {}
        }
    }

    fn fail(&mut self, text: String) {
        note(&text);
        self.error = text;
    }
}

/// A line for people. An output that is gone is no reason to end.
fn note(text: &str) {
    let _ = io::stderr().write_all(format!("keeper: {text}\n").as_bytes());
}
