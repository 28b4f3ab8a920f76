//! Standard output, whose reader may leave at any time.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write as _};

/// Prints. Somebody who has seen enough (`crfs status | head`) is no error, and no reason to leave off what
/// is under way; a full disk is one.
pub(super) fn print(text: Arguments<'_>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_fmt(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// Prints a line.
pub(super) fn line(text: Arguments<'_>) -> io::Result<()> {
    print(format_args!("{text}\n"))
}
