//! The lines of `/proc/PID/mountinfo` (proc_pid_mountinfo(5); kernel: `fs/proc_namespace.c`).
//!
//! A path in it is octal-escaped: space, tab, newline and backslash as `\040`, `\011`, `\012` and
//! `\134`. Lines that do not have the documented form are skipped: they cannot be ours.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use crate::overlay::DeviceId;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// The kernel's number of the mount; may be reused after an unmount.
    pub id: u32,
    /// The number of the mount it lies on.
    pub parent: u32,
    /// The device number of its file system.
    pub device: DeviceId,
    /// Where it is mounted.
    pub target: PathBuf,
    /// Its file system type, `fuse.crfs` for a layer.
    pub fs_type: String,
    /// Its source; for a layer what it was mounted with.
    pub source: String,
    /// Options of the mount and of its file system, comma-separated.
    pub options: String,
}

/// Every mount of a mountinfo text, in its order.
#[must_use]
pub fn parse(text: &[u8]) -> Vec<MountEntry> {
    text.split(|&byte| byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`: between the
/// options and the lone `-` lie any number of optional fields.
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = device(fields.next()?)?;
    let _root = fields.next()?;
    let target = unescape(fields.next()?);
    let mount_options = fields.next()?;
    fields.find(|field| *field == b"-")?;
    let fs_type = text(fields.next()?);
    let source = text(fields.next()?);
    let options = format!("{},{}", text(mount_options), text(fields.next()?));
    Some(MountEntry {
        id,
        parent,
        device,
        target: PathBuf::from(OsString::from_vec(target)),
        fs_type,
        source,
        options,
    })
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn device(field: &[u8]) -> Option<DeviceId> {
    let (major, minor) = std::str::from_utf8(field).ok()?.split_once(':')?;
    Some(DeviceId {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    })
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

/// Undoes the kernel's octal escapes; a backslash that begins none stands for itself.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match tail {
            [
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ] if *first == b'\\' => {
                plain.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                rest = after;
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_mount_is_read_with_escapes_and_optional_fields() {
        let text = b"36 35 0:98 / /var/lib/cr\\040fs/a\\134b ro,nodev shared:1 master:2 - \
            fuse.crfs sha256:ab ro,user_id=0\ngarbage\n\
            1 0 8:1 / / rw - ext4 /dev/root rw\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(
            mounts[0],
            MountEntry {
                id: 36,
                parent: 35,
                device: DeviceId {
                    major: 0,
                    minor: 98
                },
                target: PathBuf::from("/var/lib/cr fs/a\\b"),
                fs_type: "fuse.crfs".into(),
                source: "sha256:ab".into(),
                options: "ro,nodev,ro,user_id=0".into(),
            }
        );
        assert_eq!(mounts[1].target, PathBuf::from("/"));
    }

    #[test]
    fn escapes_are_undone_once_and_only_when_complete() {
        for (escaped, plain) in [
            (&b"plain"[..], &b"plain"[..]),
            (b"a\\040b\\011c\\012d\\134e", b"a b\tc\nd\\e"),
            (b"\\134040", b"\\040"),
            (b"\\04", b"\\04"),
            (b"\\", b"\\"),
            (b"\\777", b"\\777"),
            (b"\xff\\303\\251", b"\xff\xc3\xa9"),
        ] {
            assert_eq!(unescape(escaped), plain, "{escaped:?}");
        }
    }

    #[test]
    fn cut_lines_are_skipped() {
        let line = b"36 35 0:98 / /mnt rw shared:1 - fuse src rw";
        assert_eq!(parse(line).len(), 1);
        for cut in 0..line.len() - b" rw".len() {
            assert!(parse(&line[..cut]).is_empty(), "{cut}");
        }
    }
}
