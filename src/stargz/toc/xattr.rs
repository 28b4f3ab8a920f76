//! Which extended attributes of an image are shown, and which are dropped or refused.
//!
//! | attribute | outcome | why |
//! |---|---|---|
//! | `user.*` of a file or directory | kept | an image's own |
//! | `user.*` of anything else | dropped | the kernel has none there (xattr(7)) |
//! | `user.overlay.*`, `trusted.*` | dropped | overlayfs obeys them: a redirect would leave the layer |
//! | `security.capability` | kept if it is a valid version 2 or 3, else refused | file capabilities |
//! | `security.ima` | kept | a signature, checked with the host's keys |
//! | other `security.*` (selinux, evm, SMACK64…) | dropped | the host's policy labels files, not an image |
//! | `system.posix_acl_access` of a file or directory | kept if valid, else refused | an image's own |
//! | `system.posix_acl_default` of a directory | kept if valid, else refused | an image's own |
//! | anything else | dropped | no file system of Linux would take it |
//!
//! Refused means: the layer is. Limits are the kernel's (`include/uapi/linux/limits.h`).

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::stargz::EntryError;
use crate::stargz::error::quoted;

/// `XATTR_NAME_MAX`.
const NAME_MAX: usize = 255;
/// `XATTR_SIZE_MAX`.
const SIZE_MAX: usize = 64 << 10;
/// `XATTR_LIST_MAX`: all names, each with its NUL.
const LIST_MAX: usize = 64 << 10;

/// Attributes as they stand in the TOC: names, and values in base64.
pub(super) type Encoded<'a> = Vec<(Cow<'a, str>, Cow<'a, str>)>;
/// Attributes as they are shown.
pub(super) type Decoded<'a> = Vec<(Cow<'a, [u8]>, Vec<u8>)>;

/// What kind of object carries the attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bearer {
    File,
    Dir,
    Other,
}

enum Policy {
    Keep,
    Drop,
    KeepIf(fn(&[u8]) -> bool),
}

/// Applies the policy, decodes what is kept and sorts it by name.
pub(super) fn admit(encoded: Encoded<'_>, bearer: Bearer) -> Result<Decoded<'_>, EntryError> {
    let mut kept = Vec::new();
    let mut list = 0;
    for (name, value) in encoded {
        if name.is_empty() || name.len() > NAME_MAX || name.contains('\0') {
            return Err(EntryError::XattrName(quoted(name.as_bytes())));
        }
        let policy = policy(&name, bearer);
        if matches!(policy, Policy::Drop) {
            continue;
        }
        list += name.len() + 1;
        if list > LIST_MAX {
            return Err(EntryError::XattrList(list));
        }
        let value = decode(&name, &value)?;
        if matches!(policy, Policy::KeepIf(valid) if !valid(&value)) {
            return Err(EntryError::XattrMalformed(quoted(name.as_bytes())));
        }
        kept.push((bytes(name), value));
    }
    sorted(kept)
}

fn policy(name: &str, bearer: Bearer) -> Policy {
    let content = bearer != Bearer::Other;
    match name {
        "security.capability" => Policy::KeepIf(is_capability),
        "security.ima" => Policy::Keep,
        "system.posix_acl_access" if content => Policy::KeepIf(is_acl),
        "system.posix_acl_default" if bearer == Bearer::Dir => Policy::KeepIf(is_acl),
        _ if name.starts_with("user.overlay.") => Policy::Drop,
        _ if content && name.len() > "user.".len() && name.starts_with("user.") => Policy::Keep,
        _ => Policy::Drop,
    }
}

fn decode(name: &str, value: &str) -> Result<Vec<u8>, EntryError> {
    let largest = SIZE_MAX.div_ceil(3) * 4;
    if value.len() > largest {
        return Err(large(name, value.len() / 4 * 3));
    }
    let value = STANDARD
        .decode(value)
        .map_err(|_| EntryError::XattrBase64(quoted(name.as_bytes())))?;
    if value.len() > SIZE_MAX {
        return Err(large(name, value.len()));
    }
    Ok(value)
}

fn large(name: &str, size: usize) -> EntryError {
    EntryError::XattrLarge {
        name: quoted(name.as_bytes()),
        size,
    }
}

fn sorted(mut kept: Decoded<'_>) -> Result<Decoded<'_>, EntryError> {
    kept.sort_by(|(a, _), (b, _)| a.cmp(b));
    let twice = kept
        .iter()
        .zip(kept.iter().skip(1))
        .find(|((a, _), (b, _))| a == b);
    if let Some(((name, _), _)) = twice {
        return Err(EntryError::XattrTwice(quoted(name)));
    }
    Ok(kept)
}

/// `struct vfs_cap_data` or `vfs_ns_cap_data` (`include/uapi/linux/capability.h`).
fn is_capability(value: &[u8]) -> bool {
    const EFFECTIVE: u32 = 1;
    let Some((magic, _)) = value.split_first_chunk() else {
        return false;
    };
    let magic = u32::from_le_bytes(*magic) & !EFFECTIVE;
    matches!((magic, value.len()), (0x0200_0000, 20) | (0x0300_0000, 24))
}

/// `struct posix_acl_xattr_header` and entries, version 2 (`include/uapi/linux/posix_acl_xattr.h`),
/// in the order and completeness that `fs/posix_acl.c` demands.
fn is_acl(value: &[u8]) -> bool {
    const OWNER: usize = 1 << 0;
    const GROUP: usize = 1 << 2;
    const MASK: usize = 1 << 4;
    const OTHER: usize = 1 << 5;
    const NAMED: usize = 1 << 1 | 1 << 3;
    let Some((version, entries)) = value.split_first_chunk() else {
        return false;
    };
    let entries = entries.as_chunks::<8>();
    if u32::from_le_bytes(*version) != 2 || !entries.1.is_empty() {
        return false;
    }
    let mut seen = 0;
    for [t0, t1, p0, p1, ..] in entries.0 {
        let tag = usize::from(u16::from_le_bytes([*t0, *t1]));
        let known = tag.is_power_of_two() && tag <= OTHER;
        // Tags ascend; only named users and named groups come more than once.
        let in_order = seen < tag || (tag & NAMED != 0 && seen < tag << 1);
        if !known || !in_order || u16::from_le_bytes([*p0, *p1]) > 7 {
            return false;
        }
        seen |= tag;
    }
    let base = OWNER | GROUP | OTHER;
    entries.0.is_empty() || (seen & base == base && (seen & NAMED == 0 || seen & MASK != 0))
}

fn bytes(name: Cow<'_, str>) -> Cow<'_, [u8]> {
    match name {
        Cow::Borrowed(name) => Cow::Borrowed(name.as_bytes()),
        Cow::Owned(name) => Cow::Owned(name.into_bytes()),
    }
}
