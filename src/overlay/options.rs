//! The mounts handed to containerd: a bind of one folder, or an overlay over several.
//!
//! containerd mounts them itself, or hands them to runc. The order of lower folders is the top
//! layer first (kernel `Documentation/filesystems/overlayfs.rst`), and the paths share the long
//! prefix `<root>/snapshots/`, which lets containerd's client shorten them (it changes into that
//! folder for the mount) so that 128 of them fit into the one page of mount options.

use std::path::{Path, PathBuf};

/// One mount as containerd understands it: type, source and fstab-style options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `bind` or `overlay`.
    pub kind: &'static str,
    /// What is bound; `overlay` for an overlay.
    pub source: String,
    /// Options, in order.
    pub options: Vec<String>,
}

/// What the running kernel's overlay understands, found out once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// The kernel knows `index`. It is then switched off, as some distributions switch it on by
    /// default: an index ties an upper folder to the very inodes of its lower folders, which
    /// breaks snapshots that share lowers, and lazy layers have no file handles to put in it.
    pub index: bool,
}

impl Features {
    /// Asks the running kernel.
    #[must_use]
    pub fn detect() -> Self {
        Self {
            index: Path::new("/sys/module/overlay/parameters/index").exists(),
        }
    }

    /// An overlay of `lower` folders, the top one first, at least one; with `upper` and its work
    /// folder it is writable.
    ///
    /// Neither `redirect_dir` nor `metacopy` is given: the kernel's default holds, as it does for
    /// containerd's own overlayfs, and xattrs by which an image could redirect a lookup never
    /// reach a lazy layer.
    #[must_use]
    pub fn overlay(self, lower: &[PathBuf], upper: Option<(&Path, &Path)>) -> Mount {
        let mut options = Vec::with_capacity(4);
        if let Some((upper, work)) = upper {
            options.push(format!("workdir={}", work.display()));
            options.push(format!("upperdir={}", upper.display()));
        }
        let lower: Vec<String> = lower
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        options.push(format!("lowerdir={}", lower.join(":")));
        if self.index {
            options.push("index=off".to_owned());
        }
        Mount {
            kind: "overlay",
            source: "overlay".to_owned(),
            options,
        }
    }
}

/// Whether a mount can be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read and write.
    Write,
    /// Read only.
    Read,
}

/// A bind of one folder: overlay needs two, or a work folder.
#[must_use]
pub fn bind(source: &Path, access: Access) -> Mount {
    let access = match access {
        Access::Write => "rw",
        Access::Read => "ro",
    };
    Mount {
        kind: "bind",
        source: source.display().to_string(),
        options: vec![access.to_owned(), "rbind".to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writable_overlay_has_the_top_layer_first() {
        let lower = [PathBuf::from("/r/3/fs"), PathBuf::from("/r/2/fs")];
        let upper = (Path::new("/r/4/fs"), Path::new("/r/4/work"));
        let mount = Features { index: true }.overlay(&lower, Some(upper));
        assert_eq!(mount.kind, "overlay");
        assert_eq!(
            mount.options,
            [
                "workdir=/r/4/work",
                "upperdir=/r/4/fs",
                "lowerdir=/r/3/fs:/r/2/fs",
                "index=off"
            ]
        );
    }

    #[test]
    fn a_read_only_overlay_has_lower_folders_alone() {
        let lower = [PathBuf::from("/r/3/fs"), PathBuf::from("/r/2/fs")];
        let mount = Features { index: false }.overlay(&lower, None);
        assert_eq!(mount.options, ["lowerdir=/r/3/fs:/r/2/fs"]);
    }

    #[test]
    fn a_bind_says_how_it_may_be_used() {
        assert_eq!(bind(Path::new("/a"), Access::Read).options, ["ro", "rbind"]);
        assert_eq!(
            bind(Path::new("/a"), Access::Write).options,
            ["rw", "rbind"]
        );
    }
}
