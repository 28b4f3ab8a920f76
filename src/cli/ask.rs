//! What all subcommands share that ask a running daemon: where it is, and how to reach it.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cli::place::Place;
use crate::config::Config;
use crate::daemon;
use crate::service::control::Client;

/// Which daemon is asked.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Which {
    #[command(flatten)]
    place: Place,
    /// The daemon's socket [default: what the daemon of the root folder serves on]
    #[arg(long, value_name = "SOCKET")]
    address: Option<PathBuf>,
}

impl Which {
    /// Its root folder and its socket. The configuration is read only where it is needed: a broken one
    /// must not keep anybody from asking.
    pub(super) fn find(&self) -> Result<(PathBuf, PathBuf), Box<dyn std::error::Error>> {
        let root = self.place.root()?;
        let noted = self.address.clone().or_else(|| daemon::address(&root));
        let socket = match noted {
            Some(socket) => socket,
            None => self.place.load()?.address,
        };
        Ok((root, socket))
    }

    /// Its root folder; `None` if a socket alone says which daemon is meant, whichever folder that one has.
    pub(super) fn named_root(&self) -> Result<Option<PathBuf>, crate::config::Error> {
        match self.names_socket() && !self.place.names_root() {
            true => Ok(None),
            false => self.place.root().map(Some),
        }
    }

    /// Whether the socket was given.
    pub(super) const fn names_socket(&self) -> bool {
        self.address.is_some()
    }

    fn socket(&self) -> Result<PathBuf, Box<dyn std::error::Error>> {
        match &self.address {
            Some(socket) => Ok(socket.clone()),
            None => Ok(self.find()?.1),
        }
    }

    /// Its configuration, as far as flags and files tell.
    pub(super) fn load(&self) -> Result<Config, crate::config::Error> {
        let mut config = self.place.load()?;
        config.address = self.address.clone().unwrap_or(config.address);
        Ok(config)
    }

    /// Connects to it and asks.
    pub(super) fn ask<T, F>(
        &self,
        question: impl FnOnce(Client) -> F,
    ) -> Result<T, Box<dyn std::error::Error>>
    where
        F: Future<Output = Result<T, crate::service::control::Error>>,
    {
        ask(&self.socket()?, question)
    }
}

/// Connects to the daemon at `socket` and asks.
pub(super) fn ask<T, F>(
    socket: &Path,
    question: impl FnOnce(Client) -> F,
) -> Result<T, Box<dyn std::error::Error>>
where
    F: Future<Output = Result<T, crate::service::control::Error>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(async { question(Client::connect(socket).await?).await })?)
}

/// A value as people read JSON.
pub(super) fn json(value: &impl Serialize) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(value).map(|text| text + "\n")
}
