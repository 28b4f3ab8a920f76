//! The server's description in the keeper's hands: read where it is needed, never copied out.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

/// A [`Program`] in the keeper's hands.
///
/// Kept as the message it came in: strings that each end with a zero byte, first the program's path,
/// the working folder and the number of arguments, then the arguments, then `NAME=value`. The program
/// is held open, so that the very same one can be started again after its path was overwritten.
#[derive(Debug)]
pub(super) struct Spec {
    bytes: Vec<u8>,
    path: PathBuf,
    file: OwnedFd,
}

impl Spec {
    /// Reads `bytes` and opens the program, from `running` instead of its path if that is given.
    pub(super) fn open(bytes: Vec<u8>, running: Option<&Path>) -> io::Result<Self> {
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        if bytes.last() != Some(&0) {
            return Err(bad("the description of the server does not end"));
        }
        let path = PathBuf::from(field(&bytes, 0).ok_or_else(|| bad("no program"))?);
        let args = count(&bytes).ok_or_else(|| bad("no number of arguments"))?;
        if !path.is_absolute() || fields(&bytes).count() < args.saturating_add(3) {
            return Err(bad("the description of the server is too short"));
        }
        let file = open_program(running.unwrap_or(&path))?;
        Ok(Self { bytes, path, file })
    }

    /// The same with another program.
    pub(super) fn with_program(&self, path: &Path) -> io::Result<Self> {
        let rest = self.bytes.iter().position(|byte| *byte == 0).unwrap_or(0);
        let rest = self.bytes.get(rest..).unwrap_or_default();
        Self::open([path.as_os_str().as_bytes(), rest].concat(), None)
    }

    /// Whether both are the same program with the same arguments.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        same_file(&self.file, &other.file) && self.args().eq(other.args())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// What to execute: the path while it still is the program, for the process's name, else the
    /// descriptor `file`, a duplicate of the program's.
    pub(super) fn program(&self, file: &OwnedFd) -> PathBuf {
        match open_program(&self.path) {
            Ok(now) if same_file(&now, file) => self.path.clone(),
            _ => format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
        }
    }

    pub(super) fn folder(&self) -> &Path {
        Path::new(field(&self.bytes, 1).unwrap_or(OsStr::new("/")))
    }

    pub(super) fn args(&self) -> impl Iterator<Item = &OsStr> {
        fields(&self.bytes)
            .skip(3)
            .take(count(&self.bytes).unwrap_or(0))
    }

    pub(super) fn variables(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        let from = count(&self.bytes).unwrap_or(0).saturating_add(3);
        fields(&self.bytes).skip(from).filter_map(|variable| {
            let bytes = variable.as_bytes();
            let at = bytes.iter().position(|byte| *byte == b'=')?;
            let (name, value) = bytes.split_at_checked(at)?;
            Some((OsStr::from_bytes(name), OsStr::from_bytes(value.get(1..)?)))
        })
    }
}

fn fields(bytes: &[u8]) -> impl Iterator<Item = &OsStr> {
    let whole = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    whole.split(|byte| *byte == 0).map(OsStr::from_bytes)
}

fn field(bytes: &[u8], at: usize) -> Option<&OsStr> {
    fields(bytes).nth(at)
}

fn count(bytes: &[u8]) -> Option<usize> {
    field(bytes, 2)?.to_str()?.parse().ok()
}

fn open_program(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(
        CWD,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

fn same_file(one: &OwnedFd, other: &OwnedFd) -> bool {
    match (rustix::fs::fstat(one), rustix::fs::fstat(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::keeper::Program;

    fn bytes(path: &str) -> Vec<u8> {
        let variables = [("HOME", "/root"), ("EQ", "a=b"), ("EMPTY", "")];
        let program = Program {
            path: path.into(),
            folder: "/tmp".into(),
            args: ["crfs", "", "a b"].map(OsString::from).to_vec(),
            variables: variables
                .map(|(name, value)| (name.into(), value.into()))
                .to_vec(),
        };
        program.encode().unwrap()
    }

    #[test]
    fn a_description_says_all() {
        let spec = Spec::open(bytes("/bin/sh"), None).unwrap();
        assert_eq!(spec.path(), Path::new("/bin/sh"));
        assert_eq!(spec.folder(), Path::new("/tmp"));
        assert_eq!(spec.args().collect::<Vec<_>>(), ["crfs", "", "a b"]);
        let want = [("HOME", "/root"), ("EQ", "a=b"), ("EMPTY", "")];
        assert!(
            spec.variables()
                .eq(want.map(|(n, v)| (OsStr::new(n), OsStr::new(v))))
        );
        let other = spec.with_program(Path::new("/bin/ls")).unwrap();
        assert_eq!(other.path(), Path::new("/bin/ls"));
        assert!(other.args().eq(spec.args()) && other.variables().eq(spec.variables()));
        assert!(!other.is_like(&spec));
        assert!(
            other
                .with_program(Path::new("/bin/sh"))
                .unwrap()
                .is_like(&spec)
        );
    }

    #[test]
    fn a_damaged_description_is_refused() {
        let cases: [&[u8]; 6] = [
            b"",
            b"/bin/sh",
            b"/bin/sh\0/\0x\0",
            b"/bin/sh\0/\x002\0a\0",
            b"sh\0/\x000\0",
            b"\0",
        ];
        for case in cases {
            assert!(Spec::open(case.to_vec(), None).is_err(), "{case:?}");
        }
        assert!(Spec::open(bytes("/no/such/program"), None).is_err());
    }

    #[test]
    fn an_overwritten_program_is_still_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server");
        std::fs::write(&path, "old").unwrap();
        let spec = Spec::open(bytes(path.to_str().unwrap()), None).unwrap();
        assert_eq!(spec.program(spec.file()), path);
        std::fs::write(folder.path().join("new"), "new").unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(std::fs::read(spec.program(spec.file())).unwrap(), b"old");
    }
}
