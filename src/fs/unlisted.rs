//! Folders that a layer puts something into without listing them.
//!
//! To an unpacker such a folder is the one that the layers below have: `tmp/x` alone leaves `/tmp`
//! at 1777. In an overlay the topmost folder speaks for all, and a layer by itself cannot know what
//! is below it. So a mount is told what those folders look like, once, before anybody looks into
//! it; whoever mounts keeps the answer, and gives it to the next mount, so that nothing has to be
//! asked again. Extended attributes are not taken over.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::fs::error::Error;
use crate::fs::index::{Ino, Inode, Kind};
use crate::fs::layer_fs::LayerFs;

/// `d_type` of a folder.
const DT_DIR: u8 = 4;
const ROOT: Ino = Ino(1);

/// The attributes of one such folder, from the layers below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unlisted {
    /// Its node id in the layer.
    pub ino: u64,
    /// Permissions with setuid, setgid and sticky: 0 to 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds since 1970, rounded down.
    pub mtime: i64,
    /// Modification time: nanoseconds, below 10^9.
    pub nanos: u32,
}

/// What a layer lies on.
pub enum Below {
    /// A layer that this process serves; its mount must not be touched from here.
    Layer(Arc<LayerFs>),
    /// A folder of the host.
    Folder(PathBuf),
}

/// What one of the layers below has at a path.
enum Found {
    Folder(Unlisted),
    /// Something else, which hides what is further down.
    Other,
    Nothing,
}

impl Unlisted {
    /// Gives a node these attributes.
    pub(super) const fn apply(&self, node: &mut Inode) {
        node.mode = self.mode;
        node.uid = self.uid;
        node.gid = self.gid;
        node.mtime = self.mtime;
        node.mtime_nanos = self.nanos;
    }

    const fn of(node: &Inode) -> Self {
        Self {
            ino: node.ino.0,
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime,
            nanos: node.mtime_nanos,
        }
    }
}

/// What the unlisted folders of `layer` look like on top of `below`, the topmost first: those of
/// them that anything below has. The root is not one of them.
///
/// # Errors
/// [`Error::Damaged`].
pub fn unlisted(layer: &LayerFs, below: &[Below]) -> Result<Vec<Unlisted>, Error> {
    let mut left = layer.index().summary().implicit_folders;
    let mut lent = Vec::new();
    let mut path: Vec<u8> = Vec::new();
    // Each with its name, and how long the path to its parent is, with the separator.
    let mut folders = vec![(ROOT, 0, Vec::new())];
    while let Some((ino, parent, name)) = folders.pop() {
        path.truncate(parent);
        path.extend_from_slice(&name);
        let node = layer.getattr(ino)?;
        if node.implicit {
            left = left.saturating_sub(1);
            let known = (ino != ROOT).then(|| find(below, &path)).flatten();
            lent.extend(known.map(|known| Unlisted {
                ino: ino.0,
                ..known
            }));
        }
        if left == 0 {
            break;
        }
        if ino != ROOT {
            path.push(b'/');
        }
        layer.readdir(ino, 0, &mut |item| {
            if item.kind == DT_DIR && !matches!(item.name, b"." | b"..") {
                folders.push((item.ino, path.len(), item.name.to_vec()));
            }
            ControlFlow::Continue(())
        })?;
    }
    Ok(lent)
}

/// For [`LayerFs`]: by node id.
pub(super) fn by_ino(all: Vec<Unlisted>) -> HashMap<Ino, Unlisted> {
    all.into_iter().map(|one| (Ino(one.ino), one)).collect()
}

fn find(below: &[Below], path: &[u8]) -> Option<Unlisted> {
    for layer in below {
        let found = match layer {
            Below::Layer(layer) => in_layer(layer, path),
            Below::Folder(root) => in_folder(root, path),
        };
        match found {
            Found::Folder(known) => return Some(known),
            Found::Other => return None,
            Found::Nothing => {}
        }
    }
    None
}

fn in_layer(layer: &LayerFs, path: &[u8]) -> Found {
    let Ok(mut at) = layer.getattr(ROOT) else {
        return Found::Nothing;
    };
    for part in path.split(|byte| *byte == b'/') {
        match layer.lookup(at.ino, part) {
            Ok(node) if matches!(node.kind, Kind::Folder { .. }) => at = node,
            Ok(_) => return Found::Other,
            // What is damaged there is said when somebody looks at it.
            Err(_) => return Found::Nothing,
        }
    }
    Found::Folder(Unlisted::of(&at))
}

fn in_folder(root: &Path, path: &[u8]) -> Found {
    let mut at = root.to_owned();
    let mut last = None;
    for part in path.split(|byte| *byte == b'/') {
        at.push(std::ffi::OsStr::from_bytes(part));
        match std::fs::symlink_metadata(&at) {
            Ok(meta) if meta.is_dir() => last = Some(meta),
            Ok(_) => return Found::Other,
            Err(_) => return Found::Nothing,
        }
    }
    last.map_or(Found::Nothing, |meta| {
        Found::Folder(Unlisted {
            ino: 0,
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: meta.mtime(),
            nanos: u32::try_from(meta.mtime_nsec()).unwrap_or_default(),
        })
    })
}
