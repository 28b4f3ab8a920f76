//! Attaches a session to a device that the keeper also holds, with the handshake in the kept table.

use std::io;
use std::os::fd::BorrowedFd;

use fuser::Filesystem;

use super::adopt::{self, Attached, Error, Handshake, Options, Progress};
use crate::keeper::protocol::FdName;
use crate::keeper::{Mount, Phase, State};

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
