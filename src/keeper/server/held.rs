//! The server's side: the descriptors that are also in the store, and the watch over the keeper.
//!
//! Locking: one lock, held while a message to the store is sent, so that what the store hears has the
//! order of the changes. A store that does not read holds it for at most five seconds.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;

use crate::keeper::client::{Attach, Connection};
use crate::keeper::control::{Reply, Request};
use crate::keeper::protocol::{self, FdName, Identity, NAMES_MAX, Notify};
use crate::keeper::server::State;
use crate::keeper::{Error, Folder, LOCK, Program, ROOT_VARIABLE, STATE, is_layer};

/// Pause after a keeper that could not be started.
const AGAIN: Duration = Duration::from_secs(1);

/// How long a new keeper may take to receive everything.
const HAND_OVER: Duration = Duration::from_secs(30);

/// Everything that outlives this server. Cheap to share by `Arc`.
#[derive(Debug)]
pub struct Held {
    notify: Option<Notify>,
    fds: Mutex<BTreeMap<FdName, Arc<OwnedFd>>>,
    ending: AtomicBool,
    _lock: Option<OwnedFd>,
}

/// Whether this process was started by a store, systemd or ours: it is the server. If not, it is a
/// front, or wants no store.
pub fn is_server() -> bool {
    ["NOTIFY_SOCKET", ROOT_VARIABLE]
        .iter()
        .any(|name| std::env::var_os(name).is_some())
}

/// Tells whoever started this server why it ends: the last words in `crfs status` and `systemctl status`.
pub fn tell_failure(why: &str) {
    let told = Notify::from_env().and_then(|store| match store {
        Some(store) => store.status(&format!("failed: {}", why.replace('\n', " "))),
        None => Ok(()),
    });
    if let Err(error) = told {
        tracing::debug!(%error, "the store was not told why this server ends");
    }
}

impl Held {
    /// Takes over what the store handed to this process, and the lock of the one server below `root`.
    /// Without a store everything works, and nothing survives.
    pub fn take_over(root: &Path) -> Result<Self, Error> {
        let folder = Folder::new(root).map_err(Error::io("find the root folder"))?;
        let mut inherited = protocol::inherit()?;
        let lock = match inherited.take(LOCK) {
            Some(lock) => Some(lock),
            None => folder
                .lock_server()
                .map_err(Error::io("lock the root folder"))?,
        };
        let lock = lock.ok_or_else(|| Error::Running(root.display().to_string()))?;
        let mut fds = BTreeMap::new();
        for (name, fd) in inherited.into_rest() {
            // systemd may know one descriptor twice; the first is as good as the second.
            fds.entry(name).or_insert_with(|| Arc::new(fd));
        }
        Ok(Self {
            notify: Notify::from_env()?,
            fds: Mutex::new(fds),
            ending: AtomicBool::new(false),
            _lock: Some(lock),
        })
    }

    /// For a process whose work nobody takes over: everything works, and nothing survives.
    pub fn without_store() -> Self {
        Self {
            notify: None,
            fds: Mutex::default(),
            ending: AtomicBool::new(false),
            _lock: None,
        }
    }

    /// The descriptor of that name.
    pub fn get(&self, name: &FdName) -> Option<Arc<OwnedFd>> {
        self.fds.lock().get(name).cloned()
    }

    /// The held descriptors of layers, by name.
    pub fn layers(&self) -> Vec<(FdName, Arc<OwnedFd>)> {
        let fds = self.fds.lock();
        fds.iter()
            .filter(|(name, _)| is_layer(name.as_str()))
            .map(|(n, fd)| (n.clone(), fd.clone()))
            .collect()
    }

    /// Holds `fd` under a name that is not in use. When this returns, the descriptor survives this
    /// process; if the keeper is just dead, once the next one is there.
    pub fn put(&self, name: FdName, fd: OwnedFd) -> Result<Arc<OwnedFd>, Error> {
        let mut fds = self.fds.lock();
        let taken: usize = fds.keys().map(|own| own.as_str().len() + 1).sum();
        if taken + name.as_str().len() + 1 > NAMES_MAX {
            return Err(protocol::Error::TooManyNames(name).into());
        }
        let fd = Arc::new(fd);
        match self.tell(|store| store.store(&name, fd.as_fd(), Identity::Kept)) {
            Err(error) if !error.is_dead_store() => return Err(error.into()),
            _ => {}
        }
        fds.insert(name, fd.clone());
        Ok(fd)
    }

    /// Lets go of a descriptor, here and in the store. The mount should be gone by now: if nobody else
    /// has the descriptor, this ends it.
    pub fn remove(&self, name: &FdName) -> Result<(), Error> {
        let mut fds = self.fds.lock();
        fds.remove(name);
        match self.tell(|store| store.remove(name)) {
            Err(error) if !error.is_dead_store() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The table of what cannot be derived: the inherited one, or a new one.
    ///
    /// An inherited table that cannot be read is an error; the caller may [`remove`](Self::remove)
    /// [`STATE`] and call again, at the price of the mounts' handshakes.
    pub fn state(&self) -> Result<State, Error> {
        let name = FdName::new(STATE)?;
        match self.get(&name) {
            Some(fd) => State::open(fd),
            None => State::open(self.put(name, State::create()?)?),
        }
    }

    /// The listening socket at `path`: the one inherited as `name` if it listens there, or what `bind`
    /// makes, which is held from now on.
    pub fn listener<E: From<Error>>(
        &self,
        name: &str,
        path: &Path,
        bind: impl FnOnce(&Path) -> Result<UnixListener, E>,
    ) -> Result<UnixListener, E> {
        let duplicate = Error::io("duplicate the listening socket");
        let name = FdName::new(name).map_err(Error::from)?;
        if let Some(fd) = self.get(&name) {
            let listener = UnixListener::from(fd.try_clone().map_err(&duplicate)?);
            let there = path
                .symlink_metadata()
                .is_ok_and(|meta| meta.file_type().is_socket());
            let here = listener
                .local_addr()
                .is_ok_and(|own: SocketAddr| own.as_pathname().is_some_and(|own| own == path));
            if there && here {
                return Ok(listener);
            }
            self.remove(&name)?;
        }
        let listener = bind(path)?;
        let fd = listener.try_clone().map_err(duplicate)?;
        self.put(name, fd.into())?;
        Ok(listener)
    }

    /// Lets go of a listening socket that is not wanted any more: while it is held, whoever connects waits.
    pub fn close_listener(&self, name: &str) -> Result<(), Error> {
        let name = FdName::new(name)?;
        match self.get(&name) {
            Some(_) => self.remove(&name),
            None => Ok(()),
        }
    }

    /// Tells the store that requests are served.
    pub fn ready(&self) -> Result<(), Error> {
        Ok(self.tell(Notify::ready)?)
    }

    /// Tells the store that this process ends by its own will.
    pub fn stopping(&self) -> Result<(), Error> {
        self.ending.store(true, Ordering::SeqCst);
        Ok(self.tell(Notify::stopping)?)
    }

    /// One line for people.
    pub fn status(&self, line: &str) -> Result<(), Error> {
        Ok(self.tell(|store| store.status(line))?)
    }

    /// A sign of life: to be given only while every queue moves.
    pub fn watchdog(&self) -> Result<(), Error> {
        Ok(self.tell(Notify::watchdog)?)
    }

    /// How long the store will bear silence (`WATCHDOG_USEC`); `None`: nobody watches. A sign of life
    /// is due twice as often.
    pub fn watchdog_interval() -> Option<Duration> {
        let text = std::env::var("WATCHDOG_USEC").ok()?;
        let pid = std::env::var("WATCHDOG_PID").ok();
        if pid.is_some_and(|pid| pid != std::process::id().to_string()) {
            return None;
        }
        text.parse().ok().map(Duration::from_micros)
    }

    /// Watches over our keeper from a thread of its own: when it dies, another one is started and gets
    /// everything. Does nothing under systemd. To be called once, early.
    pub fn guard(self: &Arc<Self>, keeper: &Path) -> Result<Option<JoinHandle<()>>, Error> {
        let Some(root) = std::env::var_os(ROOT_VARIABLE) else {
            return Ok(None);
        };
        let mut attach = Attach::new(Path::new(&root)).map_err(Error::io("find the keeper"))?;
        attach.keeper = keeper.to_owned();
        let held = self.clone();
        let thread = thread::Builder::new()
            .name("keeper-guard".to_owned())
            .stack_size(256 * 1024);
        let thread = thread.spawn(move || held.stand_guard(&attach));
        Ok(Some(thread.map_err(Error::io("start a thread"))?))
    }

    fn stand_guard(&self, attach: &Attach) {
        let mut met = Connection::existing(&attach.folder).and_then(introduce);
        loop {
            match met {
                Ok(keeper) => {
                    while matches!(keeper.hear(), Ok(Some(_))) {}
                    tracing::warn!("the keeper died, another one is started");
                }
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "no keeper");
                    thread::sleep(AGAIN);
                }
            }
            if self.ending.load(Ordering::SeqCst) {
                return;
            }
            met = self.hand_over(attach);
        }
    }

    /// Starts a keeper and gives it everything.
    fn hand_over(&self, attach: &Attach) -> Result<Connection, Error> {
        let keeper = introduce(attach.keeper()?)?;
        let fds = self.fds.lock();
        for (name, fd) in fds.iter() {
            self.tell(|store| store.store(name, fd.as_fd(), Identity::Kept))?;
        }
        self.tell(|store| store.barrier(HAND_OVER))?;
        tracing::info!(descriptors = fds.len(), "another keeper holds everything");
        Ok(keeper)
    }

    fn tell(
        &self,
        what: impl FnOnce(&Notify) -> Result<(), protocol::Error>,
    ) -> Result<(), protocol::Error> {
        self.notify.as_ref().map_or(Ok(()), what)
    }
}

/// Tells the keeper that this process is the server. The connection closes when the keeper dies.
fn introduce(keeper: Connection) -> Result<Connection, Error> {
    let program = Program::of_this_process().and_then(|own| own.encode());
    let program = program.map_err(Error::io("describe this process"))?;
    keeper.say(&Request::Adopt(program), &[])?;
    match keeper.hear()? {
        Some(Reply::Ready(_)) => Ok(keeper),
        Some(Reply::Failed(why)) => Err(Error::Refused(why)),
        _ => Err(Error::Answer),
    }
}
