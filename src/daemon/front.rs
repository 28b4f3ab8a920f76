//! What an operator starts, asks and ends: the front of `crfs serve`, `crfs stop`, `crfs upgrade`, `crfs status`.
//!
//! The daemon itself runs under a keeper ([`crate::keeper`]), or under systemd, which is one too.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::config::Config;
use crate::daemon::Error;
use crate::daemon::systemd::Service;
use crate::keeper::{self, Attach, Folder, Program};
use crate::layer;
use crate::overlay::{Mounter as _, System};
use crate::store::{self, Root};

/// File in the root folder that names the socket.
const ADDRESS: &str = "server.address";

/// How a server came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It served until now.
    Now,
    /// None was there.
    Before,
}

/// Runs the daemon under a keeper until it has ended for good; its exit code. Nothing but waiting is done
/// here: killing this process harms nobody.
///
/// # Errors
/// The root folder cannot be used, another daemon has it, or the keeper cannot be started.
pub fn front(config: &Config) -> Result<i32, Error> {
    Root::prepare(&config.root)?;
    let attach = Attach::new(&config.root).map_err(Error::Setup)?;
    if !keeper::is_there(&attach.folder)? {
        // A daemon without a keeper is under systemd, or about to start another.
        drop(Root::claim(&config.root)?);
    }
    let program = Program::of_this_process().map_err(Error::Setup)?;
    keeper::front(&attach, &program).map_err(|error| match (error, Root::claim(&config.root)) {
        // This one names the process.
        (keeper::Error::Refused(_) | keeper::Error::Running(_), Err(locked)) => locked.into(),
        (error, _) => error.into(),
    })
}

/// Ends the daemon of a root folder in order. Layers stay mounted and wait for the next one; with `force`
/// all of them are unmounted, and containers that run on them lose their files.
///
/// # Errors
/// The daemon is not ours to stop, or a mount cannot be taken down.
pub fn stop(root: &Path, force: bool) -> Result<Stopped, Error> {
    let folder = Folder::new(root).map_err(Error::Setup)?;
    if !folder.server_lock().exists() {
        return Ok(Stopped::Before);
    }
    let kept = keeper::is_there(&folder)?;
    let runs = matches!(Root::claim(root), Err(store::Error::Locked { .. }));
    if kept {
        keeper::stop(&folder)?;
    } else if runs {
        drop(Root::claim(root)?);
    }
    if force {
        unmount_layers(root).map_err(Error::Unmount)?;
        keeper::let_go(&folder)?;
    }
    Ok(if runs { Stopped::Now } else { Stopped::Before })
}

/// Replaces the running daemon by another program, with containers running; `program` is absolute. If
/// the new one does not serve, the old one is back, and the error says why.
///
/// # Errors
/// No daemon runs there under a keeper or systemd, or the new program does not serve.
pub fn upgrade(root: &Path, program: &Path) -> Result<(), Error> {
    let folder = Folder::new(root).map_err(Error::Setup)?;
    rehearse(program)?;
    if keeper::is_there(&folder)? {
        return Ok(keeper::upgrade(&folder, program)?);
    }
    match holder(root).and_then(|pid| Service::of(&pid)) {
        Some(service) => service.upgrade(program),
        None => Err(keeper::Error::NoKeeper(root.display().to_string()).into()),
    }
}

/// Lets the program say its name while the old daemon still serves: what is no crfs, or does not run on this
/// machine, costs nobody a wait, and the rest of it is in memory when it is needed.
fn rehearse(program: &Path) -> Result<(), Error> {
    let no = |why: String| Error::Service(format!("{} is no crfs: {why}", program.display()));
    let mut say = Command::new(program);
    let said = say.arg("--version").stdin(Stdio::null()).output();
    let said = said.map_err(|error| no(error.to_string()))?;
    if said.status.success() && said.stdout.starts_with(b"crfs ") {
        return Ok(());
    }
    let text = [said.stdout, said.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().next().unwrap_or_default();
    Err(no(format!("--version gives {}, {line:?}", said.status)))
}

/// What is known of the daemon of a root folder, in lines of a key, a space and a value. Under a keeper:
/// those of [`keeper::state`]; else `pid`, and under systemd `service` and `status`. Empty: none runs.
///
/// # Errors
/// The keeper is there and does not answer.
pub fn status(root: &Path) -> Result<String, Error> {
    let folder = Folder::new(root).map_err(Error::Setup)?;
    if keeper::is_there(&folder)? {
        return Ok(keeper::state(&folder)?);
    }
    let Some(pid) = holder(root) else {
        return Ok(String::new());
    };
    let service = Service::of(&pid).map(|service| service.describe());
    Ok(format!("pid {pid}\n{}", service.unwrap_or_default()))
}

/// The socket that the daemon of a root folder serves on, or did last; `None` if none ever did.
#[must_use]
pub fn address(root: &Path) -> Option<PathBuf> {
    let noted = std::fs::read(root.join(ADDRESS)).ok()?;
    Some(PathBuf::from(OsString::from_vec(noted)))
}

/// Notes the socket, for who knows the root folder alone.
pub(super) fn note_address(root: &Path, address: &Path) {
    let noted = store::files::replace(&root.join(ADDRESS), address.as_os_str().as_bytes());
    if let Err(error) = noted {
        tracing::warn!(%error, "crfs status and the like will need --address");
    }
}

/// The process that has the root folder, if one has.
fn holder(root: &Path) -> Option<String> {
    if !root.exists() {
        return None;
    }
    match Root::claim(root) {
        Err(store::Error::Locked { holder, .. }) => Some(holder),
        _ => None,
    }
}

/// What others have mounted over a layer stays, and the layer with it.
fn unmount_layers(root: &Path) -> io::Result<()> {
    let mounts = System.mounts_below(&root.canonicalize()?)?;
    for mount in mounts.iter().filter(|mount| layer::is_layer(mount)) {
        layer::unmount(&System, &mount.target)?;
    }
    Ok(())
}
