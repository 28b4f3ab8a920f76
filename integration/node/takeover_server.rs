//! The server of the take-over tests: this very test program, started by a keeper, with one layer. It
//! does in the small what the daemon does at its start.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use crfs::fs::adopt::Options;
use crfs::fs::kept;
use crfs::keeper::protocol::FdName;
use crfs::keeper::{self, Attach, Folder, Held, Program};

use crate::takeover_fs::TestFs;

/// Names the folder of the test; set for the server only.
pub const FOLDER: &str = "TAKEOVER_FOLDER";

/// The same for the front.
const FRONT: &str = "TAKEOVER_FRONT";

/// Name of the one layer in the store.
pub const LAYER: &str = "m1";

/// How this test program is started as the server: `program` is a copy of it, or itself.
pub fn program(program: &Path, folder: &Path) -> Program {
    let args = [
        "server",
        "--exact",
        "takeover_server::server_process",
        "--nocapture",
    ];
    let args = [&args[..], &["--test-threads=1", "--quiet"]].concat();
    Program {
        path: program.to_owned(),
        folder: "/".into(),
        args: args.iter().map(Into::into).collect(),
        variables: vec![(FOLDER.into(), folder.into())],
    }
}

/// Does nothing in an ordinary test run.
#[test]
fn server_process() {
    if let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) {
        serve(&folder);
    }
}

/// `crfs serve` as a process of its own.
pub fn front_process(folder: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let args = ["--exact", "takeover_server::front", "--nocapture"];
    command.args(args).env(FRONT, folder);
    // SAFETY: plain system calls. The test harness has another thread than the front's; none of them
    // may be the one that a signal kills.
    unsafe {
        command.pre_exec(|| {
            let mut set = std::mem::zeroed();
            libc::sigfillset(&raw mut set);
            libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            Ok(())
        });
    }
    command.spawn().unwrap()
}

/// Does nothing in an ordinary test run.
#[test]
fn front() {
    if let Some(root) = std::env::var_os(FRONT).map(PathBuf::from) {
        let folder = Folder::new(&root).unwrap();
        let attach = Attach {
            folder,
            keeper: env!("CARGO_BIN_EXE_crfs").into(),
        };
        let program = program(&std::env::current_exe().unwrap(), &root);
        std::process::exit(keeper::front(&attach, &program).unwrap());
    }
}

/// What a server is to do: `serve`, or something wrong.
pub fn set_mode(folder: &Path, mode: &str) {
    std::fs::write(folder.join("mode.new"), mode).unwrap();
    std::fs::rename(folder.join("mode.new"), folder.join("mode")).unwrap();
}

fn serve(folder: &Path) {
    let mode = std::fs::read_to_string(folder.join("mode")).unwrap_or_default();
    if mode == "die" {
        std::process::exit(3);
    }
    let held = Arc::new(Held::take_over(folder).unwrap());
    held.guard(Path::new(env!("CARGO_BIN_EXE_crfs"))).unwrap();
    let state = held.state().unwrap();
    let name = FdName::new(LAYER).unwrap();
    let device = match held.layers().into_iter().find(|(own, _)| *own == name) {
        Some((_, device)) => device,
        None => {
            let device = File::options()
                .read(true)
                .write(true)
                .open("/dev/fuse")
                .unwrap();
            mount(&device, &folder.join("layer"));
            held.put(name.clone(), device.into()).unwrap()
        }
    };
    let mut config = fuser::Config::default();
    config.n_threads = Some(2);
    let options = Options {
        acl: fuser::SessionACL::All,
        config,
        resend: mode != "no-resend",
    };
    let tree = TestFs {
        deaf: mode == "deaf",
    };
    let attached = kept::attach(tree, device.as_fd(), options, &state, &name).unwrap();
    assert_eq!(attached.dropped, 0);
    assert_eq!(attached.resend, mode != "no-resend");
    let session = std::thread::spawn(move || attached.session.run().unwrap());
    if mode == "watched" {
        let notify = crfs::keeper::protocol::Notify::from_env().unwrap().unwrap();
        notify
            .watchdog_interval(Duration::from_millis(400))
            .unwrap();
    }
    held.status(&format!("{} layers", held.layers().len()))
        .unwrap();
    held.ready().unwrap();
    while !session.is_finished() {
        let _ = held.watchdog();
        std::thread::sleep(Duration::from_millis(50));
    }
    // Unmounted: nothing is in use any more.
    state.forget(&name).unwrap();
    held.remove(&name).unwrap();
    held.stopping().unwrap();
    std::process::exit(0);
}

fn mount(device: &File, target: &Path) {
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
        device.as_raw_fd()
    );
    let options = std::ffi::CString::new(options).unwrap();
    let flags = rustix::mount::MountFlags::RDONLY;
    rustix::mount::mount("takeover", target, "fuse.takeover", flags, &*options).unwrap();
}
