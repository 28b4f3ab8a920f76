//! A datagram to a store, as the store reads it. Unknown lines are skipped, as systemd does.

use std::time::Duration;

use super::{Error, FdName, MESSAGE_MAX};

/// What systemd calls a descriptor that came without a name.
const UNNAMED: &str = "stored";

/// What a message wants done with descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Descriptors {
    /// Nothing; those that came along are closed.
    #[default]
    None,
    /// `FDSTORE=1`: keep those that came along under this name.
    Store(FdName),
    /// `FDSTOREREMOVE=1`: close what is kept under this name.
    Remove(FdName),
}

/// One parsed datagram.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    /// `READY=1`: start-up is over.
    pub ready: bool,
    /// `STOPPING=1`: the service ends because it wants to.
    pub stopping: bool,
    /// `WATCHDOG=1`: a sign of life.
    pub alive: bool,
    /// `WATCHDOG_USEC=`: from now on, silence longer than this is a hang.
    pub watchdog: Option<Duration>,
    /// `STATUS=`: a line for people.
    pub status: Option<String>,
    /// What to do with descriptors.
    pub descriptors: Descriptors,
}

impl Message {
    /// Reads a datagram. `BARRIER=1` needs no field: its descriptor is closed like any other that is
    /// not stored.
    pub fn parse(datagram: &[u8]) -> Result<Self, Error> {
        if datagram.len() > MESSAGE_MAX {
            return Err(Error::Text);
        }
        let text = std::str::from_utf8(datagram).map_err(|_| Error::Text)?;
        let mut message = Self::default();
        let (mut store, mut remove, mut name) = (false, false, None);
        for line in text.lines() {
            match line.split_once('=') {
                Some(("READY", "1")) => message.ready = true,
                Some(("STOPPING", "1")) => message.stopping = true,
                Some(("WATCHDOG", "1")) => message.alive = true,
                Some(("WATCHDOG_USEC", n)) => {
                    message.watchdog = n.parse().ok().map(Duration::from_micros);
                }
                Some(("STATUS", text)) => message.status = Some(text.to_owned()),
                Some(("FDSTORE", "1")) => store = true,
                Some(("FDSTOREREMOVE", "1")) => remove = true,
                Some(("FDNAME", text)) => name = Some(FdName::new(text)?),
                _ => {}
            }
        }
        message.descriptors = match (store, remove, name) {
            (_, true, Some(name)) => Descriptors::Remove(name),
            (true, false, Some(name)) => Descriptors::Store(name),
            (true, false, None) => Descriptors::Store(FdName::new(UNNAMED)?),
            _ => Descriptors::None,
        };
        Ok(message)
    }
}
