//! Which daemon a command is about: the arguments that all share which need its root folder.

use std::path::PathBuf;

use crate::config::{self, Config};

/// Names a daemon by its root folder.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Place {
    /// The daemon's root folder [default: that of the configuration]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Configuration file [default: /etc/crfs/config.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Place {
    /// Whether the root folder was given.
    pub(super) const fn names_root(&self) -> bool {
        self.root.is_some()
    }

    /// The root folder. The configuration is read only if that is not given.
    pub(super) fn root(&self) -> Result<PathBuf, config::Error> {
        match &self.root {
            Some(root) => Ok(root.clone()),
            None => Ok(self.file()?.root),
        }
    }

    /// The configuration, with the root folder that was given.
    pub(super) fn load(&self) -> Result<Config, config::Error> {
        let mut config = self.file()?;
        config.root = self.root.clone().unwrap_or(config.root);
        Ok(config)
    }

    fn file(&self) -> Result<Config, config::Error> {
        Config::load(self.config.as_deref())
    }
}
