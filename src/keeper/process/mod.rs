//! The keeper itself. Read in this order: [`course`](self) decides, `shelf` holds, `child` starts,
//! `talk` follows requests, and here one loop waits and passes on.
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

mod child;
mod course;
mod setup;
mod shelf;
mod talk;

pub use setup::run_if_keeper;
pub(super) use setup::{next_signal, signals};

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::RecvFlags;
use rustix::process::Signal;

use self::child::{Job, Origin, Server};
use self::course::{Course, Deed, End};
use self::setup::{Sockets, forget_code, point_output};
use self::shelf::Shelf;
use self::talk::{Connection, Role};
use super::control::{Reply, Spec};
use super::protocol::{self, Descriptors, FdName, Message, wire};
use super::{Folder, LOCK};

/// How long a ready server may be silent, unless it says otherwise (`WATCHDOG_USEC=`).
const SILENCE: Duration = Duration::from_secs(30);

/// How often an idle keeper looks whether its layers were unmounted, and how long one that was never
/// asked for anything stays.
const SWEEP: Duration = Duration::from_secs(5);

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
}

/// What a wait reported.
#[derive(Debug, Default)]
struct Woken {
    signals: bool,
    notify: bool,
    control: bool,
    server: bool,
    connections: Vec<usize>,
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
        }
    }

    /// Runs until nothing is held and no server is wanted.
    fn run(&mut self) -> io::Result<()> {
        loop {
            while let Some(deed) = self.course.due(Instant::now()) {
                self.act(deed);
            }
            if self.is_idle() {
                if self.sweep <= Instant::now() {
                    self.shelf.sweep();
                    self.sweep = Instant::now() + SWEEP;
                    self.used = true;
                }
                if self.used && self.shelf.layers() == 0 {
                    return Ok(());
                }
            }
            let woken = self.wait()?;
            if woken.notify || woken.server {
                self.hear();
            }
            if woken.server {
                self.bury();
            }
            if woken.signals {
                self.on_signal();
            }
            for at in woken.connections {
                self.on_request(at);
            }
            if woken.control {
                self.accept();
            }
            self.connections.retain(|connection| connection.open);
        }
    }

    fn is_idle(&self) -> bool {
        !self.course.is_wanted() && !self.course.is_up()
    }

    fn wait(&self) -> io::Result<Woken> {
        let mut until = self.course.deadline();
        if self.is_idle() {
            until = Some(self.sweep);
        }
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        let sockets = &self.sockets;
        let mut polled: Vec<_> = [&sockets.signals, &sockets.notify, &sockets.control]
            .into_iter()
            .chain(self.connections.iter().map(|connection| &connection.fd))
            .chain(self.server.iter().map(|server| &server.pidfd))
            .map(|fd| PollFd::new(fd, PollFlags::IN))
            .collect();
        match rustix::event::poll(&mut polled, left.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Woken::default()),
            Err(errno) => return Err(errno.into()),
        }
        let mut ready = polled.iter().map(|fd| !fd.revents().is_empty());
        let mut next = || ready.next().unwrap_or(false);
        let (signals, notify, control) = (next(), next(), next());
        let connections = (0..self.connections.len()).filter(|_| next()).collect();
        Ok(Woken {
            signals,
            notify,
            control,
            server: next(),
            connections,
        })
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
        self.course.spawned(Instant::now());
        match self.try_spawn() {
            Ok(server) => {
                self.note_server(server);
                let _ = forget_code();
            }
            Err(error) => {
                let name = self
                    .spec
                    .as_ref()
                    .map(|spec| spec.path().display().to_string());
                self.fail(format!("cannot run {}: {error}", name.unwrap_or_default()));
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
            self.fail(format!(
                "cannot write {}: {error}",
                self.folder.server_pid().display()
            ));
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

    /// Reads all that was said by systemd's protocol.
    fn hear(&mut self) {
        let mut buffer = [0; protocol::MESSAGE_MAX];
        loop {
            let socket = self.sockets.notify.as_fd();
            let Ok(mut got) = wire::receive(socket, &mut buffer, RecvFlags::DONTWAIT) else {
                return;
            };
            if got.truncated {
                self.fail(
                    "a message or a descriptor was cut off: raise the limit of open files".into(),
                );
            }
            let datagram = buffer.get(..got.length).unwrap_or_default();
            let heard = Message::parse(datagram);
            let done = heard.and_then(|message| self.on_message(message, &mut got.fds));
            if let Err(error) = done {
                self.fail(format!("a message was not followed: {error}"));
            }
        }
    }

    fn on_message(
        &mut self,
        message: Message,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<(), protocol::Error> {
        let now = Instant::now();
        if let Some(silence) = message.watchdog {
            self.silence = silence;
            self.course.set_silence(silence);
        }
        if message.alive {
            self.course.alive(now);
        }
        if message.stopping {
            self.course.stopping();
        }
        if let Some(status) = message.status {
            self.status = status;
        }
        match message.descriptors {
            Descriptors::None => {}
            Descriptors::Remove(name) => self.shelf.remove(&name),
            Descriptors::Store(name) => match fds.pop() {
                Some(fd) if fds.is_empty() => self.shelf.put(name, fd)?,
                _ => self.fail(format!("one descriptor was expected with the name {name}")),
            },
        }
        if message.ready && self.course.is_up() {
            let deed = self.course.ready(now);
            deed.into_iter().for_each(|deed| self.act(deed));
            if self.course.is_ready() {
                self.tell(Role::Front, &Reply::Ready(String::new()));
            }
        }
        Ok(())
    }

    /// The server is dead.
    fn bury(&mut self) {
        let Some(server) = self.server.take() else {
            return;
        };
        let end = server.end();
        let pid = server.pid.as_raw_nonzero();
        let how = match (end, self.killed.take()) {
            (_, Some(why)) => format!("because its keeper killed it: {why}"),
            (End::Code(code), None) if !self.status.is_empty() => {
                format!("with exit code {code}: {}", self.status)
            }
            (End::Code(code), None) => format!("with exit code {code}"),
            (End::Signal(signal), None) => format!("by signal {signal}"),
            (End::Unknown, None) => "in an unknown way".to_owned(),
        };
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
        match next_signal(&self.sockets.signals) {
            Some(Signal::HUP) => self.signal(Signal::HUP),
            Some(_) => {
                let deed = self.course.stop(Instant::now());
                deed.into_iter().for_each(|deed| self.act(deed));
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
