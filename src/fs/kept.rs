//! Attaches a session to a device that the keeper also holds, with the handshake in the kept table.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use fuser::Filesystem;

use super::adopt::{self, Attached, Error, Handshake, Options, Progress};
use crate::keeper::protocol::FdName;
use crate::keeper::{self, Mount, Phase, State};
use crate::overlay::{DeviceId, FuseMount};

/// A mounted `/dev/fuse` descriptor, fresh or from a predecessor, and what is kept about it.
#[derive(Debug, Clone)]
pub struct Device {
    /// The descriptor; the mount lives while somebody has it.
    pub fd: Arc<OwnedFd>,
    /// The mount's device number.
    pub id: DeviceId,
    /// Its name in the store.
    pub name: FdName,
    /// Where its handshake is kept.
    pub state: Arc<State>,
}

impl Device {
    /// A fresh mount of which nobody keeps anything: it ends with this process.
    ///
    /// # Errors
    /// No memfd could be made.
    pub fn unkept(mount: FuseMount) -> Result<Self, keeper::Error> {
        Ok(Self {
            fd: Arc::new(mount.fd),
            id: mount.device,
            name: FdName::new("unkept")?,
            state: Arc::new(State::open(Arc::new(State::create()?))?),
        })
    }

    /// Whether a predecessor has served it.
    #[must_use]
    pub fn is_taken_over(&self) -> bool {
        self.state.mount(&self.name).is_some()
    }
}

/// [`adopt::attach`] for the mount called `name`: new to `state` if it was just mounted, else taken
/// over from the server before, which must be gone.
pub fn attach<F: Filesystem>(
    filesystem: F,
    device: BorrowedFd<'_>,
    options: Options,
    state: &State,
    name: &FdName,
) -> Result<Attached<F>, Error> {
    let progress = state.mount(name).map_or(Progress::New, progress);
    adopt::attach(filesystem, device, options, progress, &mut |progress| {
        let (phase, handshake) = match progress {
            Progress::New => return Ok(()),
            Progress::Answering(handshake) => (Phase::Answering, handshake),
            Progress::Answered(handshake) => (Phase::Answered, handshake),
        };
        let mount = Mount {
            phase,
            request: handshake.request.clone(),
            reply: handshake.reply.clone(),
        };
        state.record(name, mount).map_err(io::Error::other)
    })
}

fn progress(mount: Mount) -> Progress {
    let handshake = Handshake {
        request: mount.request,
        reply: mount.reply,
    };
    match mount.phase {
        Phase::Answering => Progress::Answering(handshake),
        Phase::Answered => Progress::Answered(handshake),
    }
}
