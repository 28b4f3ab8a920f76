//! Trees of files that a container has written: counting them and deleting them.
//!
//! Who wrote them is not trusted: a tree may be deeper than any path is long, change while it is
//! read, or hold symlinks that lead outside. Neither function recurses or follows a link.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, StatxFlags};
use rustix::io::Errno;

use crate::snapshotter::model::Usage;

/// Folders held open at once while counting; deeper ones are counted but not entered. No path that
/// a program can name in one call is deeper than 2,048.
const DEPTH: usize = 512;
const OPEN_DIR: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Counts inodes and the disk space of a tree, the root included; a file with several names once.
/// What vanishes meanwhile is not counted; mounts below it are not entered.
///
/// # Errors
/// The root cannot be read, or a folder in it.
pub(super) fn usage(root: &Path) -> io::Result<Usage> {
    let top = rustix::fs::openat(CWD, root, OPEN_DIR, Mode::empty())?;
    let stat = rustix::fs::fstat(&top)?;
    let mut count = Count {
        device: stat.st_dev,
        seen: HashSet::new(),
        usage: Usage::default(),
    };
    count.add(&stat);
    let mut open = vec![Dir::new(top)?];
    while let Some(dir) = open.last_mut() {
        let Some(entry) = dir.read() else {
            open.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let parent = dir.fd()?;
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            stat => stat?,
        };
        if !count.add(&stat) || !FileType::from_raw_mode(stat.st_mode).is_dir() {
            continue;
        }
        let child = match rustix::fs::openat(parent, name, OPEN_DIR, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            child => child?,
        };
        if open.len() < DEPTH {
            open.push(Dir::new(child)?);
        }
    }
    Ok(count.usage)
}

/// Deletes a folder and all below it. `last` names a file in it that goes when all else is gone.
/// A folder that does not exist is fine.
///
/// Folders are moved up into `top` before they are emptied, so that depth costs nothing.
///
/// # Errors
/// Something cannot be deleted; what could be is gone.
pub(super) fn delete(top: &Path, last: &CStr) -> io::Result<()> {
    let root = match rustix::fs::openat(CWD, top, OPEN_DIR, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        root => root?,
    };
    let mut moved = 0;
    loop {
        let folders = names(&root, |kind, name| kind.is_dir() && name != last)?;
        if folders.is_empty() {
            break;
        }
        for name in folders {
            empty(&root, &name, &mut moved)?;
            gone(rustix::fs::unlinkat(&root, &name, AtFlags::REMOVEDIR))?;
        }
    }
    for name in names(&root, |_, name| name != last)? {
        gone(rustix::fs::unlinkat(&root, &name, AtFlags::empty()))?;
    }
    gone(rustix::fs::unlinkat(&root, last, AtFlags::empty()))?;
    Ok(gone(rustix::fs::unlinkat(CWD, top, AtFlags::REMOVEDIR))?)
}

/// True if something is mounted at `path`, which lies in a folder of the same file system. Asks
/// no file system for anything, so a dead server cannot make it wait.
///
/// # Errors
/// The path or its parent cannot be looked at.
pub(super) fn is_mounted(path: &Path) -> io::Result<bool> {
    let mount = |path: &Path| {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
        rustix::fs::statx(CWD, path, flags, StatxFlags::MNT_ID).map(|stat| stat.stx_mnt_id)
    };
    match mount(path) {
        Err(Errno::NOENT) => Ok(false),
        Err(Errno::NOTCONN) => Ok(true),
        own => Ok(own? != mount(path.parent().unwrap_or(path))?),
    }
}

struct Count {
    device: u64,
    /// Files of more than one name that were counted.
    seen: HashSet<u64>,
    usage: Usage,
}

impl Count {
    /// Counts one file; false if it lies on another file system.
    fn add(&mut self, stat: &Stat) -> bool {
        if stat.st_dev != self.device {
            return false;
        }
        let is_dir = FileType::from_raw_mode(stat.st_mode).is_dir();
        if is_dir || stat.st_nlink == 1 || self.seen.insert(stat.st_ino) {
            // The unit of st_blocks is 512 bytes whatever the file system's block size is.
            let bytes = u64::try_from(stat.st_blocks)
                .unwrap_or(0)
                .saturating_mul(512);
            self.usage.bytes = self.usage.bytes.saturating_add(bytes);
            self.usage.inodes += 1;
        }
        true
    }
}

/// Empties the folder `name` of `root`; folders in it that are not empty are moved into `root`.
fn empty(root: &OwnedFd, name: &CStr, moved: &mut u64) -> io::Result<()> {
    let dir = rustix::fs::openat(root, name, OPEN_DIR, Mode::empty())?;
    loop {
        let entries = names(&dir, |_, _| true)?;
        if entries.is_empty() {
            return Ok(());
        }
        for entry in entries {
            match rustix::fs::unlinkat(&dir, &entry, AtFlags::empty()) {
                Err(Errno::ISDIR | Errno::PERM) => {}
                result => {
                    gone(result)?;
                    continue;
                }
            }
            match rustix::fs::unlinkat(&dir, &entry, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => {
                    *moved += 1;
                    let to = format!("moved.{}.{moved}", std::process::id());
                    rustix::fs::renameat(&dir, &entry, root, to)?;
                }
                result => gone(result)?,
            }
        }
    }
}

fn names(dir: &OwnedFd, wanted: impl Fn(FileType, &CStr) -> bool) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            kind => kind,
        };
        if wanted(kind, name) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn gone(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_of_two_names_is_counted_once_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::write(root.join("a"), vec![1; 8192]).unwrap();
        fs::hard_link(root.join("a"), root.join("b")).unwrap();
        fs::create_dir(root.join("d")).unwrap();
        symlink("/usr", root.join("d/usr")).unwrap();
        let usage = usage(root).unwrap();
        assert_eq!(usage.inodes, 4, "root, a, d, d/usr");
        assert!((8192..100_000).contains(&usage.bytes), "{}", usage.bytes);
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_counted_and_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("7");
        fs::create_dir_all(top.join("fs")).unwrap();
        fs::write(top.join("removed"), "").unwrap();
        let mut at = rustix::fs::openat(CWD, top.join("fs"), OPEN_DIR, Mode::empty()).unwrap();
        for _ in 0..5000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "d", OPEN_DIR, Mode::empty()).unwrap();
        }
        assert_eq!(usage(&top.join("fs")).unwrap().inodes, DEPTH as u64 + 1);
        delete(&top, c"removed").unwrap();
        assert!(!top.exists());
        delete(&top, c"removed").unwrap();
    }

    #[test]
    fn what_a_link_leads_to_is_not_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let (top, outside) = (dir.path().join("7"), dir.path().join("outside"));
        fs::create_dir_all(&top).unwrap();
        fs::create_dir_all(outside.join("kept")).unwrap();
        symlink(&outside, top.join("link")).unwrap();
        delete(&top, c"removed").unwrap();
        assert!(outside.join("kept").exists() && !top.exists());
    }

    #[test]
    fn a_plain_folder_is_no_mount() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("fs")).unwrap();
        assert!(!is_mounted(&dir.path().join("fs")).unwrap());
        assert!(!is_mounted(&dir.path().join("none")).unwrap());
        assert!(is_mounted(Path::new("/proc")).unwrap());
    }
}
