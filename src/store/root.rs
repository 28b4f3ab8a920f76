//! The root folder: one process at a time, one schema version.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::store::{Error, files};

/// The schema version this program writes and the newest it reads.
pub const SCHEMA: u32 = 1;

/// A root folder that this process alone works on. Dropping it gives it back.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    /// Holds the flock; the kernel releases it however the process ends.
    _lock: File,
}

impl Root {
    /// Creates the folder if need be (mode 0700) and claims it.
    ///
    /// # Errors
    /// [`Error::NewerSchema`] before anything is touched, [`Error::Locked`] if another process has
    /// it, [`Error::BadRoot`] if the path cannot be used, or [`Error::Io`].
    pub fn claim(path: &Path) -> Result<Self, Error> {
        Self::prepare(path)?;
        let lock = lock(path)?;
        // Once more under the lock: a newer program may have come and gone in between.
        if check_version(path)?.is_none() {
            files::replace(&path.join("version"), version_text(SCHEMA).as_bytes())?;
        }
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Creates the folder if need be, without claiming it.
    ///
    /// # Errors
    /// As [`Self::claim`], except that another process may have it.
    pub fn prepare(path: &Path) -> Result<(), Error> {
        check_path(path)?;
        check_version(path)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(Error::io("create", path))
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Paths below the root become overlay options, in which `:` and `,` part and `\` escapes.
fn check_path(path: &Path) -> Result<(), Error> {
    let why = match path.to_str() {
        None => Some("it is not UTF-8"),
        Some(_) if !path.is_absolute() => Some("it is not absolute"),
        Some(text) if text.contains([':', ',', '\\', '\n', '"']) => {
            Some("mount options cannot carry a colon, comma, backslash, quote or line break")
        }
        Some(_) => None,
    };
    why.map_or(Ok(()), |why| {
        Err(Error::BadRoot {
            path: path.to_owned(),
            why,
        })
    })
}

/// The version on disk; `None` in a new root or one whose version file is damaged (the records
/// carry a version of their own).
fn check_version(root: &Path) -> Result<Option<u32>, Error> {
    let path = root.join("version");
    let text = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", &path)(error)),
    };
    match str::from_utf8(&text).ok().and_then(parse_version) {
        Some(found) if found > SCHEMA => Err(Error::NewerSchema {
            path: root.to_owned(),
            found,
            known: SCHEMA,
        }),
        found => Ok(found),
    }
}

/// A flipped bit must not look like another version, hence the checksum. One without it, as a
/// person would write, is believed.
fn parse_version(text: &str) -> Option<u32> {
    let version: u32 = text.split_whitespace().next()?.parse().ok()?;
    let is_bare = text.trim() == version.to_string();
    (is_bare || text == version_text(version)).then_some(version)
}

fn version_text(version: u32) -> String {
    let version = version.to_string();
    format!(
        "{version} crc32={:08x}\n",
        crc32fast::hash(version.as_bytes())
    )
}

fn lock(root: &Path) -> Result<File, Error> {
    let path = root.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(Error::io("open", &path))?;
    if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK {
            return Err(Error::io("lock", &path)(error.into()));
        }
        let mut holder = String::new();
        // The message is as good without it.
        let _ = file.read_to_string(&mut holder);
        return Err(Error::Locked {
            path: root.to_owned(),
            holder: holder.trim().to_owned(),
        });
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        // On a full disk the id is missing from a message, no more.
        .unwrap_or_else(|error| tracing::warn!(%error, "process id not written to the lock file"));
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_claim_names_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = Root::claim(dir.path()).unwrap();
        let refused = Root::claim(dir.path()).unwrap_err().to_string();
        assert!(
            refused.contains(&std::process::id().to_string()),
            "{refused}"
        );
        drop(first);
        Root::claim(dir.path()).unwrap();
    }

    #[test]
    fn a_newer_root_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("version"), "2\n").unwrap();
        let refused = Root::claim(dir.path()).unwrap_err();
        assert!(matches!(refused, Error::NewerSchema { found: 2, .. }));
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "only the version file: {names:?}");
    }

    #[test]
    fn a_damaged_version_is_not_a_newer_one() {
        let text = version_text(SCHEMA);
        assert_eq!(parse_version(&text), Some(SCHEMA));
        assert_eq!(parse_version("7\n"), Some(7));
        for at in 0..text.len() {
            for bit in 0..7 {
                let mut damaged = text.clone().into_bytes();
                damaged[at] ^= 1 << bit;
                let damaged = String::from_utf8(damaged).unwrap();
                let version = parse_version(&damaged);
                assert!(
                    version.is_none_or(|version| version == SCHEMA),
                    "{damaged:?}"
                );
            }
        }
    }

    #[test]
    fn paths_that_mount_options_cannot_carry_are_refused() {
        for path in ["relative", "/tmp/a:b", "/tmp/a,b", "/tmp/a\\b"] {
            let refused = Root::claim(Path::new(path));
            assert!(matches!(refused, Err(Error::BadRoot { .. })), "{path}");
        }
    }
}
