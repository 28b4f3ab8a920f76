//! What is to run as the server, as a front describes it to the keeper.
//!
//! Strings that each end with a zero byte: the program's path, the working folder and the number of
//! arguments, then the arguments, then `NAME=value`. The keeper reads it in `process/spec.rs`.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::ROOT_VARIABLE;
use super::control::MESSAGE_MAX;
use super::protocol::is_protocol_variable;

/// A program to be run as the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The executable, absolute.
    pub path: PathBuf,
    /// Its working folder.
    pub folder: PathBuf,
    /// Its arguments, from `argv[0]` on.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub variables: Vec<(OsString, OsString)>,
}

impl Program {
    /// This very process: for a front that asks for itself to be run, as the server.
    ///
    /// Variables of the store's protocol are left out; each start gets its own.
    pub fn of_this_process() -> io::Result<Self> {
        let ours = |name: &OsString| name == ROOT_VARIABLE || is_protocol_variable(name);
        Ok(Self {
            path: std::env::current_exe()?,
            folder: std::env::current_dir()?,
            args: std::env::args_os().collect(),
            variables: std::env::vars_os()
                .filter(|(name, _)| !ours(name))
                .collect(),
        })
    }

    /// The bytes of a [`Spec`].
    pub(super) fn encode(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut push = |field: &[&[u8]]| {
            field.iter().for_each(|part| bytes.extend_from_slice(part));
            bytes.push(0);
        };
        push(&[self.path.as_os_str().as_bytes()]);
        push(&[self.folder.as_os_str().as_bytes()]);
        push(&[self.args.len().to_string().as_bytes()]);
        self.args.iter().for_each(|arg| push(&[arg.as_bytes()]));
        for (name, value) in &self.variables {
            push(&[name.as_bytes(), b"=", value.as_bytes()]);
        }
        if bytes.len() >= MESSAGE_MAX {
            return Err(io::Error::other(
                "arguments and environment are over 160 KiB",
            ));
        }
        Ok(bytes)
    }
}
