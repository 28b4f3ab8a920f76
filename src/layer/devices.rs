//! The FUSE devices of mounted layers: made here, held for a successor, taken over from a predecessor.
//!
//! Fresh and taken-over mounts go one way: [`Devices::open`] yields the device to be served at a
//! target, whoever mounted it, [`Devices::close`] ends the mount and all that is kept about it.
//!
//! # Crash behaviour
//! A server may die between any two steps. A mount whose descriptor was not held yet is dead and
//! replaced; a descriptor without a mount is let go of at the next start; a handshake that was kept for
//! neither is forgotten there too.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::fs::kept::Device;
use crate::keeper::protocol::FdName;
use crate::keeper::{Held, State};
use crate::oci::Digest;
use crate::overlay::{DeviceId, MountEntry, Mounter};

/// What the source of a layer's mount begins with; its digest follows.
const SOURCE: &str = "crfs:";

/// What became of the mounts of lazy layers, for people and for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Health {
    /// Mounts served now.
    pub mounts: u64,
    /// Mounts taken over from a predecessor.
    pub taken_over: u64,
    /// Mounts that were found without a server and without a descriptor: whoever used them has to be
    /// restarted.
    pub lost: u64,
    /// Requests answered with an error that means something is wrong, on the mounts served now.
    pub failures: u64,
    /// Reads of these given up after the deadline.
    pub deadlines: u64,
    /// Requests of these that panicked.
    pub panics: u64,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            mounts,
            taken_over,
            lost,
            failures,
            deadlines,
            panics,
        } = self;
        write!(
            f,
            "{mounts} layers served, {taken_over} taken over, {lost} lost; requests: {failures} failed, \
             {deadlines} over the deadline, {panics} panicked"
        )
    }
}

pub(super) struct Devices {
    mounter: Arc<dyn Mounter>,
    held: Arc<Held>,
    state: Arc<State>,
    /// What a predecessor left, by target, until it is taken over: listing all mounts for each of them
    /// would be most of a start with hundreds.
    left: Mutex<HashMap<PathBuf, DeviceId>>,
    taken_over: AtomicU64,
    lost: AtomicU64,
}

impl Devices {
    /// On what a predecessor left, of which is let go what belongs to no mount any more and is not
    /// `detached`.
    pub(super) fn new(
        mounter: Arc<dyn Mounter>,
        held: Arc<Held>,
        state: Arc<State>,
        detached: &[FdName],
    ) -> Self {
        let devices = Self {
            mounter,
            held,
            state,
            left: Mutex::default(),
            taken_over: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        };
        if let Err(error) = devices.release_unclaimed(detached) {
            tracing::warn!(%error, "descriptors of mounts that are gone may still be held");
        }
        devices
    }

    /// The device to be served at `target`: the one that was mounted there and held, or that of a new
    /// mount of this layer, which is held when this returns.
    pub(super) fn open(&self, target: &Path, layer: &Digest) -> io::Result<Device> {
        let name = name_of(target)?;
        let held = self.held.get(&name);
        if let Some(fd) = held.as_ref().filter(|fd| is_alive(fd))
            && let Some(id) = self.mounted(target)?
        {
            self.taken_over.fetch_add(1, Ordering::Relaxed);
            return Ok(self.device(fd.clone(), id, name));
        }
        if self.close(target)? > 0 && held.is_none() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            tracing::error!(
                target = %target.display(),
                "a mount has lost its server, and nobody kept its descriptor; it is mounted again for new \
                 containers, those that use it have to be restarted"
            );
        }
        let mount = self
            .mounter
            .mount_fuse(target, &format!("{SOURCE}{layer}"))?;
        match self.held.put(name.clone(), mount.fd) {
            Ok(fd) => Ok(self.device(fd, mount.device, name)),
            Err(error) => {
                self.close(target)?;
                Err(io::Error::other(error))
            }
        }
    }

    /// What became of mounts so far; nothing about requests.
    pub(super) fn health(&self) -> Health {
        Health {
            taken_over: self.taken_over.load(Ordering::Relaxed),
            lost: self.lost.load(Ordering::Relaxed),
            ..Health::default()
        }
    }

    /// Whether somebody's request lies in the queue of a predecessor's mount at `target`.
    pub(super) fn is_waited_for(&self, target: &Path) -> bool {
        let held = name_of(target).ok().and_then(|name| self.held.get(&name));
        held.is_some_and(|fd| look(&fd, PollFlags::IN).contains(PollFlags::IN))
    }

    /// Whether a predecessor's mount at `target` waits to be served.
    pub(super) fn is_handed_over(&self, target: &Path) -> bool {
        name_of(target).is_ok_and(|name| self.holds(&name))
    }

    /// Takes down what is mounted of ours at `target`, lets go of its descriptor and forgets what was
    /// kept. Says how many mounts there were.
    pub(super) fn close(&self, target: &Path) -> io::Result<usize> {
        let count = unmount(&*self.mounter, target)?;
        self.release(&name_of(target)?);
        Ok(count)
    }

    /// Takes down what is mounted of ours at `target`. Says whether somebody has a file of it open still: then
    /// its descriptor is held on, until it is [released](Self::release).
    pub(super) fn detach(&self, target: &Path) -> io::Result<bool> {
        unmount(&*self.mounter, target)?;
        let name = name_of(target)?;
        let in_use = self.holds(&name);
        if !in_use {
            self.release(&name);
        }
        Ok(in_use)
    }

    /// Whether a descriptor of that name is held, and something behind it.
    pub(super) fn holds(&self, name: &FdName) -> bool {
        self.held.get(name).is_some_and(|fd| is_alive(&fd))
    }

    /// The device of what was detached, by a predecessor.
    pub(super) fn detached(&self, name: &FdName, id: DeviceId) -> Option<Device> {
        let fd = self.held.get(name)?;
        Some(self.device(fd, id, name.clone()))
    }

    fn device(&self, fd: Arc<OwnedFd>, id: DeviceId, name: FdName) -> Device {
        let state = Arc::clone(&self.state);
        Device {
            fd,
            id,
            name,
            state,
        }
    }

    /// Lets go of a descriptor and forgets what was kept about it.
    pub(super) fn release(&self, name: &FdName) {
        let forgotten = self.state.forget(name);
        if let Err(error) = forgotten.and_then(|()| self.held.remove(name)) {
            tracing::warn!(%name, %error, "a mount that is gone is still kept");
        }
    }

    /// Held descriptors whose mount is gone, and what is kept about such.
    fn release_unclaimed(&self, detached: &[FdName]) -> io::Result<()> {
        let mounts = self.mounter.mounts_below(Path::new("/"))?;
        // Of several at one target the last is on top.
        let mut left: HashMap<_, _> = mounts.iter().map(|m| (&m.target, m)).collect();
        left.retain(|_, top| is_layer(top));
        *self.left.lock() = left
            .into_iter()
            .map(|(target, top)| (target.clone(), top.device))
            .collect();
        let ours = mounts.iter().filter(|mount| is_layer(mount));
        let claimed = ours.filter_map(|mount| name_of(&mount.target).ok());
        let claimed: HashSet<FdName> = claimed.chain(detached.iter().cloned()).collect();
        let held = self.held.layers().into_iter().map(|(name, _)| name);
        let kept: HashSet<FdName> = held.chain(self.state.names()).collect();
        for name in kept.difference(&claimed) {
            tracing::warn!(%name, "let go of a device whose mount is gone");
            self.release(name);
        }
        Ok(())
    }

    /// The device number of the topmost mount at `target`, if it is ours.
    fn mounted(&self, target: &Path) -> io::Result<Option<DeviceId>> {
        let left = self.left.lock().remove(target);
        if left.is_some() {
            return Ok(left);
        }
        let mounts = self.mounter.mounts_below(target)?;
        let top = mounts.iter().rfind(|mount| mount.target == target);
        let ours = top.filter(|mount| is_layer(mount));
        Ok(ours.map(|mount| mount.device))
    }
}

/// Takes down whatever of ours is stacked at `target`, also dead mounts; nothing that somebody else has
/// mounted there. Says how many mounts there were.
///
/// # Errors
/// The mounts could not be listed, or one not taken down.
pub fn unmount(mounter: &dyn Mounter, target: &Path) -> io::Result<usize> {
    let mounts = mounter.mounts_below(target)?;
    let here = mounts.iter().filter(|mount| mount.target == target);
    let ours = here.rev().take_while(|mount| is_layer(mount)).count();
    for _ in 0..ours {
        mounter.unmount(target, true)?;
    }
    Ok(ours)
}

/// Whether it is the mount of a layer, by whatever process.
#[must_use]
pub fn is_layer(mount: &MountEntry) -> bool {
    mount.source.starts_with(SOURCE)
}

/// The store's name for what is mounted at `target`: `layer-<id>` after a snapshot's folder
/// (`<root>/snapshots/<id>/fs`), elsewhere after the path.
pub(super) fn name_of(target: &Path) -> io::Result<FdName> {
    let folder = target.parent().and_then(Path::file_name);
    let id = folder
        .and_then(|name| name.to_str())
        .filter(|name| target.ends_with("fs") && name.bytes().all(|byte| byte.is_ascii_digit()));
    let name = match id {
        Some(id) => format!("layer-{id}"),
        None => format!(
            "layer-{}",
            Digest::of(target.as_os_str().as_encoded_bytes()).hex()
        ),
    };
    FdName::new(&name).map_err(io::Error::other)
}

/// Whether there is a mount behind the descriptor: else `/dev/fuse` reports an error
/// (`fuse_dev_poll`).
fn is_alive(fd: &OwnedFd) -> bool {
    !look(fd, PollFlags::empty()).contains(PollFlags::ERR)
}

/// What `/dev/fuse` reports just now; an error if it cannot be asked.
fn look(fd: &OwnedFd, wanted: PollFlags) -> PollFlags {
    let mut polled = [PollFd::from_borrowed_fd(fd.as_fd(), wanted)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match rustix::event::poll(&mut polled, Some(&now)) {
        Ok(_) => polled
            .iter()
            .fold(PollFlags::empty(), |all, fd| all | fd.revents()),
        Err(_) => PollFlags::ERR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::{Recorder, Step};

    fn devices(mounter: &Arc<Recorder>) -> Devices {
        let held = Arc::new(Held::without_store());
        let state = Arc::new(held.state().unwrap());
        Devices::new(Arc::clone(mounter) as _, held, state, &[])
    }

    #[test]
    fn a_name_is_the_folders_number_or_made_of_the_path() {
        let name = |path: &str| name_of(Path::new(path)).unwrap();
        assert_eq!(name("/r/snapshots/12/fs").as_str(), "layer-12");
        assert_ne!(name("/mnt"), name("/mnt2"));
        assert_ne!(name("/r/snapshots/12/mnt").as_str(), "layer-12");
    }

    #[test]
    fn what_is_held_is_taken_over_and_what_is_lost_is_mounted_anew() {
        let mounter = Arc::new(Recorder::new());
        let target = Path::new("/r/snapshots/7/fs");
        let layer = Digest::of(b"layer");
        let devices = devices(&mounter);
        let first = devices.open(target, &layer).unwrap();
        let again = devices.open(target, &layer).unwrap();
        assert_eq!(first.id, again.id);
        assert_eq!(mounter.steps().len(), 1, "mounted once");

        // Somebody else unmounted it: what is held leads nowhere.
        mounter.unmount(target, true).unwrap();
        assert_ne!(devices.open(target, &layer).unwrap().id, first.id);

        // A successor that was handed nothing replaces the mount.
        let successor = self::devices(&mounter);
        assert!(!successor.is_handed_over(target));
        let third = successor.open(target, &layer).unwrap();
        assert!(successor.is_handed_over(target));
        assert!(!third.is_taken_over());
        assert_eq!(
            (successor.health().lost, successor.health().taken_over),
            (1, 0)
        );
        let lazy = Step::Unmount {
            target: target.to_owned(),
            lazy: true,
        };
        assert_eq!(mounter.steps().iter().filter(|s| **s == lazy).count(), 2);
        assert_eq!(successor.close(target).unwrap(), 1);
        assert!(!successor.is_handed_over(target));
    }

    #[test]
    fn what_belongs_to_no_mount_is_let_go() {
        let mounter = Arc::new(Recorder::new());
        let first = devices(&mounter);
        for id in [1, 2] {
            let target = format!("/r/snapshots/{id}/fs");
            first.open(Path::new(&target), &Digest::of(b"l")).unwrap();
        }
        let gone = Path::new("/r/snapshots/1/fs");
        mounter.unmount(gone, true).unwrap();
        let (held, state) = (Arc::clone(&first.held), Arc::clone(&first.state));
        let detached = [name_of(gone).unwrap()];
        let (mounts, fds) = (Arc::clone(&mounter), Arc::clone(&held));
        let kept = Devices::new(mounts, fds, Arc::clone(&state), &detached);
        assert!(kept.holds(&detached[0]), "open files of it are served on");
        let next = Devices::new(mounter, held, state, &[]);
        assert!(!next.is_handed_over(gone));
        assert!(next.is_handed_over(Path::new("/r/snapshots/2/fs")));
    }
}
