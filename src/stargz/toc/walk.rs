//! From the TOC's entries to objects of the file system, one at a time.
//!
//! A file is handed out when the entry after its last chunk is seen; until then it is the only
//! thing that is held.

use std::borrow::Cow;
use std::io::Read;

use crate::stargz::error::quoted;
use crate::stargz::toc::chunks::Gather;
use crate::stargz::toc::json::{self, RawEntry};
use crate::stargz::toc::name::{PATH_MAX, clean};
use crate::stargz::toc::xattr::{self, Bearer};
use crate::stargz::toc::{Entry, EntryKind, time};
use crate::stargz::{EntryError, Error, Limits};

/// The one version of the format.
const VERSION: i64 = 1;
/// `type` of a regular file.
const REG: &str = "reg";
/// Permissions, setuid, setgid and sticky.
const MODE_MASK: u32 = 0o7777;
/// Largest id: the one above means "no change" to chown(2).
const MAX_ID: u32 = u32::MAX - 1;
/// Linux's device numbers have 12 and 20 bits (`include/linux/kdev_t.h`).
const MAX_MAJOR: u32 = (1 << 12) - 1;
const MAX_MINOR: u32 = (1 << 20) - 1;

/// What entries are held to.
pub(super) struct Rules<'a> {
    pub limits: &'a Limits,
    /// Where the blob's data ends.
    pub data_end: u64,
    /// Whether every chunk needs a digest.
    pub digests: bool,
}

/// Takes an object; `false` ends the walk.
type Visit<'v> = &'v mut dyn FnMut(Entry<'_>) -> bool;

/// Hands every object of the TOC to `visit`, which ends the walk by `false`: then the result is
/// of no meaning.
pub(super) fn walk(json: &mut dyn Read, rules: &Rules<'_>, visit: Visit<'_>) -> Result<(), Error> {
    let mut walker = Walker {
        rules,
        visit,
        count: 0,
        file: None,
        gather: Gather::default(),
        refused: None,
    };
    let parsed = json::document(json, &mut |raw| walker.entry(raw));
    if let Some(error) = walker.refused {
        return Err(error);
    }
    match parsed? {
        Some(VERSION) => walker.flush().map(drop),
        Some(found) => Err(Error::TocVersion { found }),
        None => Ok(()),
    }
}

struct Walker<'w> {
    rules: &'w Rules<'w>,
    visit: Visit<'w>,
    /// Entries seen.
    count: u32,
    /// The file whose chunks are being gathered.
    file: Option<OpenFile>,
    gather: Gather,
    /// Why the walk ended early.
    refused: Option<Error>,
}

/// A `reg` entry, and its position.
struct OpenFile {
    index: u32,
    raw: RawEntry<'static>,
}

impl Walker<'_> {
    /// Takes the next entry; `false` ends the parse.
    fn entry(&mut self, raw: RawEntry<'_>) -> bool {
        let index = self.count;
        if index >= self.rules.limits.entries {
            self.refused = Some(Error::TocEntries {
                limit: self.rules.limits.entries,
            });
            return false;
        }
        self.count += 1;
        self.next(index, raw).unwrap_or_else(|error| {
            self.refused = Some(error);
            false
        })
    }

    /// Takes the next entry; `false` when `visit` ends the walk.
    fn next(&mut self, index: u32, mut raw: RawEntry<'_>) -> Result<bool, Error> {
        if raw.kind == "chunk" {
            return match self.chunk(&raw) {
                Ok(()) => Ok(true),
                Err(why) => Err(refuse(index, &raw, why)),
            };
        }
        if !self.flush()? {
            return Ok(false);
        }
        if raw.kind == REG {
            self.gather
                .start(&raw, self.rules)
                .map_err(|why| refuse(index, &raw, why))?;
            // What has been used, and need not be copied.
            (raw.chunk_digest, raw.kind) = (Cow::default(), Cow::Borrowed(REG));
            let raw = raw.into_owned();
            self.file = Some(OpenFile { index, raw });
            return Ok(true);
        }
        self.hand_out(index, raw)
    }

    fn chunk(&mut self, raw: &RawEntry<'_>) -> Result<(), EntryError> {
        let file = self.file.as_ref().ok_or(EntryError::ChunkOrphan)?;
        // google/crfs leaves the name of a chunk out, eStargz repeats the file's.
        let name = raw.name.as_deref().unwrap_or_default();
        if !name.is_empty() && file.raw.name.as_deref() != Some(name) {
            return Err(EntryError::ChunkName(quoted(name.as_bytes())));
        }
        self.gather.add(raw, self.rules)
    }

    /// Hands out the file that was being gathered, if there is one.
    fn flush(&mut self) -> Result<bool, Error> {
        match self.file.take() {
            Some(file) => self.hand_out(file.index, file.raw),
            None => Ok(true),
        }
    }

    fn hand_out(&mut self, index: u32, mut raw: RawEntry<'_>) -> Result<bool, Error> {
        let xattrs = std::mem::take(&mut raw.xattrs);
        let entry = entry(&raw, xattrs, &mut self.gather, self.rules);
        let entry = entry.map_err(|why| refuse(index, &raw, why))?;
        Ok((self.visit)(entry))
    }
}

fn refuse(index: u32, raw: &RawEntry<'_>, why: EntryError) -> Error {
    let name = quoted(raw.name.as_deref().unwrap_or_default().as_bytes());
    Error::Entry { index, name, why }
}

/// The object that an entry describes; a file's chunks are in `gather`.
fn entry<'a>(
    raw: &'a RawEntry<'_>,
    xattrs: xattr::Encoded<'a>,
    gather: &'a mut Gather,
    rules: &Rules<'_>,
) -> Result<Entry<'a>, EntryError> {
    let name = raw.name.as_deref().ok_or(EntryError::NameMissing)?;
    let name = clean(Cow::Borrowed(name.as_bytes()))?;
    let link = Cow::Borrowed(raw.link_name.as_bytes());
    let device = (raw.dev_major, raw.dev_minor);
    let kind = match &*raw.kind {
        "dir" => EntryKind::Dir,
        REG => {
            let (size, chunks) = gather.finish(&raw.digest, rules)?;
            EntryKind::File { size, chunks }
        }
        "symlink" => EntryKind::Symlink {
            target: symlink(link)?,
        },
        "hardlink" => EntryKind::HardLink {
            target: hard_link(link, &name)?,
        },
        "char" => {
            let (major, minor) = device_number(device)?;
            EntryKind::Char { major, minor }
        }
        "block" => {
            let (major, minor) = device_number(device)?;
            EntryKind::Block { major, minor }
        }
        "fifo" => EntryKind::Fifo,
        unknown => return Err(EntryError::Type(quoted(unknown.as_bytes()))),
    };
    if name.is_empty() && kind != EntryKind::Dir {
        return Err(EntryError::Root);
    }
    let bearer = match kind {
        EntryKind::Dir => Bearer::Dir,
        EntryKind::File { .. } => Bearer::File,
        _ => Bearer::Other,
    };
    Ok(Entry {
        mode: mode(raw.mode)?,
        uid: id("uid", raw.uid)?,
        gid: id("gid", raw.gid)?,
        mtime: time::parse(&raw.modtime)?,
        xattrs: xattr::admit(xattrs, bearer)?,
        name,
        kind,
    })
}

/// A symlink's target is served as it stands, within what readlink(2) can return.
fn symlink(target: Cow<'_, [u8]>) -> Result<Cow<'_, [u8]>, EntryError> {
    if target.is_empty() {
        return Err(EntryError::LinkEmpty);
    }
    if target.len() > PATH_MAX {
        return Err(EntryError::Path(target.len()));
    }
    if target.contains(&0) {
        return Err(EntryError::Nul(quoted(&target)));
    }
    Ok(target)
}

fn hard_link<'a>(target: Cow<'a, [u8]>, name: &[u8]) -> Result<Cow<'a, [u8]>, EntryError> {
    if target.is_empty() {
        return Err(EntryError::LinkEmpty);
    }
    let target = clean(target)?;
    if target.is_empty() {
        return Err(EntryError::Root);
    }
    if *target == *name {
        return Err(EntryError::LinkSelf);
    }
    Ok(target)
}

/// Bits of the file type, which some writers set, say nothing beside `type`.
fn mode(mode: i64) -> Result<u32, EntryError> {
    let bits = u64::try_from(mode).map_err(|_| EntryError::Mode(mode))?;
    Ok(u32::try_from(bits & u64::from(MODE_MASK)).unwrap_or_default())
}

fn id(key: &'static str, id: u64) -> Result<u32, EntryError> {
    in_range(id, MAX_ID).ok_or(EntryError::Id { key, id })
}

fn device_number((major, minor): (u64, u64)) -> Result<(u32, u32), EntryError> {
    in_range(major, MAX_MAJOR)
        .zip(in_range(minor, MAX_MINOR))
        .ok_or(EntryError::Device { major, minor })
}

fn in_range(value: u64, max: u32) -> Option<u32> {
    u32::try_from(value).ok().filter(|value| *value <= max)
}
