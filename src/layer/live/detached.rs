//! Layers that were unmounted while files of theirs are open: they are served until the last is closed, by
//! the next server too.
//!
//! # Layout
//! `<root>/detached/<name>`: a sealed [`Note`] of what is served on the descriptor that the store knows by
//! that name. No mount and no snapshot says so any more.
//!
//! # Crash behaviour
//! A note is written before the unmount, and not flushed: open files do not outlive the machine. One whose
//! descriptor is gone, or whose last file is closed, is removed by the next start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::fs::{self as layer_fs, LayerFs};
use crate::keeper::protocol::FdName;
use crate::layer::devices::name_of;
use crate::layer::live::{LiveLayers, Mount, local};
use crate::layer::{LayerRecord, NotLazy};
use crate::overlay::DeviceId;
use crate::store::codec;

/// What is served on a descriptor.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// Device number of the file system.
    major: u32,
    minor: u32,
    layer: LayerRecord,
}

/// The folder of notes, made with the first.
#[derive(Debug, Clone)]
pub(super) struct Notes(PathBuf);

impl Notes {
    pub(super) const fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// Of all notes, what their descriptors are called.
    pub(super) fn names(&self) -> Vec<FdName> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| FdName::new(&name).ok()).collect()
    }

    fn write(&self, name: &FdName, note: &Note) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        let bytes = codec::seal(note).map_err(io::Error::other)?;
        fs::write(self.path(name), bytes)
    }

    /// One that was cut short by a crash is damaged.
    fn read(&self, name: &FdName) -> io::Result<Note> {
        codec::unseal(&fs::read(self.path(name))?).map_err(io::Error::other)
    }

    fn remove(&self, name: &FdName) {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%name, %error, "a note of a layer that is gone stays");
            }
            _ => {}
        }
    }

    fn path(&self, name: &FdName) -> PathBuf {
        self.0.join(name.as_str())
    }
}

impl LiveLayers {
    /// Takes down what is mounted at `target` and was served as `mount`.
    pub(super) async fn take_down(&self, target: &Path, mount: Option<Mount>) -> io::Result<()> {
        let note = mount.as_ref().map(|mount| Note {
            major: mount.served.device().major,
            minor: mount.served.device().minor,
            layer: mount.record.clone(),
        });
        let (devices, notes) = (Arc::clone(&self.devices), self.notes.clone());
        let target = target.to_owned();
        let work = move || {
            let Some(note) = note else {
                return devices.close(&target).map(|_| None);
            };
            let name = name_of(&target)?;
            if let Err(error) = notes.write(&name, &note) {
                tracing::warn!(%name, %error, "open files of this layer would not outlive this server");
            }
            let in_use = devices.detach(&target)?;
            if !in_use {
                notes.remove(&name);
            }
            Ok(in_use.then_some(name))
        };
        let in_use = tokio::task::spawn_blocking(work).await;
        let in_use = in_use.map_err(io::Error::other)??;
        if let (Some(name), Some(mount)) = (in_use, mount) {
            self.serve_on(name, mount);
        }
        Ok(())
    }

    /// Serves what a predecessor had unmounted and its users still have open.
    pub async fn take_over_detached(&self) {
        for name in self.notes.names() {
            if let Err(error) = self.serve_again(&name).await {
                tracing::error!(%name, %error, "files that are open of a removed layer cannot be served");
            }
        }
    }

    async fn serve_again(&self, name: &FdName) -> Result<(), NotLazy> {
        if !self.devices.holds(name) {
            self.forget_detached(name);
            return Ok(());
        }
        let Note {
            major,
            minor,
            layer: record,
        } = self.notes.read(name).map_err(local)?;
        let index = self.index(&record).map_err(local)?;
        let blob = self.blob(&record, &index)?;
        let tree = Arc::new(LayerFs::new(index, Arc::clone(&blob) as _));
        tree.set_unlisted(record.unlisted.clone());
        let device = self.devices.detached(name, DeviceId { major, minor });
        let device = device.ok_or_else(|| local("its descriptor is gone"))?;
        let (here, options) = (Arc::clone(&tree), self.parts.serve.clone());
        let serve = move || layer_fs::serve(&device, here, &options).map_err(local);
        let served = tokio::task::spawn_blocking(serve).await.map_err(local)??;
        let mount = Mount {
            record,
            tree,
            blob,
            served,
            is_started: true,
        };
        self.serve_on(name.clone(), mount);
        Ok(())
    }

    /// Keeps what is served without a mount until nobody has a file of it open.
    fn serve_on(&self, name: FdName, mount: Mount) {
        let layer = mount.record.layer;
        tracing::info!(%layer, %name, "served without a mount until its last file is closed");
        let over = mount.served.over();
        self.detached.lock().insert(name.clone(), mount);
        let me = self.me.clone();
        tokio::spawn(async move {
            over.await;
            if let Some(this) = me.upgrade() {
                this.forget_detached(&name);
            }
        });
    }

    fn forget_detached(&self, name: &FdName) {
        let mount = self.detached.lock().remove(name);
        self.devices.release(name);
        self.notes.remove(name);
        drop(mount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    #[test]
    fn a_note_is_read_as_it_was_written_and_a_damaged_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let notes = Notes::new(folder.path().join("detached"));
        let name = FdName::new("layer-3").unwrap();
        assert!(notes.names().is_empty());
        let layer = LayerRecord {
            image: "registry.example/a:b".to_owned(),
            also: Vec::new(),
            manifest: Digest::of(b"m"),
            layer: Digest::of(b"l"),
            size: 7,
            toc: Digest::of(b"t"),
            unlisted: Vec::new(),
        };
        let note = Note {
            major: 0,
            minor: 9,
            layer: layer.clone(),
        };
        notes.write(&name, &note).unwrap();
        assert_eq!(notes.names(), std::slice::from_ref(&name));
        let read = notes.read(&name).unwrap();
        assert_eq!((read.major, read.minor, read.layer), (0, 9, layer));
        let bytes = fs::read(notes.path(&name)).unwrap();
        fs::write(notes.path(&name), &bytes[..bytes.len() / 2]).unwrap();
        notes.read(&name).unwrap_err();
        notes.remove(&name);
        notes.remove(&name);
        assert!(notes.names().is_empty());
    }
}
