//! containerd's configuration: what it says of crfs, and what it should say.
//!
//! Source: containerd `docs/man/containerd-config.toml.5.md` (`imports`, `proxy_plugins`) and
//! `core/transfer/local/pull.go` (`unpack_config`).

use std::io;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// Where containerd reads it.
pub const FILE: &str = "/etc/containerd/config.toml";
/// Most files that `imports` may lead to.
const MOST: usize = 100;

/// The configuration with everything it imports.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Containerd {
    /// The files that were read, the main one first.
    pub files: Vec<PathBuf>,
    /// Their tables, in the order in which later ones win.
    tables: Vec<Table>,
}

/// Why it cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not TOML.
    #[error("{}: {why}", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// What is wrong with it as far as crfs is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
    /// Whether images still start lazily with it.
    pub is_harmless: bool,
}

impl Containerd {
    /// Reads `file` and what it imports.
    ///
    /// # Errors
    /// One of them cannot be read or is no TOML.
    pub fn read(file: &Path) -> Result<Self, Error> {
        let mut found = Self::default();
        let mut left = vec![file.to_owned()];
        while let Some(path) = left.pop() {
            if found.files.contains(&path) || found.files.len() >= MOST {
                continue;
            }
            let text = std::fs::read_to_string(&path).map_err(|source| Error::Read {
                path: path.clone(),
                source,
            })?;
            let table: Table = text
                .parse()
                .map_err(|error: toml::de::Error| Error::Parse {
                    path: path.clone(),
                    why: error.message().to_owned(),
                })?;
            let mut imports = imports(&path, &table);
            imports.reverse();
            left.extend(imports);
            found.files.push(path);
            found.tables.push(table);
        }
        Ok(found)
    }

    /// What is wrong with it, for a crfs that serves at `address`.
    #[must_use]
    pub fn flaws(&self, address: &Path) -> Vec<Flaw> {
        let Some(plugin) = self.at(&["proxy_plugins", "crfs"]) else {
            return vec![flaw(
                "it has no [proxy_plugins.crfs]: containerd does not know crfs",
                "crfs setup writes it (crfs setup --dry-run shows it first)",
            )];
        };
        let mut flaws = Vec::new();
        let text = |key: &str| plugin.get(key).and_then(Value::as_str).unwrap_or_default();
        if text("type") != "snapshot" {
            flaws.push(flaw(
                &format!("proxy_plugins.crfs has type {:?}", text("type")),
                "write type = \"snapshot\" there",
            ));
        }
        if Path::new(text("address")) != address {
            flaws.push(flaw(
                &format!(
                    "proxy_plugins.crfs has address {:?}, crfs serves {}",
                    text("address"),
                    address.display()
                ),
                &format!(
                    "write address = \"{}\" there, or [address] into crfs's configuration",
                    address.display()
                ),
            ));
        }
        let capabilities = plugin.get("capabilities").and_then(Value::as_array);
        if capabilities.is_some_and(|all| all.iter().any(|one| one.as_str() == Some("rebase"))) {
            flaws.push(flaw(
                "proxy_plugins.crfs has the capability rebase: lazy layers lose their parents",
                "remove capabilities from it, remove the images that were pulled so, pull them again",
            ));
        }
        flaws.extend(self.annotations(plugin));
        flaws.extend(self.unpacking());
        flaws
    }

    /// Whether containerd says which layer of which image is meant.
    fn annotations(&self, plugin: &Value) -> Option<Flaw> {
        let exports = plugin.get("exports");
        let exported =
            exports.and_then(|exports| exports.get("enable_remote_snapshot_annotations"));
        let by_transfer = exported.and_then(Value::as_str) == Some("true");
        let cri = [
            &[
                "plugins",
                "io.containerd.cri.v1.images",
                "disable_snapshot_annotations",
            ][..],
            &[
                "plugins",
                "io.containerd.grpc.v1.cri",
                "containerd",
                "disable_snapshot_annotations",
            ][..],
            &[
                "plugins",
                "cri",
                "containerd",
                "disable_snapshot_annotations",
            ][..],
        ];
        let by_cri = cri
            .into_iter()
            .any(|path| self.at(path).and_then(Value::as_bool) == Some(false));
        if by_transfer || by_cri {
            return None;
        }
        Some(flaw(
            "containerd does not tell crfs which image a layer is of: nothing is lazy",
            "write enable_remote_snapshot_annotations = \"true\" (a string) below [proxy_plugins.crfs.exports] \
             and restart containerd (2.1 or newer)",
        ))
    }

    /// Whether the transfer service, which `ctr image pull` uses, may unpack to crfs.
    fn unpacking(&self) -> Option<Flaw> {
        let path = [
            "plugins",
            "io.containerd.transfer.v1.local",
            "unpack_config",
        ];
        let entries = self.at(&path).and_then(Value::as_array).map(Vec::as_slice);
        let entries = entries.unwrap_or_default();
        let has = |name| {
            let mut names = entries
                .iter()
                .filter_map(|entry| entry.get("snapshotter")?.as_str());
            names.any(|known| known == name)
        };
        if !has("crfs") {
            return Some(Flaw {
                is_harmless: ["io.containerd.grpc.v1.cri", "cri"]
                    .into_iter()
                    .any(|name| self.at(&["plugins", name]).is_some()),
                ..flaw(
                    "no unpack_config of the transfer service names crfs: ctr image pull --snapshotter crfs fails",
                    "crfs setup writes it (crfs setup --dry-run shows it first)",
                )
            });
        }
        (!has("overlayfs")).then(|| Flaw {
            is_harmless: true,
            ..flaw(
                "its unpack_config names crfs alone: ctr image pull without --snapshotter fails",
                "add an unpack_config with snapshotter = \"overlayfs\"",
            )
        })
    }

    /// The value at a path of keys: that of the last file that has one.
    fn at(&self, path: &[&str]) -> Option<&Value> {
        let mut tables = self.tables.iter().rev();
        tables.find_map(|table| {
            let (first, rest) = path.split_first()?;
            let mut value = table.get(*first)?;
            for key in rest {
                value = value.get(*key)?;
            }
            Some(value)
        })
    }
}

fn flaw(what: &str, remedy: &str) -> Flaw {
    Flaw {
        what: what.to_owned(),
        remedy: remedy.to_owned(),
        is_harmless: false,
    }
}

/// The files that a file imports: paths, relative to its folder, whose last part may have a `*`.
pub(super) fn imports(file: &Path, table: &Table) -> Vec<PathBuf> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    let patterns = table.get("imports").and_then(Value::as_array);
    let patterns = patterns.into_iter().flatten().filter_map(Value::as_str);
    let found = patterns.flat_map(|pattern| {
        let path = folder.join(pattern);
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        match name.split_once('*') {
            None => vec![path],
            Some((before, after)) => matching(path.parent().unwrap_or(folder), before, after),
        }
    });
    found.collect()
}

fn matching(folder: &Path, before: &str, after: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let fits = |name: &String| {
        let rest = name.strip_prefix(before);
        rest.is_some_and(|rest| rest.ends_with(after))
    };
    let mut names: Vec<String> = names.filter(fits).collect();
    names.sort();
    names.iter().map(|name| folder.join(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGHT: &str = r#"
version = 3
[proxy_plugins.crfs]
  type = "snapshot"
  address = "/run/crfs/crfs.sock"
  [proxy_plugins.crfs.exports]
    enable_remote_snapshot_annotations = "true"
[plugins."io.containerd.transfer.v1.local"]
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    snapshotter = "overlayfs"
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    snapshotter = "crfs"
"#;

    fn flaws(text: &str) -> Vec<Flaw> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        std::fs::write(&file, text).unwrap();
        let read = Containerd::read(&file).unwrap();
        read.flaws(Path::new("/run/crfs/crfs.sock"))
    }

    #[test]
    fn what_the_readme_says_is_right_and_each_thing_that_is_missing_is_told() {
        let readme = include_str!("../../README.md");
        let example = readme
            .split("```toml\n")
            .nth(1)
            .unwrap()
            .split("```")
            .next()
            .unwrap();
        assert_eq!(flaws(example), [], "the README's own example");
        assert_eq!(flaws(RIGHT), []);
        for (from, to, word) in [
            (
                "[proxy_plugins.crfs]",
                "[proxy_plugins.other]",
                "no [proxy_plugins.crfs]",
            ),
            (
                "type = \"snapshot\"",
                "type = \"content\"",
                "type \"content\"",
            ),
            (
                "/run/crfs/crfs.sock",
                "/run/other.sock",
                "crfs serves /run/crfs/crfs.sock",
            ),
            ("\"true\"", "\"false\"", "which image"),
            (
                "snapshotter = \"crfs\"",
                "snapshotter = \"zfs\"",
                "no unpack_config",
            ),
            (
                "snapshotter = \"overlayfs\"",
                "snapshotter = \"zfs\"",
                "without --snapshotter",
            ),
            ("type =", "capabilities = [\"rebase\"]\ntype =", "rebase"),
        ] {
            let text = RIGHT.replace(
                "[proxy_plugins.crfs.exports]",
                match from {
                    "[proxy_plugins.crfs]" => "[proxy_plugins.other.exports]",
                    _ => "[proxy_plugins.crfs.exports]",
                },
            );
            let found = flaws(&text.replace(from, to));
            assert_eq!(found.len(), 1, "{from} -> {to}: {found:?}");
            assert!(found[0].what.contains(word), "{word}: {found:?}");
            assert_eq!(found[0].is_harmless, word == "without --snapshotter");
        }
    }

    #[test]
    fn what_is_imported_counts_and_the_last_file_wins() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        let main = write(
            "config.toml",
            "version = 3\nimports = [\"conf.d/*.toml\"]\n",
        );
        write("conf.d/10-crfs.toml", RIGHT);
        write("conf.d/notes.txt", "not toml");
        let address = Path::new("/run/crfs/crfs.sock");
        let read = Containerd::read(&main).unwrap();
        assert_eq!((read.files.len(), read.flaws(address)), (2, vec![]));
        let late = "[proxy_plugins.crfs]\ntype = \"snapshot\"\naddress = \"/late.sock\"\n";
        write("conf.d/20-late.toml", late);
        let flaws = Containerd::read(&main).unwrap().flaws(address);
        assert!(
            flaws.iter().any(|flaw| flaw.what.contains("/late.sock")),
            "{flaws:?}"
        );
        write("conf.d/30-bad.toml", "a = [\n");
        let bad = Containerd::read(&main).unwrap_err().to_string();
        assert!(bad.contains("30-bad.toml"), "{bad}");
        // A circle ends.
        write("config.toml", "imports = [\"config.toml\"]\n");
        assert_eq!(Containerd::read(&main).unwrap().files.len(), 1);
    }
}
