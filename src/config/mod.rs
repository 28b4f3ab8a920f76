//! The one closed, typed configuration: TOML in, one struct out, before anything starts.
//!
//! Each section is declared by the module that it configures; here they are only put together.
//! Unknown keys are errors: a mistyped key that is silently ignored is a setting that silently
//! does not hold. `deploy/config.toml` documents every key, and a test holds it to the struct. What is
//! wrong with a file is said all at once ([`Problem`]).

mod names;
mod problems;
mod reload;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::problems::{Section, section};
use crate::{blob, containerd, cri, fs, layer, metrics, registry, telemetry};

pub use problems::Problem;
pub use reload::{Changes, RELOADABLE};

/// Read if it exists and no other file is named.
const DEFAULT_FILE: &str = "/etc/crfs/config.toml";

/// The sections, each with the module that declares it.
static SECTIONS: [Section; 11] = [
    section::<telemetry::Config>("log"),
    section::<metrics::Config>("metrics"),
    section::<registry::Config>("registry"),
    section::<registry::CredentialsConfig>("credentials"),
    section::<containerd::Config>("containerd"),
    section::<cri::Config>("cri"),
    section::<blob::fetch::Config>("fetch"),
    section::<blob::cache::Config>("cache"),
    section::<fs::Config>("fuse"),
    section::<layer::Config>("layers"),
    section::<layer::profile::Config>("profile"),
];

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
    /// `[metrics]`
    pub metrics: metrics::Config,
    /// `[registry]`
    pub registry: registry::Config,
    /// `[credentials]`
    pub credentials: registry::CredentialsConfig,
    /// `[containerd]`
    pub containerd: containerd::Config,
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
            metrics: metrics::Config::default(),
            registry: registry::Config::default(),
            credentials: registry::CredentialsConfig::default(),
            containerd: containerd::Config::default(),
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
    #[error("cannot read configuration {}: {source}", file.display())]
    Read {
        /// Which file.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Things are wrong with the file.
    #[error("configuration {}: {}", file.display(), list(problems))]
    Problems {
        /// Which file.
        file: PathBuf,
        /// All of them, by line.
        problems: Vec<Problem>,
    },
    /// A value cannot be used, whether it comes from the file or from a flag.
    #[error("{0}")]
    Misfit(Misfit),
}

/// A value that can be read but not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// Which key.
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// What is wrong with it.
    pub why: String,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {:?}: {}", self.key, self.value, self.why)
    }
}

/// One problem in the line itself, several in a line each.
fn list(problems: &[Problem]) -> String {
    match problems {
        [one] => one.to_string(),
        all => {
            let each = all.iter().map(|problem| format!("\n  {problem}"));
            format!("{} problems{}", all.len(), each.collect::<String>())
        }
    }
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
        let refuse = |problems| Error::Problems {
            file: file.to_owned(),
            problems,
        };
        let problems = problems::find(text, &SECTIONS);
        if !problems.is_empty() {
            return Err(refuse(problems));
        }
        toml::from_str(text).map_err(|error| {
            refuse(vec![Problem {
                line: 0,
                what: error.to_string(),
            }])
        })
    }

    /// The file that [`Self::load`] reads if none is named.
    #[must_use]
    pub fn default_file() -> &'static Path {
        Path::new(DEFAULT_FILE)
    }

    /// All of it as a file, keys that are not set left out.
    #[must_use]
    pub fn text(&self) -> String {
        // What was read as a configuration can be written as one.
        toml::to_string(self).unwrap_or_default()
    }

    /// Looks at the values that only make sense together or on this node, from the file or from
    /// flags.
    ///
    /// # Errors
    /// The first of [`Self::misfits`].
    pub fn check(&self) -> Result<(), Error> {
        let first = self.misfits().into_iter().next();
        first.map_or(Ok(()), |misfit| Err(Error::Misfit(misfit)))
    }

    /// What cannot be used: paths that are relative or that overlay's mount options cannot carry, a log
    /// level that is none.
    #[must_use]
    pub fn misfits(&self) -> Vec<Misfit> {
        let mut found = Vec::new();
        let mut refuse = |key, value: &dyn fmt::Display, why: &str| {
            let (value, why) = (value.to_string(), why.to_owned());
            found.push(Misfit { key, value, why });
        };
        let named = [
            ("root", Some(&self.root)),
            ("address", Some(&self.address)),
            ("cri.listen", self.cri.listen.as_ref()),
            ("containerd.address", Some(&self.containerd.address)),
        ];
        for (key, path) in named {
            if let Some(path) = path.filter(|path| !path.is_absolute()) {
                refuse(key, &path.display(), "must be an absolute path");
            }
        }
        if self.root.to_string_lossy().contains([',', ':', '\\']) {
            let why = "has one of , : \\ that overlay's mount options cannot carry";
            refuse("root", &self.root.display(), why);
        }
        if let Err(error) = telemetry::check_level(&self.log.level) {
            refuse("log.level", &self.log.level, &error.to_string());
        }
        found
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
    fn every_key_is_documented_in_its_section() {
        let text = include_str!("../../deploy/config.toml");
        let mut section = "";
        let mut documented = Vec::new();
        for line in text.lines() {
            let line = line.trim_start_matches("# ");
            if let Some(name) = line
                .strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'))
            {
                section = name;
            } else if let Some((key, _)) = line.split_once(" = ")
                && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            {
                documented.push((section, key));
            }
        }
        let top = names::fields_of::<Config>();
        for section in &SECTIONS {
            assert!(top.contains(&section.name), "[{}]", section.name);
            for key in (section.keys)() {
                let known = documented.contains(&(section.name, key));
                assert!(known, "deploy/config.toml has no [{}] {key}", section.name);
            }
        }
        for key in top {
            let is_section = SECTIONS.iter().any(|section| section.name == *key);
            assert!(is_section || documented.contains(&("", key)), "{key}");
        }
    }

    #[test]
    fn all_that_is_wrong_is_said_with_its_line_and_what_was_meant() {
        let said = |text: &str| match parse(text) {
            Err(Error::Problems { problems, .. }) => {
                let lines = problems.iter().map(Problem::to_string);
                lines.collect::<Vec<_>>()
            }
            other => panic!("{text}: {other:?}"),
        };
        let text = "rot = \"/x\"\n\n[fetch]\nbackgrond = true\nprefetch = 7\nmax_size = 1\n\n[cahce]\n\n[log]\n\
                    colour = 1\nroot = \"/\"\nformat = \"xml\"\n[metrics]\naddress = \"here\"\n";
        let found = said(text);
        let want: [(&str, &[&str]); 9] = [
            ("line 1:", &["unknown key rot", "did you mean root?"]),
            (
                "line 4:",
                &["unknown key fetch.backgrond", "did you mean background?"],
            ),
            ("line 5:", &["fetch.prefetch:", "boolean"]),
            (
                "line 6:",
                &[
                    "unknown key fetch.max_size",
                    "it belongs below [cache] or [profile]",
                ],
            ),
            (
                "line 8:",
                &["unknown section cahce", "did you mean [cache]?"],
            ),
            (
                "line 11:",
                &["unknown key log.colour", "there are level, format"],
            ),
            (
                "line 12:",
                &["unknown key log.root", "above the first section"],
            ),
            ("line 13:", &["log.format:", "xml"]),
            ("line 15:", &["metrics.address:", "unix:"]),
        ];
        assert_eq!(found.len(), want.len(), "{found:#?}");
        for (found, (line, words)) in found.iter().zip(want) {
            assert!(found.starts_with(line), "{found}");
            assert!(
                words.iter().all(|word| found.contains(word)),
                "{found}: {words:?}"
            );
        }
        let whole = parse(text).unwrap_err().to_string();
        assert!(
            whole.contains("test.toml: 9 problems\n  line 1:"),
            "{whole}"
        );

        let found = said("root = \"a\"\n[cri]\nlisten = \"b\"\n[log]\nlevel = \"chatty\"\n");
        let lines: Vec<_> = found.iter().map(|text| &text[..7]).collect();
        assert_eq!(lines, ["line 1:", "line 3:", "line 5:"], "{found:?}");
        let found = said("a = \nb = 1 2\n[log\n");
        assert!(
            found.len() >= 2 && found[0].starts_with("line 1:"),
            "{found:?}"
        );
        assert!(said("fetch = 7\n")[0].contains("write [fetch]"));
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
