//! The `[registry]` section of the configuration: limits and exceptions, all with defaults.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How registries are spoken to. Durations are written as people write them: `"10s"`, `"1m 30s"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Folders, joined by `:`, in which containerd's `HOST/hosts.toml` files are looked for: mirrors,
    /// CAs, client certificates. Read again when they change. Default: `/etc/containerd/certs.d`;
    /// empty is none.
    pub config_path: String,
    /// Hosts (`host` or `host:port`) spoken to over plain HTTP. Loopback hosts always are.
    /// Default: none.
    pub plain_http: Vec<String>,
    /// Host names and addresses, without port, that a redirect or a token service may lead to
    /// although they are loopback, link-local or private. Default: none; a registry or mirror that
    /// is itself on a loopback or private address may lead to others of the same kind.
    pub allow_private: Vec<String>,
    /// Longest wait for a connection, TLS included. Default: 10 s.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Longest wait for the head of an answer, and for the next 16 KiB of its body; after it the
    /// rest is asked for on a fresh connection. Default: 15 s.
    #[serde(with = "humantime_serde")]
    pub progress_timeout: Duration,
    /// How long an operation goes on without progress, retries included, before it fails.
    /// Default: 60 s.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
    /// How often a request is repeated without progress in between. Default: 10.
    pub retries: u32,
    /// Longest pause before a repeated request, also when a registry asks for a longer one.
    /// Default: 20 s.
    #[serde(with = "humantime_serde")]
    pub max_pause: Duration,
    /// Docker's `config.json`. Default: `$DOCKER_CONFIG/config.json`, else
    /// `~/.docker/config.json`.
    pub docker_config: Option<PathBuf>,
    /// Folders, joined by `:`, in which credential helpers are looked for before those of
    /// `$PATH` (which is short under systemd). Default: none.
    pub helper_path: String,
    /// Longest run of a credential helper. Default: 10 s.
    #[serde(with = "humantime_serde")]
    pub helper_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            config_path: "/etc/containerd/certs.d".to_owned(),
            plain_http: Vec::new(),
            allow_private: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            progress_timeout: Duration::from_secs(15),
            deadline: Duration::from_secs(60),
            retries: 10,
            max_pause: Duration::from_secs(20),
            docker_config: None,
            helper_path: String::new(),
            helper_timeout: Duration::from_secs(10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_human_and_unknown_keys_refused() {
        let parse = serde_json::from_str::<Config>;
        let config = parse(r#"{"deadline":"1m 30s","plain_http":["r:5000"]}"#).unwrap();
        assert_eq!(config.deadline, Duration::from_secs(90));
        assert_eq!(config.retries, Config::default().retries);
        assert!(parse(r#"{"deadlines":"1s"}"#).is_err());
    }
}
