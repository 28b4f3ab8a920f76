//! Which daemon a command is about: the arguments that `status`, `stop`, `upgrade` and `fsck` share.

use std::path::PathBuf;

use crate::config::{self, Config};

/// Names a daemon by its root folder.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// The daemon's root folder [default: that of the configuration]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Configuration file [default: /etc/crfs/config.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Place {
    /// The root folder. The configuration is read only if that is not given.
    pub(super) fn root(self) -> Result<PathBuf, config::Error> {
        match self.root {
            Some(root) => Ok(root),
            None => Ok(Config::load(self.config.as_deref())?.root),
        }
    }
}
