//! The same server under a stand-in for systemd: a descriptor store that knows nothing of crfs, by
//! `sd_notify(3)` and `sd_listen_fds(3)` alone.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::takeover_rig::{PATIENCE, Readers, Rig, roll};
use crate::takeover_server::program;

/// What `systemd` is to the service: a socket and a few descriptors.
struct Store {
    socket: UnixDatagram,
    name: String,
    fds: Vec<(String, OwnedFd)>,
}

impl Store {
    fn new() -> Self {
        let name = format!("crfs-takeover-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            socket,
            name,
            fds: Vec::new(),
        }
    }

    /// Handles messages up to READY=1.
    fn until_ready(&mut self) {
        while !self
            .message(RecvFlags::empty())
            .unwrap()
            .contains(&"READY=1".to_owned())
        {}
    }

    /// Handles what is there.
    fn drain(&mut self) {
        while self.message(RecvFlags::DONTWAIT).is_some() {}
    }

    fn message(&mut self, flags: RecvFlags) -> Option<Vec<String>> {
        let mut buffer = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let got = rustix::net::recvmsg(&self.socket, &mut parts, &mut beside, flags).ok()?;
        let mut fds: VecDeque<OwnedFd> = beside
            .drain()
            .flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
                _ => Vec::new(),
            })
            .collect();
        let text = String::from_utf8(buffer[..got.bytes].to_vec()).unwrap();
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        let name = lines
            .iter()
            .find_map(|line| line.strip_prefix("FDNAME="))
            .map(str::to_owned);
        if lines.contains(&"FDSTORE=1".to_owned()) {
            assert!(
                lines.contains(&"FDPOLL=0".to_owned()),
                "systemd must not watch it"
            );
            self.fds.push((name.unwrap(), fds.pop_front().unwrap()));
        } else if lines.contains(&"FDSTOREREMOVE=1".to_owned()) {
            self.fds.retain(|(own, _)| Some(own) != name.as_ref());
        }
        Some(lines)
    }

    fn start(&self, rig: &Rig) -> Child {
        let program = program(&std::env::current_exe().unwrap(), rig.folder.root());
        let names: Vec<_> = self.fds.iter().map(|(name, _)| name.as_str()).collect();
        // The shell knows the process number that the program will have.
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""])
            .arg(&program.path)
            .args(&program.args[1..])
            .envs(program.variables)
            .env("NOTIFY_SOCKET", format!("@{}", self.name))
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
        let fds: Vec<c_int> = self.fds.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
        // SAFETY: only system calls between fork and exec.
        unsafe {
            command.pre_exec(move || {
                let high = |fd| libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 200);
                let spare: [c_int; 4] =
                    std::array::from_fn(|at| fds.get(at).map_or(-1, |fd| high(*fd)));
                for (target, fd) in (3..).zip(spare.into_iter().filter(|fd| *fd >= 0)) {
                    libc::dup2(fd, target);
                }
                Ok(())
            });
        }
        command.spawn().unwrap()
    }
}

#[test]
fn systemds_store_serves_as_well() {
    let Some(rig) = Rig::new() else { return };
    let mut store = Store::new();
    let mut child = store.start(&rig);
    store.until_ready();
    let mut names: Vec<_> = store.fds.iter().map(|(name, _)| name.clone()).collect();
    names.sort();
    assert_eq!(names, ["m1", "state"]);
    rig.overlay();
    let readers = Readers::start(&rig.path("merged"));
    let mut dice = 3;
    for _ in 0..10 {
        thread::sleep(Duration::from_millis(roll(&mut dice, 100)));
        child.kill().unwrap();
        child.wait().unwrap();
        store.drain();
        child = store.start(&rig);
        store.until_ready();
    }
    let seen = readers.end();
    eprintln!(
        "10 kills under systemd's protocol, worst stall {:?}",
        seen.worst
    );
    assert!(seen.worst < Duration::from_secs(1));
    rig.unmount();
    assert!(child.wait().unwrap().success());
    store.drain();
    let names: Vec<_> = store.fds.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        ["state"],
        "an unmounted layer is not stored any more"
    );
}
