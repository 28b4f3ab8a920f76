//! The `[credentials]` section of the configuration: where else than in docker's `config.json`
//! credentials come from.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Sources of credentials. Docker's own file is configured in `[registry]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A `CredentialProviderConfig` in YAML or JSON, or a folder of such files: what kubelet is
    /// given as `--image-credential-provider-config`. Default: none.
    pub provider_config: Option<PathBuf>,
    /// Folder of the plugins that it names: what kubelet is given as
    /// `--image-credential-provider-bin-dir`. Default: none.
    pub provider_bin_dir: Option<PathBuf>,
    /// Longest run of a plugin, and of the one of a kubeconfig. Default: 1 min, as kubelet's.
    #[serde(with = "humantime_serde")]
    pub provider_timeout: Duration,
    /// A kubeconfig by which pull secrets (type `kubernetes.io/dockerconfigjson`) are read.
    /// Default: none.
    pub kubeconfig: Option<PathBuf>,
    /// Namespaces whose pull secrets are read. Default: those of all.
    pub pull_secret_namespaces: Vec<String>,
    /// How old the list of pull secrets may get before it is read again, when credentials are
    /// needed. Default: 1 min.
    #[serde(with = "humantime_serde")]
    pub pull_secrets_refresh: Duration,
    /// File of the key that credentials learned from pulls are sealed with before they are kept,
    /// made when it is first needed. Empty: nothing is kept. Default: `/etc/crfs/credentials.key`.
    pub key_file: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            provider_config: None,
            provider_bin_dir: None,
            provider_timeout: Duration::from_secs(60),
            kubeconfig: None,
            pull_secret_namespaces: Vec::new(),
            pull_secrets_refresh: Duration::from_secs(60),
            key_file: PathBuf::from("/etc/crfs/credentials.key"),
        }
    }
}
