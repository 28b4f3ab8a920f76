//! A registry's folder below `certs.d`: finding it, reading it, and noticing that it changed.
//!
//! Layout (containerd's `docs/hosts.md`): `ROOT/HOST_PORT_`, else `ROOT/HOST:PORT`, else
//! `ROOT/_default`, the first that exists; in it `hosts.toml`, or else (also if it is empty) docker's
//! `*.crt` (CA), `*.cert` and `*.key` (client).

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::registry::Error;
use crate::registry::hosts::file::{self, Entry};

/// The largest file that is read, in bytes: a bundle of all public CAs has a quarter of that.
const MAX_FILE: u64 = 1 << 20;

/// Files and how they looked. Two of them are equal while nothing changed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Seen(Vec<(PathBuf, Option<Stamp>)>);

/// Device, inode, size, and times in nanoseconds of a file.
type Stamp = (u64, u64, u64, i128, i128);

impl Seen {
    /// Reads a file and remembers how it looked before.
    pub(super) fn read(&mut self, path: &Path) -> Result<Vec<u8>, Error> {
        let size = self.look(path)?.map_or(0, |found| found.len());
        if size > MAX_FILE {
            return Err(setup(path, &format!("{size} bytes, more than {MAX_FILE}")));
        }
        fs::read(path).map_err(|error| setup(path, &error.to_string()))
    }

    /// Whether the files look as they did.
    pub(super) fn is_current(&self) -> bool {
        let current = |path: &Path| fs::metadata(path).ok().as_ref().map(stamp);
        self.0.iter().all(|(path, stamp)| *stamp == current(path))
    }

    fn look(&mut self, path: &Path) -> Result<Option<Metadata>, Error> {
        let found = match fs::metadata(path) {
            Ok(found) => Some(found),
            Err(error) if is_missing(&error) => None,
            Err(error) => return Err(setup(path, &error.to_string())),
        };
        self.0.push((path.to_owned(), found.as_ref().map(stamp)));
        Ok(found)
    }
}

/// Reads what the folders in `roots`, joined by `:`, say about `registry`, noting all that it
/// looks at in `seen`, also if it fails.
pub(super) fn read(
    roots: &str,
    registry: &str,
    seen: &mut Seen,
) -> Result<Option<Vec<Entry>>, Error> {
    let Some(folder) = find(roots, registry, seen)? else {
        return Ok(None);
    };
    let path = folder.join("hosts.toml");
    if seen.look(&path)?.is_none_or(|found| found.len() == 0) {
        return docker_style(&folder).map(Some);
    }
    let text = seen.read(&path)?;
    let text = String::from_utf8(text).map_err(|_| setup(&path, "not UTF-8"))?;
    file::parse(&text, &folder)
        .map(Some)
        .map_err(|why| setup(&path, &why))
}

fn find(roots: &str, registry: &str, seen: &mut Seen) -> Result<Option<PathBuf>, Error> {
    let mut names = vec![registry.to_owned(), "_default".to_owned()];
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.insert(0, format!("{host}_{port}_"));
    }
    for root in roots.split(':').filter(|root| !root.is_empty()) {
        for name in &names {
            let folder = Path::new(root).join(name);
            if seen.look(&folder)?.is_some_and(|found| found.is_dir()) {
                return Ok(Some(folder));
            }
        }
    }
    Ok(None)
}

/// Certificates as docker keeps them: for the registry itself.
fn docker_style(folder: &Path) -> Result<Vec<Entry>, Error> {
    let mut entries = file::parse("", folder).map_err(|why| setup(folder, &why))?;
    let listed = fs::read_dir(folder).map_err(|error| setup(folder, &error.to_string()))?;
    let mut files: Vec<_> = listed.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for entry in &mut entries {
        for file in &files {
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => entry.ca.push(file.clone()),
                Some("cert") => {
                    let key = Some(file.with_extension("key")).filter(|key| key.exists());
                    entry.client.push((file.clone(), key));
                }
                _ => {}
            }
        }
    }
    Ok(entries)
}

fn stamp(found: &Metadata) -> Stamp {
    let nanoseconds =
        |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    let modified = nanoseconds(found.mtime(), found.mtime_nsec());
    let changed = nanoseconds(found.ctime(), found.ctime_nsec());
    (found.dev(), found.ino(), found.size(), modified, changed)
}

/// A name that no file system could hold (a host name over 255 bytes) is nowhere.
fn is_missing(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory | InvalidFilename)
}

pub(super) fn setup(path: &Path, why: &str) -> Error {
    Error::Setup(format!("{}: {why}", path.display()))
}
