//! What has to change in containerd's configuration for crfs: as little as possible, in a file of its
//! own where containerd takes that.
//!
//! containerd puts imported files over the main one section by section: of two files with one
//! `[plugins."X"]` the later wins whole (`cmd/containerd/server/config`, `mergeConfig`). So a section
//! that somebody has written already is completed where it stands, everything else goes into a drop-in.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml_edit::{
    Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, Value, value,
};

use crate::setup::containerd::{self, Containerd};

/// The plugin that `ctr image pull` and, from 2.1 on, the CRI pull by.
const TRANSFER: &str = "io.containerd.transfer.v1.local";
/// The CRI's settings for images.
const CRI: &str = "io.containerd.cri.v1.images";
/// The CRI's settings before containerd 2.
const OLD_CRI: &str = "io.containerd.grpc.v1.cri";
/// The same in files of version 1.
const FIRST_CRI: &str = "cri";

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Wish {
    /// containerd's configuration.
    pub file: PathBuf,
    /// containerd's version: major and minor.
    pub version: (u32, u32),
    /// crfs's socket.
    pub address: PathBuf,
    /// crfs's root folder.
    pub root: PathBuf,
    /// Whether pods get their images by crfs too.
    pub cri: bool,
    /// The platform, as containerd names it (`linux/amd64`).
    pub platform: String,
}

/// A file that has to change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    /// Which one.
    pub path: PathBuf,
    /// What is in it; `None` if there is no such file.
    pub before: Option<String>,
    /// What is to be in it.
    pub after: String,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be read.
    #[error(transparent)]
    Read(#[from] containerd::Error),
    /// A file has something of another form than containerd knows.
    #[error("{}: {key} is not what containerd takes there; mend that first", path.display())]
    Form {
        /// Which file.
        path: PathBuf,
        /// Which key.
        key: String,
    },
    /// containerd cannot do it.
    #[error(
        "containerd {0}.{1} is too old for crfs: 1.7 for pods and crfs pull, 2.1 for ctr as well"
    )]
    TooOld(u32, u32),
}

impl fmt::Display for Edit {
    /// As a unified diff.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = self.before.as_deref().unwrap_or_default();
        let diff = similar::TextDiff::from_lines(before, &self.after);
        let name = self.path.display().to_string();
        let old = if self.before.is_some() {
            &name
        } else {
            "/dev/null"
        };
        diff.unified_diff().header(old, &name).fmt(f)
    }
}

/// The edits that make `wish` true; none if it is so already.
///
/// # Errors
/// containerd's configuration cannot be read or completed, or it is too old.
pub fn plan(wish: &Wish) -> Result<Vec<Edit>, Error> {
    if wish.version < (1, 7) {
        return Err(Error::TooOld(wish.version.0, wish.version.1));
    }
    let read = match wish.file.exists() {
        true => Containerd::read(&wish.file)?,
        false => Containerd::default(),
    };
    let mut files = Files::open(&read)?;
    let format = files.format(wish);
    let drop_in = drop_in_path(&wish.file);
    files.ensure(&drop_in, &heading(format))?;
    for (paths, fill) in wanted(wish, format) {
        let at = files.holder(paths).unwrap_or_else(|| drop_in.clone());
        let document = files.document(&at)?;
        fill(document, wish).map_err(|key| Error::Form { path: at, key })?;
    }
    files.import(wish, &drop_in, format)?;
    Ok(files.edits())
}

/// The drop-in beside containerd's configuration.
#[must_use]
pub fn drop_in_path(file: &Path) -> PathBuf {
    let folder = file.parent().unwrap_or(Path::new("/"));
    folder.join("conf.d/crfs.toml")
}

/// What a file of a version begins with.
///
/// One of version 1 says none: containerd 1.7 takes the highest of all files, and with any other refuses
/// names that only version 1 knows, like the `disabled_plugins = ["cri"]` of Docker's package.
fn heading(format: i64) -> String {
    match format {
        ..2 => String::new(),
        _ => format!("version = {format}\n"),
    }
}

/// Fills a section; the key that is in the way if it cannot.
type Fill = fn(&mut DocumentMut, &Wish) -> Result<(), String>;

/// The sections that are wanted, each with those beside which it has to stand, and how it is filled.
fn wanted(wish: &Wish, format: i64) -> Vec<(&'static [[&'static str; 2]], Fill)> {
    let mut wanted: Vec<(&'static [[&'static str; 2]], Fill)> =
        vec![(&[["proxy_plugins", "crfs"]], proxy_plugin)];
    // Before 2.1 the transfer service tells a snapshotter nothing.
    if wish.version >= (2, 1) {
        wanted.push((&[["plugins", TRANSFER]], unpack_config));
    }
    if wish.cri {
        wanted.push(match (wish.version.0, format) {
            (..2, ..2) => (&[["plugins", FIRST_CRI]], |document, _| {
                cri_before(document, FIRST_CRI)
            }),
            (..2, _) => (&[["plugins", OLD_CRI]], |document, _| {
                cri_before(document, OLD_CRI)
            }),
            // What containerd makes of the old section would be hidden by the new one of another file.
            (_, ..3) => (&[["plugins", CRI], ["plugins", OLD_CRI]], cri_images),
            _ => (&[["plugins", CRI]], cri_images),
        });
    }
    wanted
}

fn proxy_plugin(document: &mut DocumentMut, wish: &Wish) -> Result<(), String> {
    let plugin = section(document, &["proxy_plugins", "crfs"])?;
    set(plugin, "type", "snapshot");
    set(plugin, "address", wish.address.display().to_string());
    // Lazy layers would lose their parents.
    plugin.remove("capabilities");
    let exports = section(document, &["proxy_plugins", "crfs", "exports"])?;
    set(exports, "root", wish.root.display().to_string());
    set(exports, "enable_remote_snapshot_annotations", "true");
    Ok(())
}

/// An entry for each snapshotter that is missing: an own list replaces containerd's own, which is
/// overlayfs.
fn unpack_config(document: &mut DocumentMut, wish: &Wish) -> Result<(), String> {
    let plugin = section(document, &["plugins", TRANSFER])?;
    let list = plugin
        .entry("unpack_config")
        .or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
    for snapshotter in ["overlayfs", "crfs"] {
        let entry = [
            ("platform", wish.platform.as_str()),
            ("snapshotter", snapshotter),
            ("differ", "walking"),
        ];
        match list {
            Item::ArrayOfTables(tables) => {
                let known = |table: &Table| has(table.get("snapshotter"), snapshotter);
                if !tables.iter().any(known) {
                    tables.push(
                        entry
                            .map(|(key, text)| (key, value(text)))
                            .into_iter()
                            .collect(),
                    );
                }
            }
            Item::Value(Value::Array(array)) => {
                let known = |table: &InlineTable| {
                    table.get("snapshotter").and_then(Value::as_str) == Some(snapshotter)
                };
                if !array.iter().filter_map(Value::as_inline_table).any(known) {
                    array.push(entry.into_iter().collect::<InlineTable>());
                }
            }
            _ => return Err(format!("plugins.{TRANSFER:?}.unpack_config")),
        }
    }
    Ok(())
}

/// containerd 2 takes the snapshotter from the section of files of version 2 only if that names runtimes
/// (`plugins/cri/images/plugin.go`, `migrateConfig`), but then rather than from the new section.
fn cri_images(document: &mut DocumentMut, _: &Wish) -> Result<(), String> {
    let images = section(document, &["plugins", CRI])?;
    set(images, "snapshotter", "crfs");
    let plugins = section(document, &["plugins"])?;
    let old = plugins.get_mut(OLD_CRI).and_then(Item::as_table_like_mut);
    let old = old.and_then(|old| old.get_mut("containerd")?.as_table_like_mut());
    if let Some(old) = old.filter(|old| old.contains_key("snapshotter")) {
        set(old, "snapshotter", "crfs");
    }
    Ok(())
}

fn cri_before(document: &mut DocumentMut, plugin: &str) -> Result<(), String> {
    let images = section(document, &["plugins", plugin, "containerd"])?;
    set(images, "snapshotter", "crfs");
    set(images, "disable_snapshot_annotations", false);
    Ok(())
}

/// Sets a key. One that is there keeps its indentation and its comment, and is left alone if it says so already.
fn set(table: &mut dyn TableLike, key: &str, wanted: impl Into<Value>) {
    let mut wanted = wanted.into();
    let Some(Item::Value(there)) = table.get_mut(key) else {
        table.insert(key, Item::Value(wanted));
        return;
    };
    wanted.decor_mut().clone_from(there.decor());
    if (wanted.as_str(), wanted.as_bool()) != (there.as_str(), there.as_bool()) {
        *there = wanted;
    }
}

fn has(item: Option<&Item>, text: &str) -> bool {
    item.and_then(Item::as_str) == Some(text)
}

/// The table at a path, made if it is missing; tables on the way are made without a heading.
fn section<'a>(
    document: &'a mut DocumentMut,
    path: &[&str],
) -> Result<&'a mut dyn TableLike, String> {
    let mut item = document.as_item_mut();
    for (depth, key) in path.iter().enumerate() {
        let is_last = depth + 1 == path.len();
        let table = item.as_table_like_mut().ok_or_else(|| (*key).to_owned())?;
        item = table.entry(key).or_insert_with(|| {
            let mut table = Table::new();
            table.set_implicit(!is_last);
            Item::Table(table)
        });
    }
    item.as_table_like_mut().ok_or_else(|| path.join("."))
}

/// The files of a configuration while they are changed.
struct Files(Vec<OpenFile>);

struct OpenFile {
    path: PathBuf,
    before: Option<String>,
    document: DocumentMut,
}

impl Files {
    fn open(read: &Containerd) -> Result<Self, Error> {
        let mut files = Self(Vec::new());
        for path in &read.files {
            files.ensure(path, "")?;
        }
        Ok(files)
    }

    /// Opens a file, or begins it with `text` if it is not there.
    fn ensure(&mut self, path: &Path, text: &str) -> Result<(), Error> {
        if self.0.iter().any(|file| file.path == path) {
            return Ok(());
        }
        let failed = |why: String| containerd::Error::Parse {
            path: path.to_owned(),
            why,
        };
        let before = match std::fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error.to_string()).into()),
        };
        let text = before.as_deref().unwrap_or(text);
        let document = text
            .parse::<DocumentMut>()
            .map_err(|error| failed(error.to_string()))?;
        self.0.push(OpenFile {
            path: path.to_owned(),
            before,
            document,
        });
        Ok(())
    }

    fn document(&mut self, path: &Path) -> Result<&mut DocumentMut, Error> {
        let found = self.0.iter_mut().find(|file| file.path == path);
        found
            .map(|file| &mut file.document)
            .ok_or_else(|| Error::Form {
                path: path.to_owned(),
                key: "it".to_owned(),
            })
    }

    /// The last file that has one of these sections already: its own settings must not be hidden.
    fn holder(&self, paths: &[[&str; 2]]) -> Option<PathBuf> {
        let mut files = self.0.iter().rev();
        let holds = |file: &&OpenFile| {
            let has = |[first, second]: &[&str; 2]| file.document.get(first)?.get(second);
            paths.iter().any(|path| has(path).is_some())
        };
        files.find(holds).map(|file| file.path.clone())
    }

    /// The version that containerd takes the files to be of, or the newest that it knows if there are none.
    fn format(&self, wish: &Wish) -> i64 {
        let version = |file: &OpenFile| file.document.get("version")?.as_integer();
        let main = self.0.iter().find(|file| file.path == wish.file);
        let is_empty = main.is_none_or(|file| file.document.is_empty());
        if wish.version.0 < 2 {
            let highest = self.0.iter().filter_map(version).max();
            return highest.unwrap_or(if is_empty { 2 } else { 1 });
        }
        match main.and_then(version) {
            Some(version) => version,
            None if is_empty => 3,
            // Each file is brought up to date by itself.
            None => 2,
        }
    }

    /// Sees to it that the main file imports the drop-in, if that is needed and not so.
    fn import(&mut self, wish: &Wish, drop_in: &Path, format: i64) -> Result<(), Error> {
        let says_something =
            |file: &OpenFile| file.document.iter().any(|(key, _)| key != "version");
        let is_used = self
            .0
            .iter()
            .any(|file| file.path == drop_in && says_something(file));
        if !is_used {
            self.0.retain(|file| file.path != drop_in);
            return Ok(());
        }
        self.ensure(&wish.file, &heading(format))?;
        let file = self.document(&wish.file)?;
        let is_imported =
            containerd::imports(&wish.file, &file.to_string().parse().unwrap_or_default());
        if is_imported.iter().any(|path| path == drop_in) || covers(file, drop_in) {
            return Ok(());
        }
        let folder = drop_in.parent().unwrap_or(Path::new("/"));
        let pattern = folder.join("*.toml").display().to_string();
        let imports = file.entry("imports").or_insert_with(|| value(Array::new()));
        let imports = imports.as_array_mut().ok_or_else(|| Error::Form {
            path: wish.file.clone(),
            key: "imports".to_owned(),
        })?;
        imports.push(pattern);
        Ok(())
    }

    fn edits(self) -> Vec<Edit> {
        let edits = self.0.into_iter().map(|file| Edit {
            after: file.document.to_string(),
            path: file.path,
            before: file.before,
        });
        edits
            .filter(|edit| edit.before.as_deref() != Some(&*edit.after))
            .collect()
    }
}

/// Whether a pattern of the main file's imports will lead to the drop-in once that is there.
fn covers(main: &DocumentMut, drop_in: &Path) -> bool {
    let patterns = main.get("imports").and_then(Item::as_array);
    let mut patterns = patterns.into_iter().flatten().filter_map(Value::as_str);
    let (folder, name) = (drop_in.parent(), drop_in.file_name());
    let name = name.and_then(|name| name.to_str()).unwrap_or_default();
    patterns.any(|pattern| {
        let pattern = folder.and_then(Path::parent).map(|base| base.join(pattern));
        let Some(pattern) = pattern else { return false };
        let last = pattern.file_name().and_then(|name| name.to_str());
        let fits = match last.and_then(|last| last.split_once('*')) {
            Some((before, after)) => name.starts_with(before) && name.ends_with(after),
            None => last == Some(name),
        };
        pattern.parent() == folder && fits
    })
}
