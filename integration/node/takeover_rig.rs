//! A keeper, a server, an overlay on its layer, and readers that check every byte.

use std::ffi::CString;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crfs::keeper::{self, Attach, Folder};
use rustix::fs::Advice;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Pid, Signal};

use crate::takeover_fs::{DIRS, FILES, content, inode, size};
use crate::takeover_server::program;

/// One test at a time: two of them would measure each other.
static ALONE: Mutex<()> = Mutex::new(());

/// How long anything may take that is not measured.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Everything of one test, in a mount namespace of its own thread. Dropped, nothing is left.
pub struct Rig {
    pub folder: Folder,
    pub attach: Attach,
    _root: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Rig {
    /// `None`, with a line that says why, where this cannot run.
    pub fn new() -> Option<Self> {
        let alone = ALONE
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            eprintln!("skipped: needs root and /dev/fuse");
            return None;
        }
        if !kernel_repeats_requests() {
            return None;
        }
        let root = tempfile::tempdir().unwrap();
        own_namespace(root.path());
        for name in ["layer", "upper", "work", "merged"] {
            std::fs::create_dir(root.path().join(name)).unwrap();
        }
        let folder = Folder::new(root.path()).unwrap();
        let keeper = PathBuf::from(env!("CARGO_BIN_EXE_crfs"));
        let attach = Attach {
            folder: folder.clone(),
            keeper,
        };
        Some(Self {
            folder,
            attach,
            _root: root,
            _alone: alone,
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.root().join(name)
    }

    /// `crfs serve`, in a thread.
    pub fn front(&self) -> JoinHandle<Result<i32, keeper::Error>> {
        let attach = self.attach.clone();
        let program = program(&std::env::current_exe().unwrap(), self.folder.root());
        thread::spawn(move || keeper::front(&attach, &program))
    }

    /// Starts the front and puts the overlay on the layer once it is served.
    pub fn serve(&self) -> JoinHandle<Result<i32, keeper::Error>> {
        let front = self.front();
        self.until("the server is ready", || self.says("phase") == "ready");
        self.overlay();
        front
    }

    pub fn overlay(&self) {
        let [layer, upper, work, merged] =
            ["layer", "upper", "work", "merged"].map(|name| self.path(name).display().to_string());
        let options = format!("lowerdir={layer},upperdir={upper},workdir={work}");
        let options = CString::new(options).unwrap();
        let flags = MountFlags::empty();
        rustix::mount::mount("overlay", merged, "overlay", flags, &*options).unwrap();
    }

    /// Unmounts both, so that no layer is in use.
    pub fn unmount(&self) {
        for name in ["merged", "layer"] {
            rustix::mount::unmount(self.path(name), UnmountFlags::DETACH).unwrap();
        }
    }

    /// A value of the keeper's state; empty if there is no keeper.
    pub fn says(&self, key: &str) -> String {
        let text = keeper::state(&self.folder).unwrap_or_default();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        value.unwrap_or_default().to_owned()
    }

    pub fn number(&self, key: &str) -> u64 {
        self.says(key).parse().unwrap_or_default()
    }

    pub fn server_pid(&self) -> Option<Pid> {
        let text = std::fs::read_to_string(self.folder.server_pid()).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    }

    pub fn signal_server(&self, signal: Signal) -> Pid {
        let pid = self.server_pid().unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        pid
    }

    /// Waits until a server other than `old` is ready.
    pub fn until_replaced(&self, old: Pid) {
        let old = format!("\npid {}\n", old.as_raw_nonzero());
        self.until("another server is ready", || {
            // One answer for both, lest the keeper acts in between.
            let state = keeper::state(&self.folder).unwrap_or_default();
            state.contains("phase ready\n") && !state.contains(&old)
        });
    }

    pub fn until(&self, what: &str, reached: impl Fn() -> bool) {
        let from = Instant::now();
        while !reached() {
            let state = || keeper::state(&self.folder);
            assert!(
                from.elapsed() < PATIENCE,
                "waited in vain until {what}: {:?}",
                state()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Before the mounts, since a mapping's reader may end this process. Whatever the test left: neither may start the other again.
        let pids = ["keeper", "pid"].map(|key| self.says(key).parse().unwrap_or(0));
        for signal in [Signal::STOP, Signal::KILL] {
            for pid in pids.into_iter().filter_map(Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, signal);
            }
        }
        for name in ["merged", "layer"] {
            let _ = rustix::mount::unmount(self.path(name), UnmountFlags::DETACH);
        }
        let _ = rustix::mount::unmount(self.folder.root(), UnmountFlags::DETACH);
    }
}

fn own_namespace(root: &Path) {
    let flags = rustix::thread::UnshareFlags::NEWNS | rustix::thread::UnshareFlags::FS;
    // SAFETY: this thread gets mounts of its own; no descriptor table is split.
    unsafe { rustix::thread::unshare_unsafe(flags) }.unwrap();
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
    rustix::mount::mount("tmpfs", root, "tmpfs", MountFlags::empty(), None).unwrap();
}

/// Whether the kernel has FUSE_NOTIFY_RESEND; else prints that the test is skipped.
pub fn kernel_repeats_requests() -> bool {
    kernel_has("FUSE_NOTIFY_RESEND")
}

/// Whether the kernel can read files by itself; else prints that the test is skipped.
pub fn kernel_passes_through() -> bool {
    kernel_has("FUSE_PASSTHROUGH")
}

/// Both came with one version.
fn kernel_has(what: &str) -> bool {
    let has = kernel() >= (6, 9);
    if !has {
        println!("skipped: {what} came with kernel 6.9");
    }
    has
}

fn kernel() -> (u32, u32) {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|n| n.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// What readers saw.
#[derive(Debug, Default)]
pub struct Seen {
    pub reads: u64,
    pub worst: Duration,
    pub wrong: Vec<String>,
}

/// Readers of every kind, until [`Readers::end`].
pub struct Readers {
    stop: Arc<AtomicBool>,
    threads: Vec<(&'static str, JoinHandle<Seen>)>,
}

type Check = fn(&Path, &mut u64) -> Result<(), String>;

impl Readers {
    /// Readers of the tree at `root`.
    pub fn start(root: &Path) -> Self {
        let kinds: [(&str, Check); 3] = [
            ("whole files", read_whole),
            ("folders", list),
            ("attributes", stat),
        ];
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (seed, (kind, check)) in (1..).zip(kinds) {
            let (root, stop) = (root.to_owned(), stop.clone());
            let body = move || repeat(&stop, seed, &mut |dice| check(&root, dice));
            threads.push((kind, thread::spawn(body)));
        }
        let file = File::open(root.join("d3/f3")).unwrap();
        let again = stop.clone();
        let held = move || repeat(&again, 99, &mut |dice| read_held(&file, dice));
        threads.push(("a file held open", thread::spawn(held)));
        let map = Mapped::open(&root.join("d4/f4"));
        let again = stop.clone();
        let mapped = move || repeat(&again, 98, &mut |dice| map.check(dice));
        threads.push(("a mapping", thread::spawn(mapped)));
        Self { stop, threads }
    }

    /// Stops them; none may have seen anything wrong, or be stuck.
    pub fn end(self) -> Seen {
        self.stop.store(true, Ordering::SeqCst);
        let from = Instant::now();
        let mut all = Seen::default();
        for (kind, thread) in self.threads {
            while !thread.is_finished() {
                assert!(from.elapsed() < PATIENCE, "a reader of {kind} is stuck");
                thread::sleep(Duration::from_millis(5));
            }
            let seen = thread.join().unwrap();
            assert!(seen.reads > 0, "a reader of {kind} did not read");
            all.reads += seen.reads;
            all.worst = all.worst.max(seen.worst);
            all.wrong
                .extend(seen.wrong.into_iter().map(|what| format!("{kind}: {what}")));
        }
        assert!(
            all.wrong.is_empty(),
            "{} wrong: {:?}",
            all.wrong.len(),
            all.wrong.first()
        );
        all
    }
}

fn repeat(
    stop: &AtomicBool,
    seed: u64,
    check: &mut dyn FnMut(&mut u64) -> Result<(), String>,
) -> Seen {
    let (mut seen, mut dice) = (Seen::default(), seed);
    while !stop.load(Ordering::SeqCst) {
        let from = Instant::now();
        if let Err(what) = check(&mut dice) {
            seen.wrong.push(what);
        }
        seen.worst = seen.worst.max(from.elapsed());
        seen.reads += 1;
    }
    seen
}

/// A number below `limit`.
pub fn roll(dice: &mut u64, limit: u64) -> u64 {
    *dice = dice
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*dice >> 33) % limit
}

/// Not the last one: that is for a server that is deaf.
fn any_file(dice: &mut u64) -> (String, u64) {
    let (dir, file) = (roll(dice, DIRS), roll(dice, FILES - 1));
    (format!("d{dir}/f{file}"), inode(dir, file))
}

fn read_whole(root: &Path, dice: &mut u64) -> Result<(), String> {
    let (name, ino) = any_file(dice);
    let bytes = std::fs::read(root.join(&name)).map_err(|error| format!("{name}: {error}"))?;
    let right = bytes == content(ino, 0, usize::MAX);
    if right {
        Ok(())
    } else {
        Err(format!("{name}: wrong content, {} bytes", bytes.len()))
    }
}

fn list(root: &Path, dice: &mut u64) -> Result<(), String> {
    let dir = roll(dice, DIRS);
    let entries = std::fs::read_dir(root.join(format!("d{dir}"))).map_err(|e| e.to_string())?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(
            entry
                .map_err(|e| e.to_string())?
                .file_name()
                .into_string()
                .unwrap(),
        );
    }
    names.sort();
    let mut want: Vec<_> = (0..FILES).map(|file| format!("f{file}")).collect();
    want.sort();
    if names == want {
        Ok(())
    } else {
        Err(format!("d{dir} has {names:?}"))
    }
}

fn stat(root: &Path, dice: &mut u64) -> Result<(), String> {
    let (name, ino) = any_file(dice);
    let meta = root
        .join(&name)
        .metadata()
        .map_err(|error| format!("{name}: {error}"))?;
    let got = (meta.size(), meta.ino(), meta.mode() & 0o7777);
    if got == (size(ino), ino, 0o644) {
        Ok(())
    } else {
        Err(format!("{name}: {got:?}"))
    }
}

fn read_held(file: &File, dice: &mut u64) -> Result<(), String> {
    let ino = inode(3, 3);
    // Out of the page cache, so that the server is asked.
    rustix::fs::fadvise(file, 0, None, Advice::DontNeed).map_err(|e| e.to_string())?;
    let at = roll(dice, size(ino));
    let mut buffer = vec![0; roll(dice, 20_000) as usize + 1];
    let length = file
        .read_at(&mut buffer, at)
        .map_err(|error| error.to_string())?;
    let right = buffer[..length] == content(ino, at, buffer.len());
    if right {
        Ok(())
    } else {
        Err(format!("wrong content at {at}"))
    }
}

/// A mapped file. A read that fails is SIGBUS, which fails the test in its own way.
struct Mapped {
    file: File,
    map: memmap2::Mmap,
}

impl Mapped {
    fn open(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        // SAFETY: the file is on a read-only file system that never changes.
        let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        Self { file, map }
    }

    fn check(&self, dice: &mut u64) -> Result<(), String> {
        // SAFETY: a shared mapping of a file loses nothing: pages come from the file again.
        unsafe {
            self.map
                .unchecked_advise(memmap2::UncheckedAdvice::DontNeed)
        }
        .unwrap();
        rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed).map_err(|e| e.to_string())?;
        let at = roll(dice, size(inode(4, 4)) - 4096) as usize;
        let right = self.map[at..at + 4096] == content(inode(4, 4), at as u64, 4096);
        if right {
            Ok(())
        } else {
            Err(format!("wrong content at {at}"))
        }
    }
}
