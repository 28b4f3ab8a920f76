//! Files that survive a power cut: written, fsynced, renamed, and the folder fsynced.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use crate::store::Error;

/// Writes `bytes` to a new or emptied file and fsyncs it; its name is durable only after
/// [`sync_dir`].
///
/// # Errors
/// The file cannot be created, written or fsynced.
pub fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(Error::io("create", path))?;
    file.write_all(bytes).map_err(Error::io("write", path))?;
    file.sync_all().map_err(Error::io("fsync", path))
}

/// Makes the names in a folder durable.
///
/// # Errors
/// The folder cannot be opened or fsynced.
pub fn sync_dir(path: &Path) -> Result<(), Error> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::io("fsync", path))
}

/// Replaces `path` as a whole: after a crash it holds either the old bytes or the new ones.
///
/// # Errors
/// Any of the steps failed; the old content is still there.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let fresh = path.with_extension("new");
    write_synced(&fresh, bytes)?;
    rename(&fresh, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Renames within one folder, not yet durable.
///
/// # Errors
/// The kernel refused.
pub fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(Error::io("rename", from))
}

/// Writes everything dirty on the file system that holds `path` to its disk.
///
/// # Errors
/// The path cannot be opened, or the disk reported a write error.
pub fn sync_file_system(path: &Path) -> Result<(), Error> {
    let dir = File::open(path).map_err(Error::io("open", path))?;
    rustix::fs::syncfs(&dir).map_err(|error| Error::io("syncfs", path)(error.into()))
}
