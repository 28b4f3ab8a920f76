//! Making a plan true, and taking it back.
//!
//! # Crash behaviour
//! What is about to be changed is written down first, durably, so that [`undo`] finds it whatever
//! happens in between. Files are replaced whole.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::setup::plan::Edit;
use crate::store::{self, files};

/// Where it is written down what was changed.
pub const JOURNAL: &str = "/etc/crfs/setup.json";

/// Why something was not changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file cannot be replaced.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Somebody has changed a file since.
    #[error(
        "{} was changed since crfs setup wrote it, and is left as it is: what crfs setup has added to it has to be \
         removed by hand (crfs setup --dry-run shows what that is)",
        .0.display()
    )]
    Changed(PathBuf),
    /// There is nothing to take back.
    #[error("crfs setup has changed nothing here that is written down in {}", .0.display())]
    Nothing(PathBuf),
}

/// A change as it is written down.
#[derive(Debug, Serialize, Deserialize)]
struct Done {
    path: PathBuf,
    before: Option<String>,
    after: String,
}

/// Makes the edits, and writes down in `journal` what was there before.
///
/// # Errors
/// A file cannot be written; what was changed until then is taken back.
pub fn apply(edits: &[Edit], journal: &Path) -> Result<(), Error> {
    let mut done = read(journal)?;
    for edit in edits {
        match done.iter_mut().find(|known| known.path == edit.path) {
            // Of two setups the first knows how it was.
            Some(known) => known.after.clone_from(&edit.after),
            None => done.push(Done {
                path: edit.path.clone(),
                before: edit.before.clone(),
                after: edit.after.clone(),
            }),
        }
    }
    write(
        journal,
        &serde_json::to_string_pretty(&done).unwrap_or_default(),
    )?;
    for (at, edit) in edits.iter().enumerate() {
        if let Err(error) = write(&edit.path, &edit.after) {
            for edit in edits.iter().take(at) {
                restore(&edit.path, edit.before.as_deref())?;
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Takes back what `journal` says; gives the files.
///
/// # Errors
/// Somebody has changed one of them since: then none is touched. Or there is no journal.
pub fn undo(journal: &Path) -> Result<Vec<PathBuf>, Error> {
    let done = read(journal)?;
    if done.is_empty() {
        return Err(Error::Nothing(journal.to_owned()));
    }
    for done in &done {
        let now = content(&done.path)?;
        if now.as_deref() != Some(&*done.after) && now != done.before {
            return Err(Error::Changed(done.path.clone()));
        }
    }
    // The main file first: it must not import what is gone.
    for done in done.iter().rev() {
        restore(&done.path, done.before.as_deref())?;
    }
    restore(journal, None)?;
    Ok(done.into_iter().map(|done| done.path).collect())
}

fn restore(path: &Path, before: Option<&str>) -> Result<(), Error> {
    match before {
        Some(text) => write(path, text),
        None => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", path)(error))
            }
            _ => Ok(()),
        },
    }
}

/// Replaces a file, whose mode stays.
fn write(path: &Path, text: &str) -> Result<(), Error> {
    let mode = fs::metadata(path).map_or(0o644, |meta| meta.permissions().mode() & 0o7777);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed("create", folder))?;
    }
    files::replace(path, text.as_bytes())?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("chmod", path))
}

fn read(journal: &Path) -> Result<Vec<Done>, Error> {
    let Some(text) = content(journal)? else {
        return Ok(Vec::new());
    };
    let parsed = serde_json::from_str(&text);
    parsed.map_err(|error| failed("understand", journal)(error.into()))
}

fn content(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_taken_back_unless_somebody_came_between() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (main, new, journal) = (
            at("config.toml"),
            at("conf.d/crfs.toml"),
            at("etc/setup.json"),
        );
        fs::write(&main, "old").unwrap();
        fs::set_permissions(&main, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(undo(&journal), Err(Error::Nothing(_))));
        let edit = |path: &Path, before: Option<&str>, after: &str| Edit {
            path: path.to_owned(),
            before: before.map(str::to_owned),
            after: after.to_owned(),
        };
        apply(
            &[edit(&new, None, "one"), edit(&main, Some("old"), "first")],
            &journal,
        )
        .unwrap();
        apply(&[edit(&main, Some("first"), "second")], &journal).unwrap();
        assert_eq!(
            fs::metadata(&main).unwrap().permissions().mode() & 0o777,
            0o600
        );
        fs::write(&main, "somebody").unwrap();
        assert!(matches!(undo(&journal), Err(Error::Changed(path)) if path == main));
        assert_eq!(
            fs::read_to_string(&new).unwrap(),
            "one",
            "nothing was touched"
        );
        fs::write(&main, "second").unwrap();
        assert_eq!(undo(&journal).unwrap().len(), 2);
        assert_eq!(fs::read_to_string(&main).unwrap(), "old");
        assert!(!new.exists() && !journal.exists());

        let bad = [
            edit(&main, Some("old"), "x"),
            edit(&main.join("below"), None, "y"),
        ];
        apply(&bad, &journal).unwrap_err();
        assert_eq!(
            fs::read_to_string(&main).unwrap(),
            "old",
            "taken back at once"
        );
    }
}
