//! The folder of one snapshot, and the record in it.
//!
//! # Layout
//! `<root>/snapshots/<id>/` holds
//! * `fs`: the snapshot's own files (mode 0755, as it becomes the root of the first layer), or the
//!   mount point of a lazy layer;
//! * `work`: overlay's work folder, for an active snapshot only;
//! * `lower/<id>`: a view's own mount of the lazy layer below it whose snapshot has that number (see [`super::view`]);
//! * `record`: the sealed [`Record`];
//! * `record.new`: a version of it that is not valid yet;
//! * `removed`: what `record` is renamed to when the snapshot is removed. Such a folder belongs to
//!   nobody and is deleted, however old a state the database may have fallen back to.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, lchown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;

use crate::layer::OWN_LAYERS;
use crate::snapshotter::Error;
use crate::snapshotter::model::{Kind, Record};
use crate::store::codec::{self, Broken};
use crate::store::files;

/// Largest record read back: a message of 16 MiB, every byte of a key escaped in JSON.
const MAX_RECORD: u64 = 128 << 20;

/// The folder of all snapshots.
#[derive(Debug, Clone)]
pub(super) struct Snapshots(PathBuf);

/// The folder of one snapshot.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    path: PathBuf,
}

/// What a folder says about its snapshot.
#[derive(Debug)]
pub(super) enum Found {
    /// It is there.
    Record(Box<Record>),
    /// It has been removed; only rubbish is left.
    Removed,
    /// There is no record: its making was never finished, or the record is lost.
    Nothing,
    /// There is a record, but it cannot be read.
    Damaged(Broken),
}

impl Snapshots {
    /// Creates `<root>/snapshots` if need be.
    pub(super) fn open(root: &Path) -> Result<Self, Error> {
        let path = root.join("snapshots");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(Error::io("create", &path))?;
        files::sync_dir(root)?;
        Ok(Self(path))
    }

    /// The same without creating anything.
    pub(super) fn existing(root: &Path) -> Self {
        Self(root.join("snapshots"))
    }

    /// The path of the folder of all snapshots.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The folder of snapshot `id`, which may not exist.
    pub(super) fn folder(&self, id: u64) -> Folder {
        Folder {
            path: self.0.join(id.to_string()),
        }
    }

    /// The ids of all folders there are. Anything else is not ours and left alone.
    pub(super) fn ids(&self) -> Result<Vec<u64>, Error> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(Error::io("list", &self.0))?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.map_err(Error::io("list", &self.0))?.file_name();
            let id = name.to_str().and_then(|name| name.parse::<u64>().ok());
            // `+1` and `01` parse too, but are no names of ours.
            ids.extend(id.filter(|id| *id.to_string() == *name));
        }
        Ok(ids)
    }

    /// Makes the names of folders durable.
    pub(super) fn sync(&self) -> Result<(), Error> {
        Ok(files::sync_dir(&self.0)?)
    }
}

impl Folder {
    /// The snapshot's folder itself.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The snapshot's files, or a lazy layer's mount point.
    pub(super) fn fs(&self) -> PathBuf {
        self.path.join("fs")
    }

    /// Overlay's work folder.
    pub(super) fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// Where a view has its own mount of the lazy layer whose snapshot is `layer`.
    pub(super) fn lower(&self, layer: u64) -> PathBuf {
        self.lowers().join(layer.to_string())
    }

    fn lowers(&self) -> PathBuf {
        self.path.join(OWN_LAYERS)
    }

    /// Makes the folder that [`Self::lower`] names, if it is missing.
    pub(super) fn make_lower(&self, layer: u64) -> Result<PathBuf, Error> {
        for path in [self.lowers(), self.lower(layer)] {
            if !exists(&path)? {
                make(&path, 0o700)?;
            }
        }
        Ok(self.lower(layer))
    }

    /// The layers for which [`Self::lower`] exists, by the numbers of their snapshots.
    pub(super) fn own_layers(&self) -> Result<Vec<u64>, Error> {
        let path = self.lowers();
        let entries = match fs::read_dir(&path) {
            Err(error) if is_missing(&error) => return Ok(Vec::new()),
            entries => entries.map_err(Error::io("list", &path))?,
        };
        let mut layers = Vec::new();
        for entry in entries {
            let name = entry.map_err(Error::io("list", &path))?.file_name();
            layers.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        Ok(layers)
    }

    fn record(&self) -> PathBuf {
        self.path.join("record")
    }

    fn fresh(&self) -> PathBuf {
        self.path.join("record.new")
    }

    fn removed(&self) -> PathBuf {
        self.path.join("removed")
    }

    /// Makes the folder and what is in it; not durable yet. `owner` becomes that of `fs`.
    pub(super) fn create(&self, kind: Kind, owner: Option<(u32, u32)>) -> Result<(), Error> {
        make(&self.path, 0o700)?;
        let fs = self.fs();
        make(&fs, 0o755)?;
        if let Some((uid, gid)) = owner.filter(|owner| *owner != (0, 0)) {
            lchown(&fs, Some(uid), Some(gid)).map_err(Error::io("chown", &fs))?;
        }
        if kind == Kind::Active {
            make(&self.work(), 0o711)?;
        }
        Ok(())
    }

    /// Makes again what of the folder's inside is missing (after damage).
    pub(super) fn complete(&self, kind: Kind) -> Result<(), Error> {
        for (path, mode, wanted) in [
            (self.path.clone(), 0o700, true),
            (self.fs(), 0o755, true),
            (self.work(), 0o711, kind == Kind::Active),
        ] {
            if wanted && !exists(&path)? {
                make(&path, mode)?;
            }
        }
        Ok(())
    }

    /// Owner of the root of its files.
    pub(super) fn owner(&self) -> Result<(u32, u32), Error> {
        let fs = self.fs();
        let meta = fs::symlink_metadata(&fs).map_err(Error::io("stat", &fs))?;
        Ok((meta.uid(), meta.gid()))
    }

    /// Writes a version of the record that is not valid yet, and fsyncs it.
    pub(super) fn write_fresh(&self, record: &Record) -> Result<(), Error> {
        Ok(files::write_synced(&self.fresh(), &sealed(record)?)?)
    }

    /// The same without the fsync.
    pub(super) fn write_fresh_unsynced(&self, record: &Record) -> Result<(), Error> {
        let fresh = self.fresh();
        fs::write(&fresh, sealed(record)?).map_err(Error::io("write", &fresh))
    }

    /// Makes the version last written the valid one, durably.
    pub(super) fn accept_fresh(&self) -> Result<(), Error> {
        self.rename_fresh()?;
        Ok(files::sync_dir(&self.path)?)
    }

    /// The same without the fsync.
    pub(super) fn rename_fresh(&self) -> Result<(), Error> {
        Ok(files::rename(&self.fresh(), &self.record())?)
    }

    /// Drops the version that is not valid yet.
    pub(super) fn drop_fresh(&self) {
        let fresh = self.fresh();
        match fs::remove_file(&fresh) {
            Err(error) if !is_missing(&error) => {
                tracing::warn!(path = %fresh.display(), %error, "file not removed");
            }
            _ => {}
        }
    }

    /// Makes `old` the valid record again, or none, after a newer version was written and perhaps
    /// accepted.
    pub(super) fn restore_record(&self, old: Option<&Record>) -> Result<(), Error> {
        self.drop_fresh();
        let now = match self.find()? {
            Found::Record(record) => Some(record.revision),
            Found::Nothing | Found::Removed => None,
            Found::Damaged(_) => Some(0),
        };
        match old {
            // Nothing to do, and on a full disk nothing could be done.
            old if now == old.map(|old| old.revision) => Ok(()),
            Some(old) => {
                self.write_fresh(old)?;
                self.accept_fresh()
            }
            None => self.mark_removed(),
        }
    }

    /// Marks the snapshot as removed, durably. If this fails it is not removed.
    pub(super) fn mark_removed(&self) -> Result<(), Error> {
        let (record, removed) = (self.record(), self.removed());
        match fs::rename(&record, &removed) {
            // The record was lost while we ran; the mark alone matters.
            Err(error) if is_missing(&error) => files::write_synced(&removed, b"")?,
            result => result.map_err(Error::io("rename", &record))?,
        }
        files::sync_dir(&self.path).map_err(|error| {
            self.unmark();
            error.into()
        })
    }

    /// Takes the mark back, as far as possible.
    pub(super) fn unmark(&self) {
        if let Err(error) = fs::rename(self.removed(), self.record()) {
            tracing::warn!(path = %self.path.display(), %error, "removal not taken back");
        }
    }

    /// Reads what the folder says.
    pub(super) fn find(&self) -> Result<Found, Error> {
        if exists(&self.removed())? {
            return Ok(Found::Removed);
        }
        let path = self.record();
        match fs::symlink_metadata(&path) {
            Err(error) if is_missing(&error) => return Ok(Found::Nothing),
            Err(error) => return Err(Error::io("stat", &path)(error)),
            Ok(meta) if !meta.is_file() || meta.len() > MAX_RECORD => {
                return Ok(Found::Damaged(Broken::Shape));
            }
            Ok(_) => {}
        }
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        Ok(match codec::unseal(&bytes) {
            Ok(record) => Found::Record(record),
            Err(broken) => Found::Damaged(broken),
        })
    }

    /// Whether the snapshot's files are there.
    pub(super) fn has_files(&self) -> Result<bool, Error> {
        exists(&self.fs())
    }
}

fn sealed(record: &Record) -> Result<Vec<u8>, Error> {
    codec::seal(record)
        .map_err(|broken| Error::Internal(format!("record cannot be written: {broken}")))
}

fn make(path: &Path, mode: u32) -> Result<(), Error> {
    DirBuilder::new()
        .mode(mode)
        .create(path)
        .and_then(|()| {
            // The process's umask must not decide what containers may read.
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            fs::set_permissions(path, mode)
        })
        .map_err(Error::io("create", path))
}

/// Asks the kernel alone: a layer's mount may be there without anyone who serves it.
fn exists(path: &Path) -> Result<bool, Error> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
    match statx(CWD, path, flags, StatxFlags::empty()) {
        Ok(_) | Err(Errno::NOTCONN) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(Error::io("stat", path)(error.into())),
    }
}

fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}
