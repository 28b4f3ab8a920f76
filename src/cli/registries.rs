//! How registries are spoken to by a command that does so itself.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::{self, Config};
use crate::registry::{Client, DockerConfig};

/// The flags of it.
#[derive(Debug, clap::Args)]
pub(super) struct Registries {
    /// Speak plain HTTP to HOST[:PORT]; loopback hosts need no flag (repeatable)
    #[arg(long, value_name = "HOST")]
    plain_http: Vec<String>,
    /// crfs's configuration file [default: /etc/crfs/config.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Registries {
    /// A client, with the credentials that docker's `config.json` has; and the configuration.
    pub(super) fn open(&self) -> Result<(Client, Config), config::Error> {
        let mut config = Config::load(self.config.as_deref())?;
        let plain = self.plain_http.iter().cloned();
        config.registry.plain_http.extend(plain);
        let credentials = Arc::new(DockerConfig::new(&config.registry));
        Ok((Client::new(config.registry.clone(), credentials), config))
    }
}
