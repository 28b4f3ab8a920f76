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
use crate::stargz::toc::bytes;

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
    // Judged before it is decoded: a value may be as long as the TOC.
    let padding = value.len() - value.trim_end_matches('=').len();
    let size = (value.len() / 4 * 3).saturating_sub(padding);
    if size > SIZE_MAX {
        return Err(EntryError::XattrLarge {
            name: quoted(name.as_bytes()),
            size,
        });
    }
    STANDARD
        .decode(value)
        .map_err(|_| EntryError::XattrBase64(quoted(name.as_bytes())))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &[u8], bearer: Bearer) -> Result<bool, EntryError> {
        let value = STANDARD.encode(value);
        let kept = admit(vec![(name.into(), value.into())], bearer)?;
        Ok(kept.len() == 1)
    }

    fn acl(entries: &[(u16, u16)]) -> Vec<u8> {
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, perm) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(perm.to_le_bytes());
            value.extend(1000_u32.to_le_bytes());
        }
        value
    }

    #[test]
    fn the_policy_is_as_the_table_says() {
        use Bearer::{Dir, File, Other};
        for (name, bearer, kept) in [
            ("user.a", File, true),
            ("user.a", Dir, true),
            ("user.a", Other, false),
            ("user.", File, false),
            ("user", File, false),
            ("user.overlay.redirect", Dir, false),
            ("user.overlay.overlay.opaque", Dir, false),
            ("user.overlayed", Dir, true),
            ("trusted.overlay.redirect", Dir, false),
            ("trusted.overlay.metacopy", File, false),
            ("trusted.overlay.overlay.opaque", Dir, false),
            ("trusted.a", File, false),
            ("security.ima", File, true),
            ("security.selinux", File, false),
            ("security.evm", File, false),
            ("security.SMACK64", File, false),
            ("security.a", File, false),
            ("system.posix_acl_access", Other, false),
            ("system.posix_acl_default", File, false),
            ("system.nfs4_acl", File, false),
            ("btrfs.compression", File, false),
            ("com.apple.quarantine", File, false),
            ("USER.a", File, false),
        ] {
            assert_eq!(one(name, b"/secret", bearer), Ok(kept), "{name} {bearer:?}");
        }
    }

    #[test]
    fn capabilities_are_checked() {
        let v2 = [&0x0200_0001_u32.to_le_bytes()[..], &[0xff; 16]].concat();
        let v3 = [&0x0300_0000_u32.to_le_bytes()[..], &[0; 20]].concat();
        for bearer in [Bearer::File, Bearer::Dir, Bearer::Other] {
            assert_eq!(one("security.capability", &v2, bearer), Ok(true));
            assert_eq!(one("security.capability", &v3, bearer), Ok(true));
        }
        let mut unknown = v2.clone();
        unknown[3] = 4;
        let mut flags = v2.clone();
        flags[0] |= 2;
        let long = vec![2; 64 << 10];
        for bad in [&v2[..19], &v3[..20], &v3[..3], &[], &unknown, &flags, &long] {
            let refused = one("security.capability", bad, Bearer::File);
            assert!(matches!(refused, Err(EntryError::XattrMalformed(_))));
        }
    }

    #[test]
    fn acls_are_checked() {
        let check = |value: &[u8]| one("system.posix_acl_access", value, Bearer::File);
        for good in [
            acl(&[]),
            acl(&[(1, 7), (4, 5), (32, 0)]),
            acl(&[
                (1, 7),
                (2, 6),
                (2, 4),
                (4, 5),
                (8, 1),
                (8, 2),
                (16, 7),
                (32, 4),
            ]),
        ] {
            assert_eq!(check(&good), Ok(true));
        }
        let mut version = acl(&[]);
        version[0] = 1;
        for bad in [
            version,
            acl(&[])[..3].to_vec(),
            acl(&[(1, 7), (4, 5), (32, 0)])[..27].to_vec(),
            acl(&[(1, 7), (4, 5)]),
            acl(&[(1, 7), (4, 5), (32, 8)]),
            acl(&[(4, 5), (1, 7), (32, 0)]),
            acl(&[(1, 7), (1, 7), (4, 5), (32, 0)]),
            acl(&[(1, 7), (2, 7), (4, 5), (32, 0)]),
            acl(&[(1, 7), (4, 5), (32, 0), (64, 0)]),
            acl(&[(0, 7), (1, 7), (4, 5), (32, 0)]),
            acl(&[(1, 7), (3, 7), (4, 5), (32, 0)]),
        ] {
            assert!(
                matches!(check(&bad), Err(EntryError::XattrMalformed(_))),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn limits_are_the_kernels() {
        let named = |name: &str| one(name, b"", Bearer::File);
        assert_eq!(named(&format!("user.{}", "x".repeat(250))), Ok(true));
        for bad in [&format!("user.{}", "x".repeat(251)), "", "user.\0"] {
            assert!(matches!(named(bad), Err(EntryError::XattrName(_))));
        }
        let sized = |size| one("user.a", &vec![1; size], Bearer::File);
        assert_eq!(sized(SIZE_MAX), Ok(true));
        for above in [SIZE_MAX + 1, SIZE_MAX + 2, 1 << 20] {
            assert!(matches!(sized(above), Err(EntryError::XattrLarge { .. })));
        }
        let many = |count: usize| {
            let one = |i| (format!("user.{i:04}").into(), "".into());
            admit((0..count).map(one).collect(), Bearer::File).map(|kept| kept.len())
        };
        assert_eq!(many(6553), Ok(6553));
        assert_eq!(many(6554), Err(EntryError::XattrList(65_540)));
    }

    #[test]
    fn values_are_base64_and_names_differ() {
        for bad in ["yes", "eWVz=", "eWVz\n", "=", "eWV"] {
            let refused = admit(vec![("user.a".into(), bad.into())], Bearer::File);
            assert!(matches!(refused, Err(EntryError::XattrBase64(_))), "{bad}");
        }
        let pair = |a: &'static str, b: &'static str| {
            admit(
                vec![(a.into(), "".into()), (b.into(), "eWVz".into())],
                Bearer::File,
            )
        };
        assert!(matches!(
            pair("user.a", "user.a"),
            Err(EntryError::XattrTwice(_))
        ));
        let sorted = pair("user.b", "user.a").unwrap();
        let names: Vec<_> = sorted.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, [b"user.a", b"user.b"]);
        assert_eq!(sorted[0].1, b"yes");
    }
}
