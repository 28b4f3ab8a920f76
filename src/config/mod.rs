//! The one closed, typed configuration: TOML in, one struct out, before anything starts.
//!
//! Each section is declared by the module that it configures; here they are only put together.
//! Unknown keys are errors: a mistyped key that is silently ignored is a setting that silently
//! does not hold. `deploy/config.toml` documents every key, and a test holds it to the struct.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{blob, cri, fs, layer, registry, telemetry};

/// Read if it exists and no other file is named.
const DEFAULT_FILE: &str = "/etc/crfs/config.toml";

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Folder for snapshots, indexes and the cache.
    pub root: PathBuf,
    /// Unix socket that containerd's `proxy_plugins` names.
    pub address: PathBuf,
    /// `[log]`
    pub log: telemetry::Config,
    /// `[registry]`
    pub registry: registry::Config,
    /// `[credentials]`
    pub credentials: registry::CredentialsConfig,
    /// `[cri]`
    pub cri: cri::Config,
    /// `[fetch]`
    pub fetch: blob::fetch::Config,
    /// `[cache]`
    pub cache: blob::cache::Config,
    /// `[fuse]`
    pub fuse: fs::Config,
    /// `[layers]`
    pub layers: layer::Config,
    /// `[profile]`
    pub profile: layer::profile::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/var/lib/crfs"),
            address: PathBuf::from("/run/crfs/crfs.sock"),
            log: telemetry::Config::default(),
            registry: registry::Config::default(),
            credentials: registry::CredentialsConfig::default(),
            cri: cri::Config::default(),
            fetch: blob::fetch::Config::default(),
            cache: blob::cache::Config::default(),
            fuse: fs::Config::default(),
            layers: layer::Config::default(),
            profile: layer::profile::Config::default(),
        }
    }
}

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read configuration {file}: {source}")]
    Read {
        /// Which file.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is not TOML, or has an unknown key or a bad value.
    #[error("configuration {file}: {why}")]
    Parse {
        /// Which file.
        file: PathBuf,
        /// What the parser says, with the line.
        why: String,
    },
    /// A path cannot be used as it is.
    #[error("{key} = {value:?}: {why}")]
    Value {
        /// Which key.
        key: &'static str,
        /// Its value.
        value: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl Config {
    /// Reads `file`, or the default file if it exists, or takes the defaults.
    ///
    /// # Errors
    /// The file is missing though named, unreadable, or malformed.
    pub fn load(file: Option<&Path>) -> Result<Self, Error> {
        let (path, named) = match file {
            Some(path) => (path, true),
            None => (Path::new(DEFAULT_FILE), false),
        };
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !named => Ok(Self::default()),
            Err(source) => Err(Error::Read {
                file: path.to_owned(),
                source,
            }),
        }
    }

    fn parse(text: &str, file: &Path) -> Result<Self, Error> {
        toml::from_str(text).map_err(|error| Error::Parse {
            file: file.to_owned(),
            why: error.to_string(),
        })
    }

    /// Looks at the values that only make sense together or on this node.
    ///
    /// # Errors
    /// A path is relative, or has a character that overlay's mount options cannot carry.
    pub fn check(&self) -> Result<(), Error> {
        let named = [
            ("root", Some(&self.root)),
            ("address", Some(&self.address)),
            ("cri.listen", self.cri.listen.as_ref()),
            ("cri.containerd", Some(&self.cri.containerd)),
        ];
        for (key, path) in named {
            let Some(path) = path else { continue };
            let refuse = |why| Error::Value {
                key,
                value: path.clone(),
                why,
            };
            if !path.is_absolute() {
                return Err(refuse("must be an absolute path"));
            }
        }
        let separators = [',', ':', '\\'];
        let root = self.root.to_string_lossy();
        if root.contains(separators) {
            let why = "has one of , : \\ that overlay's mount options cannot carry";
            return Err(Error::Value {
                key: "root",
                value: self.root.clone(),
                why,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Error> {
        Config::parse(text, Path::new("test.toml"))
    }

    #[test]
    fn nothing_configured_is_the_default() {
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn the_documented_file_is_the_default_in_full() {
        let text = include_str!("../../deploy/config.toml");
        assert_eq!(parse(text).unwrap(), Config::default());
        // Every key of the struct stands in the file, so that none goes undocumented.
        let ours = toml::Table::try_from(Config::default()).unwrap();
        let theirs: toml::Table = text.parse().unwrap();
        assert_eq!(ours, theirs);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let error = parse("[fetch]\nbackgrond = true\n")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("test.toml") && error.contains("line 2"),
            "{error}"
        );
        assert!(error.contains("backgrond"), "{error}");
        assert!(parse("[fetch]\nbackground = 7\n").is_err());
    }

    #[test]
    fn paths_that_overlay_cannot_carry_are_refused() {
        for (root, ok) in [
            ("/a/b", true),
            ("a/b", false),
            ("/a:b", false),
            ("/a,b", false),
        ] {
            let config = Config {
                root: root.into(),
                ..Config::default()
            };
            assert_eq!(config.check().is_ok(), ok, "{root}");
        }
    }
}
