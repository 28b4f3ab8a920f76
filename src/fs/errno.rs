//! What the kernel is told of each error: the one place where that is decided.

use fuser::Errno;

use crate::fs::Error;

/// The errno of an error.
pub const fn of(error: &Error) -> Errno {
    match error {
        Error::NoEntry => Errno::ENOENT,
        Error::LongName => Errno::ENAMETOOLONG,
        // Not ENOENT and never ESTALE: either would make overlayfs and the VFS drop what they
        // know. The kernel only asks for ids it was given, so this is a damaged request.
        Error::NoNode(_) => Errno::EIO,
        Error::NotFolder(_) => Errno::ENOTDIR,
        Error::NotFile(_) | Error::NotSymlink(_) => Errno::EINVAL,
        Error::NoAttribute => Errno::ENODATA,
        Error::SmallBuffer => Errno::ERANGE,
        Error::Damaged(_) | Error::Content(_) | Error::ShortChunk { .. } | Error::Deadline(_) => {
            Errno::EIO
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{Failure, Ino};

    #[test]
    fn what_applications_look_for_is_told_apart() {
        for (error, errno) in [
            (Error::NoEntry, Errno::ENOENT),
            (Error::NoAttribute, Errno::ENODATA),
            (Error::SmallBuffer, Errno::ERANGE),
            (Error::LongName, Errno::ENAMETOOLONG),
            (Error::NotFolder(Ino::ROOT), Errno::ENOTDIR),
            (Error::Deadline(std::time::Duration::ZERO), Errno::EIO),
            (Error::NoNode(Ino(0)), Errno::EIO),
        ] {
            assert_eq!(of(&error), errno, "{error}");
            let failure = Failure::of(&error);
            assert_eq!(failure.is_some(), errno == Errno::EIO, "{error}");
        }
    }
}
