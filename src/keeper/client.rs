//! Talking to the keeper: the front that stands for the daemon, and the commands.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::control::{MESSAGE_MAX, Reply, Request};
use super::protocol::wire;
use super::signals::{self, Wish};
use super::{Error, Folder, KEEPER_NAME, Program, ROOT_VARIABLE, memory};

/// How long a keeper may take to appear.
const APPEAR: Duration = Duration::from_secs(5);
/// How long one that leaves may take for it.
const LEAVE: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
const START_AGAIN: Duration = Duration::from_millis(500);

/// Where the keeper is, and what to start if it is not there.
#[derive(Debug, Clone)]
pub struct Attach {
    /// The daemon's root folder. Must exist.
    pub folder: Folder,
    /// The program that becomes the keeper; its `main` calls
    /// [`run_if_keeper`](super::run_if_keeper).
    pub keeper: PathBuf,
}

impl Attach {
    /// With this process's own program as the keeper.
    pub fn new(root: &Path) -> io::Result<Self> {
        Ok(Self {
            folder: Folder::new(root)?,
            keeper: "/proc/self/exe".into(),
        })
    }

    /// Connects to the keeper, which is started if there is none.
    pub(super) fn keeper(&self) -> Result<Connection, Error> {
        let until = Instant::now() + APPEAR;
        let (mut next, mut pause) = (Instant::now(), START_AGAIN);
        let mut started: Option<OwnedFd> = None;
        loop {
            if let Some(connection) = Connection::open(&self.folder)? {
                return Ok(connection);
            }
            let now = Instant::now();
            if now > until {
                return Err(Error::NoKeeper(self.folder.root().display().to_string()));
            }
            if now >= next {
                // One started before may have lost a race, or met one that was just leaving.
                started = Some(self.start_keeper()?);
                (next, pause) = (now + pause, pause * 2);
            }
            // Not longer than a moment: another one's keeper may come first.
            match started.as_ref().map(|started| closes(started, LOOK_AGAIN)) {
                // It listens, or is gone: no reason to ask again and again.
                Some(true) => started = None,
                Some(false) => {}
                None => thread::sleep(LOOK_AGAIN),
            }
        }
    }

    /// Starts a keeper that is nobody's child: it outlives this process, and leaves no zombie. What is
    /// given closes when it listens, or ends.
    fn start_keeper(&self) -> Result<OwnedFd, Error> {
        let fail = Error::io("start the keeper");
        let (started, starting) = io::pipe().map_err(&fail)?;
        let mut command = Command::new(&self.keeper);
        command
            .arg0(KEEPER_NAME)
            .env_clear()
            .env(ROOT_VARIABLE, self.folder.root())
            .stdin(starting);
        // SAFETY: setsid, fork and _exit may be called between fork and exec. A session of its own
        // keeps the keeper from the signals of the terminal and of the front's process group.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                match libc::fork() {
                    -1 => Err(io::Error::last_os_error()),
                    0 => Ok(()),
                    _ => libc::_exit(0),
                }
            });
        }
        let mut between = command.spawn().map_err(&fail)?;
        between.wait().map_err(fail)?;
        Ok(started.into())
    }
}

/// Whether the other end of a pipe is closed within `limit`.
fn closes(pipe: &OwnedFd, limit: Duration) -> bool {
    let mut polled = [PollFd::new(pipe, PollFlags::IN)];
    let limit = Timespec::try_from(limit).ok();
    matches!(rustix::event::poll(&mut polled, limit.as_ref()), Ok(1..))
}

/// A connection to the keeper.
#[derive(Debug)]
pub(super) struct Connection(OwnedFd);

impl Connection {
    /// `None`: nobody listens.
    fn open(folder: &Folder) -> Result<Option<Self>, Error> {
        let fail = Error::io("connect to the keeper");
        let flags = SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let socket = socket.map_err(&fail)?;
        let address = SocketAddrUnix::new(folder.control()).map_err(&fail)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => Ok(Some(Self(socket))),
            Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(None),
            Err(errno) => Err(fail(errno)),
        }
    }

    /// To a keeper that must be there.
    pub(super) fn existing(folder: &Folder) -> Result<Self, Error> {
        Self::open(folder)?.ok_or_else(|| Error::NoKeeper(folder.root().display().to_string()))
    }

    pub(super) fn say(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        wire::send(
            self.0.as_fd(),
            None,
            &request.encode(),
            fds,
            SendFlags::empty(),
        )
        .map_err(Error::io("ask the keeper"))
    }

    /// Waits until the keeper has closed the connection or is gone: after this nothing is left of one
    /// that had nothing more to keep.
    fn see_off(&self) {
        let until = Instant::now() + LEAVE;
        while let Ok(left) = Timespec::try_from(until.saturating_duration_since(Instant::now())) {
            let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
            match rustix::event::poll(&mut polled, Some(&left)) {
                Ok(1..) if matches!(self.hear(), Ok(Some(_))) => {}
                Err(Errno::INTR) => {}
                _ => return,
            }
        }
    }

    /// Waits for what the keeper says; `None`: it closed the connection, or died.
    pub(super) fn hear(&self) -> Result<Option<Reply>, Error> {
        let mut buffer = vec![0; MESSAGE_MAX];
        match wire::receive(self.0.as_fd(), &mut buffer, RecvFlags::empty()) {
            Ok(got) if got.length > 0 => {
                let reply = buffer.get(..got.length).and_then(Reply::parse);
                reply.map(Some).ok_or(Error::Answer)
            }
            Ok(_) | Err(Errno::CONNRESET) => Ok(None),
            Err(errno) => Err(Error::io("hear the keeper")(errno)),
        }
    }
}

/// What `crfs serve` is to its operator: runs `program` as the server under the keeper, and returns
/// its exit code when it has ended for good. SIGTERM and SIGINT end the server, at SIGHUP it reads its
/// configuration again.
///
/// Blocks these signals in the calling thread; to be called before there are others.
pub fn front(attach: &Attach, program: &Program) -> Result<i32, Error> {
    let signals = signals::open().map_err(Error::io("take signals"))?;
    let spec = program.encode().map_err(Error::io("describe the server"))?;
    let mut until = Instant::now() + APPEAR * 2;
    let mut request = Request::Start(spec.clone());
    loop {
        let keeper = attach.keeper()?;
        match keeper.say(&request, &[io::stdout().as_fd(), io::stderr().as_fd()]) {
            Ok(()) => {}
            // It was just leaving.
            Err(Error::Io { .. }) => {
                thread::sleep(LOOK_AGAIN);
                continue;
            }
            Err(error) => return Err(error),
        }
        memory::forget_code();
        match watch(&keeper, &attach.folder, &signals)? {
            Outcome::Ended(code) => {
                keeper.see_off();
                return Ok(code);
            }
            // The server starts another keeper and brings it the layers: that comes first.
            Outcome::KeeperDied => {
                until = Instant::now() + APPEAR * 2;
                request = Request::Rejoin(spec.clone());
            }
            Outcome::Wait if Instant::now() > until => {
                return Err(Error::Running(attach.folder.root().display().to_string()));
            }
            Outcome::Wait => {}
        }
        thread::sleep(LOOK_AGAIN * 10);
    }
}

enum Outcome {
    Ended(i32),
    KeeperDied,
    Wait,
}

/// Waits for the server's end, and passes on what signals want.
fn watch(keeper: &Connection, folder: &Folder, signals: &OwnedFd) -> Result<Outcome, Error> {
    loop {
        let mut polled = [&keeper.0, signals].map(|fd| PollFd::new(fd, PollFlags::IN));
        match rustix::event::poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::io("wait for the keeper")(errno)),
        }
        let [said, signalled] = polled.map(|fd| !fd.revents().is_empty());
        match signalled.then(|| signals::next(signals)).flatten() {
            Some(Wish::End) => keeper.say(&Request::Stop, &[])?,
            // No reason to end: the keeper may be of a version that does not know this.
            Some(Wish::Reread) => {
                if let Err(error) = reread(folder) {
                    tracing::error!(%error, "the configuration is not reloaded");
                }
                memory::forget_code();
            }
            None => {}
        }
        if said {
            match keeper.hear()? {
                None => return Ok(Outcome::KeeperDied),
                Some(Reply::Wait) => return Ok(Outcome::Wait),
                Some(Reply::Ended(code)) => return Ok(Outcome::Ended(code)),
                Some(Reply::Failed(why)) => return Err(Error::Refused(why)),
                Some(Reply::Ready(_) | Reply::State(_)) => {}
            }
        }
    }
}

/// Ends the server, and waits for the end. `false`: no keeper runs. Layers stay mounted, and kept.
pub fn stop(folder: &Folder) -> Result<bool, Error> {
    let Some(keeper) = Connection::open(folder)? else {
        return Ok(false);
    };
    keeper.say(&Request::Stop, &[])?;
    match keeper.hear()? {
        Some(Reply::Ended(_)) | None => {
            keeper.see_off();
            Ok(true)
        }
        Some(Reply::Failed(why)) => Err(Error::Refused(why)),
        Some(_) => Err(Error::Answer),
    }
}

/// Lets the server read its configuration again: at once if it serves, else as soon as it does.
fn reread(folder: &Folder) -> Result<(), Error> {
    // Not the connection that waits for the end: what is answered there is about the end.
    ask(&Connection::existing(folder)?, &Request::Reread)
}

/// Makes the keeper of a stopped server forget the layers, and end. Mounts that are still in use lose
/// their server for good.
pub fn let_go(folder: &Folder) -> Result<(), Error> {
    let Some(keeper) = Connection::open(folder)? else {
        return Ok(());
    };
    keeper.say(&Request::LetGo, &[])?;
    match keeper.hear()? {
        Some(Reply::Ready(_)) | None => {
            keeper.see_off();
            Ok(())
        }
        Some(Reply::Failed(why)) => Err(Error::Refused(why)),
        Some(_) => Err(Error::Answer),
    }
}

/// Whether a keeper runs for this folder.
pub fn is_there(folder: &Folder) -> Result<bool, Error> {
    Ok(Connection::open(folder)?.is_some())
}

/// Replaces the server's program by `path`, absolute, and waits for the outcome. When the new one does
/// not become ready the old one is started again, and the error says so.
pub fn upgrade(folder: &Folder, path: &Path) -> Result<(), Error> {
    let request = Request::Upgrade(path.to_owned());
    ask(&Connection::existing(folder)?, &request)
}

/// Asks for something that is done or refused.
fn ask(keeper: &Connection, request: &Request) -> Result<(), Error> {
    keeper.say(request, &[])?;
    match keeper.hear()? {
        Some(Reply::Ready(_)) => Ok(()),
        Some(Reply::Failed(why)) => Err(Error::Refused(why)),
        _ => Err(Error::Answer),
    }
}

/// The keeper's state: lines of a key, a space and a value. Keys: `keeper` (its process), `phase` (ready, starting, waiting,
/// stopped), `pid`, `layers`, `starts`, `next_start_ms`, `last_error`, `status`.
pub fn state(folder: &Folder) -> Result<String, Error> {
    let keeper = Connection::existing(folder)?;
    keeper.say(&Request::State, &[])?;
    match keeper.hear()? {
        Some(Reply::State(text)) => Ok(text),
        _ => Err(Error::Answer),
    }
}
