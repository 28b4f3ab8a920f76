//! The unix socket: made so that only root can speak to it, and never over somebody else's.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use tokio_stream::wrappers::UnixListenerStream;

/// Why there is no socket to serve on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another daemon answers there.
    #[error("a daemon serves {} already", .0.display())]
    Live(PathBuf),
    /// Something is there that we must not replace.
    #[error("{} cannot be used as a socket: {why}", path.display())]
    Refused {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A system call failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Binds a socket at `path`. Its folder is made with mode 0700 if need be, a socket left by a dead
/// daemon is replaced.
///
/// # Errors
/// The folder or what is at `path` belongs to somebody else, is a symlink or no socket, or a
/// daemon answers there.
pub fn bind(path: &Path) -> Result<UnixListener, Error> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    make_folder(folder)?;
    remove_stale(path)?;
    let listener = UnixListener::bind(path).map_err(failed("bind", path))?;
    let private = Permissions::from_mode(0o600);
    fs::set_permissions(path, private).map_err(failed("chmod", path))?;
    Ok(listener)
}

/// What a tokio server takes calls from. Needs a tokio runtime.
///
/// # Errors
/// The runtime could not register it.
pub fn incoming(listener: UnixListener) -> io::Result<UnixListenerStream> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    Ok(UnixListenerStream::new(listener))
}

fn make_folder(folder: &Path) -> Result<(), Error> {
    let refuse = |why| Error::Refused {
        path: folder.to_owned(),
        why,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(failed("create", folder))?;
    let meta = fs::symlink_metadata(folder).map_err(failed("stat", folder))?;
    if meta.file_type().is_symlink() {
        return Err(refuse("the folder is a symlink"));
    }
    if meta.uid() != own_uid() {
        return Err(refuse("the folder belongs to another user"));
    }
    let others_may_write = meta.mode() & 0o022 != 0;
    let is_sticky = meta.mode() & 0o1000 != 0;
    if others_may_write && !is_sticky {
        return Err(refuse("others may write to the folder"));
    }
    Ok(())
}

fn remove_stale(path: &Path) -> Result<(), Error> {
    let refuse = |why| Error::Refused {
        path: path.to_owned(),
        why,
    };
    let meta = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        meta => meta.map_err(failed("stat", path))?,
    };
    if meta.file_type().is_symlink() {
        return Err(refuse("it is a symlink"));
    }
    if !meta.file_type().is_socket() {
        return Err(refuse("something else is there"));
    }
    if meta.uid() != own_uid() {
        return Err(refuse("it belongs to another user"));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(Error::Live(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("remove", path))
        }
        Err(error) => Err(failed("connect to", path)(error)),
    }
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/crfs.sock");
        let first = bind(&path).unwrap();
        let mode = fs::metadata(dir.path().join("run")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(matches!(bind(&path), Err(Error::Live(_))));
        drop(first);
        bind(&path).unwrap();
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "kept").unwrap();
        symlink("/nowhere", &link).unwrap();
        for path in [&file, &link] {
            assert!(matches!(bind(path), Err(Error::Refused { .. })), "{path:?}");
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(bind(&open.join("s")), Err(Error::Refused { .. })));
    }
}
