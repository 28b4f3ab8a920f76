//! The descriptors in the keeper's hands, by name.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::keeper::is_layer;
use crate::keeper::protocol::{Error, FdName, NAMES_MAX};

/// One descriptor per name.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    fds: Vec<(FdName, OwnedFd)>,
}

impl Shelf {
    /// Keeps `fd`; one of the same name is closed.
    pub(super) fn put(&mut self, name: FdName, fd: OwnedFd) -> Result<(), Error> {
        if let Some((_, own)) = self.fds.iter_mut().find(|(own, _)| *own == name) {
            *own = fd;
            return Ok(());
        }
        let taken: usize = self.fds.iter().map(|(own, _)| own.as_str().len() + 1).sum();
        if taken + name.as_str().len() + 1 > NAMES_MAX {
            return Err(Error::TooManyNames(name));
        }
        self.fds.push((name, fd));
        Ok(())
    }

    /// Closes what has this name.
    pub(super) fn remove(&mut self, name: &FdName) {
        self.fds.retain(|(own, _)| own != name);
    }

    /// How many layers there are: everything but what belongs to the server itself.
    pub(super) fn layers(&self) -> usize {
        self.fds
            .iter()
            .filter(|(name, _)| is_layer(name.as_str()))
            .count()
    }

    /// Closes the layers whose mount is gone. Looks once; a descriptor that is waited on would wake
    /// the keeper for every request.
    pub(super) fn sweep(&mut self) {
        self.fds
            .retain(|(name, fd)| !is_layer(name.as_str()) || !is_gone(fd));
    }

    /// Names and descriptors, by descriptor number.
    pub(super) fn sorted(&mut self) -> &[(FdName, OwnedFd)] {
        self.fds
            .sort_by_key(|(_, fd)| std::os::fd::AsRawFd::as_raw_fd(fd));
        &self.fds
    }
}

/// `/dev/fuse` reports an error when its mount is gone (`fuse_dev_poll`).
fn is_gone(fd: &OwnedFd) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::empty())];
    let looked = rustix::event::poll(
        &mut polled,
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    );
    looked.is_ok()
        && polled
            .iter()
            .any(|fd| fd.revents().contains(PollFlags::ERR))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::{LISTEN, LISTEN_CRI, STATE};

    fn fd() -> OwnedFd {
        tempfile::tempfile().unwrap().into()
    }

    #[test]
    fn a_name_is_kept_once_and_only_layers_count() {
        let mut shelf = Shelf::default();
        for name in [LISTEN, LISTEN_CRI, STATE, "m1", "m2", "m1"] {
            shelf.put(FdName::new(name).unwrap(), fd()).unwrap();
        }
        assert_eq!((shelf.layers(), shelf.sorted().len()), (2, 5));
        shelf.remove(&FdName::new("m1").unwrap());
        shelf.remove(&FdName::new("m9").unwrap());
        assert_eq!((shelf.layers(), shelf.sorted().len()), (1, 4));
    }

    #[test]
    fn names_that_could_not_be_handed_on_are_refused() {
        let mut shelf = Shelf::default();
        let name = |n: usize| FdName::new(&format!("{n:0>255}")).unwrap();
        let fit = NAMES_MAX / 256;
        for n in 0..fit {
            shelf.put(name(n), fd()).unwrap();
        }
        assert!(matches!(
            shelf.put(name(fit), fd()),
            Err(Error::TooManyNames(_))
        ));
        shelf.put(name(0), fd()).unwrap();
        assert_eq!(shelf.layers(), fit);
    }

    #[test]
    fn what_hung_up_is_swept() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut shelf = Shelf::default();
        shelf.put(FdName::new("m1").unwrap(), writer).unwrap();
        shelf.put(FdName::new("m2").unwrap(), fd()).unwrap();
        shelf.sweep();
        assert_eq!(shelf.layers(), 2);
        drop(reader);
        shelf.sweep();
        assert_eq!(shelf.layers(), 1);
    }
}
