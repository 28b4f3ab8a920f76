//! What is asked of the keeper, and what it answers: the far end of `control.rs`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use rustix::process::Pid;

use super::Keeper;
use super::begin::point_output;
use super::child::Server;
use super::course::Deed;
use super::shelf::Shelf;
use super::spec::Spec;
use crate::keeper::control::{MESSAGE_MAX, Reply, Request};
use crate::keeper::protocol::wire;

/// Connections at a time: a server, a front, and some that ask.
const CONNECTIONS: usize = 16;

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Did not ask for anything lasting.
    Guest,
    /// Waits for the server's end.
    Front,
    /// Waits for the end of a stop.
    Stopper,
    /// Waits for the outcome of an upgrade.
    Upgrader,
    /// The server, which wants to know of the keeper's death.
    Server,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) fd: OwnedFd,
    pub(super) role: Role,
    pub(super) open: bool,
}

impl Keeper {
    pub(super) fn accept(&mut self) {
        let Ok(fd) = rustix::net::accept_with(&self.sockets.control, SocketFlags::CLOEXEC) else {
            return;
        };
        if self.connections.len() < CONNECTIONS {
            self.connections.push(Connection {
                fd,
                role: Role::Guest,
                open: true,
            });
        }
    }

    pub(super) fn on_request(&mut self, at: usize) {
        let Some(connection) = self.connections.get(at) else {
            return;
        };
        let mut buffer = vec![0; MESSAGE_MAX];
        let got = wire::receive(connection.fd.as_fd(), &mut buffer, RecvFlags::DONTWAIT);
        let peer = rustix::net::sockopt::socket_peercred(&connection.fd).map(|peer| peer.pid);
        let (role, reply) = match got {
            Ok(got) if got.length > 0 && !got.truncated => {
                let message = buffer.get(..got.length).and_then(Request::parse);
                self.answer(connection.role, message, got.fds, peer.ok())
            }
            Err(rustix::io::Errno::AGAIN) => return,
            _ => return self.close(at),
        };
        if let Some(connection) = self.connections.get_mut(at) {
            connection.role = role;
            reply.into_iter().for_each(|reply| connection.say(&reply));
        }
    }

    fn close(&mut self, at: usize) {
        if let Some(connection) = self.connections.get_mut(at) {
            connection.open = false;
        }
    }

    /// Follows a request: what its sender is from now on, and what it is told at once.
    fn answer(
        &mut self,
        role: Role,
        request: Option<Request>,
        fds: Vec<OwnedFd>,
        peer: Option<Pid>,
    ) -> (Role, Option<Reply>) {
        let failed = |text: String| (role, Some(Reply::Failed(text)));
        match request {
            Some(Request::Rejoin(_)) if self.used && !self.course.is_wanted() => {
                (role, Some(Reply::Ended(0)))
            }
            Some(Request::Start(spec) | Request::Rejoin(spec)) => match self.start(spec, &fds) {
                Ok(ready) => (Role::Front, ready.then(|| Reply::Ready(String::new()))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    (role, Some(Reply::Wait))
                }
                Err(error) => failed(error.to_string()),
            },
            Some(Request::Adopt(spec)) => match self.adopt(spec, peer) {
                Ok(()) => (Role::Server, Some(Reply::Ready(String::new()))),
                Err(error) => failed(error.to_string()),
            },
            Some(Request::Upgrade(path)) => match self.upgrade(&path) {
                Ok(()) => (Role::Upgrader, None),
                Err(error) => failed(error.to_string()),
            },
            Some(Request::Stop) => {
                let role = if role == Role::Front {
                    role
                } else {
                    Role::Stopper
                };
                match self.course.stop(Instant::now()) {
                    Some(Deed::Ended(code)) => {
                        self.over(code);
                        (role, Some(Reply::Ended(code)))
                    }
                    deed => {
                        deed.into_iter().for_each(|deed| self.act(deed));
                        (role, None)
                    }
                }
            }
            Some(Request::LetGo) => match self.let_go() {
                Ok(()) => (role, Some(Reply::Ready(String::new()))),
                Err(error) => failed(error.to_string()),
            },
            Some(Request::Reread) => {
                self.reread = true;
                self.pass_reread();
                (role, Some(Reply::Ready(String::new())))
            }
            Some(Request::State) => (role, Some(Reply::State(self.state()))),
            None => failed("this keeper does not know the request".to_owned()),
        }
    }

    /// Runs the server described by `spec`; `true` if it serves already.
    fn start(&mut self, spec: Vec<u8>, output: &[OwnedFd]) -> io::Result<bool> {
        let fronts = |own: &Connection| own.open && own.role == Role::Front;
        if self.connections.iter().any(fronts) {
            return Err(io::Error::other("crfs is running already for this folder"));
        }
        let spec = Spec::open(spec, None)?;
        if !self.course.is_up() && self.folder.lock_server()?.is_none() {
            // Its keeper died: it is about to bring the layers.
            return Err(io::ErrorKind::WouldBlock.into());
        }
        point_output(Some(output));
        let same = self.spec.as_ref().is_some_and(|own| own.is_like(&spec));
        if self.course.is_up() && self.course.is_wanted() && same {
            return Ok(self.course.is_ready());
        }
        self.used = true;
        if self.course.is_up() {
            self.replace(spec);
        } else {
            self.spec = Some(spec);
            self.course.start(Instant::now());
        }
        Ok(false)
    }

    /// A server introduces itself: the one that was started here, or one that a dead keeper left.
    fn adopt(&mut self, spec: Vec<u8>, peer: Option<Pid>) -> io::Result<()> {
        let pid = peer.ok_or(io::ErrorKind::NotFound)?;
        if self.server.as_ref().is_some_and(|own| own.pid == pid) {
            return Ok(());
        }
        if self.course.is_up() {
            return Err(io::Error::other("another server runs"));
        }
        let running = format!("/proc/{}/exe", pid.as_raw_nonzero());
        self.spec = Some(Spec::open(spec, Some(running.as_ref()))?);
        self.note_server(Server::running(pid)?);
        self.course.adopt(Instant::now());
        self.pass_reread();
        Ok(())
    }

    fn upgrade(&mut self, path: &std::path::Path) -> io::Result<()> {
        if self.course.is_trial() {
            return Err(io::Error::other("another upgrade is under way"));
        }
        let own = self
            .spec
            .as_ref()
            .ok_or(io::Error::other("no server was ever started"))?;
        let spec = own.with_program(path)?;
        self.replace(spec);
        Ok(())
    }

    /// Forgets the layers, after which nothing keeps this process.
    fn let_go(&mut self) -> io::Result<()> {
        if !self.is_idle() {
            return Err(io::Error::other("the server runs"));
        }
        self.shelf = Shelf::default();
        self.used = true;
        Ok(())
    }

    fn replace(&mut self, spec: Spec) {
        let before = self.spec.replace(spec);
        // With an upgrade under way, the one to go back to is the last that served.
        self.old = self.old.take().or(before);
        let deed = self.course.replace(Instant::now());
        deed.into_iter().for_each(|deed| self.act(deed));
    }

    fn state(&self) -> String {
        let pid = self
            .server
            .as_ref()
            .map_or(0, |server| server.pid.as_raw_nonzero().get());
        let phase = match (
            self.course.is_up(),
            self.course.is_ready(),
            self.course.is_wanted(),
        ) {
            (true, true, _) => "ready",
            (true, false, _) => "starting",
            (false, _, true) => "waiting",
            (false, _, false) => "stopped",
        };
        let next = self.course.deadline().filter(|_| !self.course.is_up());
        let next = next.map_or(0, |at| {
            at.saturating_duration_since(Instant::now()).as_millis()
        });
        format!(
            "keeper {}\nphase {phase}\npid {pid}\nlayers {}\nstarts {}\nnext_start_ms {next}\n\
             last_error {}\nstatus {}\n",
            std::process::id(),
            self.shelf.layers(),
            self.starts,
            self.error,
            self.status,
        )
    }

    /// Ends the connections of those who were told the server's end.
    pub(super) fn hang_up(&mut self) {
        for connection in &mut self.connections {
            connection.open &= ![Role::Front, Role::Stopper].contains(&connection.role);
        }
    }

    pub(super) fn tell(&mut self, role: Role, reply: &Reply) {
        for connection in &mut self.connections {
            if connection.role == role {
                connection.say(reply);
                if role == Role::Upgrader {
                    connection.role = Role::Guest;
                }
            }
        }
    }
}

impl Connection {
    /// Says it if the other end listens; the keeper waits for nobody.
    fn say(&mut self, reply: &Reply) {
        let flags = SendFlags::DONTWAIT;
        self.open &= wire::send(self.fd.as_fd(), None, &reply.encode(), &[], flags).is_ok();
    }
}
