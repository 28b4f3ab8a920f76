//! The descriptors a store hands to a service that it starts.

use std::ffi::OsString;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::FdFlags;

use super::{Error, FIRST_FD, FdName};

/// More descriptors than a process may have (`sysctl_nr_open` by default).
const FDS_MAX: i32 = 1 << 20;

/// Descriptors and their names, in the store's order.
#[derive(Debug, Default)]
pub struct Inherited {
    fds: Vec<(FdName, OwnedFd)>,
}

impl Inherited {
    /// Takes the first descriptor of that name out.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let at = self.fds.iter().position(|(own, _)| own.as_str() == name)?;
        Some(self.fds.swap_remove(at).1)
    }

    /// What was not taken. Several may bear one name.
    pub fn into_rest(self) -> Vec<(FdName, OwnedFd)> {
        self.fds
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.fds.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.fds.is_empty()
    }
}

/// Takes the descriptors handed to this process, by `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES`,
/// and marks them close-on-exec. The first call in a process gets them, later ones get none.
pub fn inherit() -> Result<Inherited, Error> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let variable = |name| std::env::var_os(name).map(OsString::into_string);
    let text = |name| match variable(name) {
        Some(Ok(text)) => Ok(Some(text)),
        None => Ok(None),
        Some(Err(_)) => Err(Error::Inherited(format!("{name} is no text"))),
    };
    let own = std::process::id().to_string();
    if text("LISTEN_PID")?.as_deref() != Some(&own) {
        return Ok(Inherited::default());
    }
    let count = text("LISTEN_FDS")?.unwrap_or_default();
    let names = plan(&count, text("LISTEN_FDNAMES")?.as_deref())?;
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Inherited::default());
    }
    let mut fds = Vec::with_capacity(names.len());
    for (number, name) in (FIRST_FD..).zip(names) {
        // SAFETY: whoever wrote LISTEN_PID for this process gave it these numbers, and `TAKEN` makes
        // sure that they are claimed once. A number that is not open fails in the next call.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        if let Err(errno) = rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC) {
            std::mem::forget(fd);
            return Err(Error::Inherited(format!(
                "descriptor {number} ({name}): {errno}"
            )));
        }
        fds.push((name, fd));
    }
    Ok(Inherited { fds })
}

/// The names of the descriptors from number 3 on.
pub(super) fn plan(count: &str, names: Option<&str>) -> Result<Vec<FdName>, Error> {
    let bad = |what: &str| Error::Inherited(what.to_owned());
    let count: i32 = count.parse().map_err(|_| bad("LISTEN_FDS is no number"))?;
    if !(0..=FDS_MAX).contains(&count) {
        return Err(bad("LISTEN_FDS is out of range"));
    }
    let count = usize::try_from(count).map_err(|_| bad("LISTEN_FDS is out of range"))?;
    let unknown = || FdName::new("unknown");
    match names {
        None => (0..count).map(|_| unknown()).collect(),
        Some("") if count == 0 => Ok(Vec::new()),
        Some(names) => {
            let names: Vec<_> = names
                .split(':')
                .map(|name| {
                    if name.is_empty() {
                        unknown()
                    } else {
                        FdName::new(name)
                    }
                })
                .collect::<Result<_, _>>()?;
            if names.len() != count {
                return Err(bad("LISTEN_FDNAMES does not have LISTEN_FDS names"));
            }
            Ok(names)
        }
    }
}
