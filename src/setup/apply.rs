//! Making a plan true, and taking it back.
//!
//! # Crash behaviour
//! What is about to be changed is written down first, durably, so that [`undo`] finds it whatever
//! happens in between. Files are replaced whole.
//!
//! # The journal
//! The edits of every set-up in turn. Those of one file make a chain if nobody else has changed it in
//! between; only then is what was there before the first of them put back.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

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
        "{} was changed since crfs setup wrote it, so nothing is taken back; remove by hand what crfs setup has \
         added, which is this, and then {}:\n{added}",
        path.display(),
        journal.display()
    )]
    Changed {
        /// Which one.
        path: PathBuf,
        /// Where it is written down what was changed.
        journal: PathBuf,
        /// What was changed in all files, as diffs.
        added: String,
    },
    /// There is nothing to take back.
    #[error("crfs setup has changed nothing here that is written down in {}", .0.display())]
    Nothing(PathBuf),
}

/// A change that was made, until it is known whether it works.
#[derive(Debug)]
#[must_use]
pub struct Applied {
    edits: Vec<Edit>,
    journal: PathBuf,
    /// What the journal said before, of earlier set-ups.
    earlier: Option<String>,
}

/// Makes the edits, and writes down in `journal` what was there before.
///
/// # Errors
/// A file cannot be written; what was changed until then is taken back.
pub fn apply(edits: Vec<Edit>, journal: &Path) -> Result<Applied, Error> {
    let earlier = content(journal)?;
    let mut done = read(journal)?;
    done.extend(edits.iter().cloned());
    write(
        journal,
        &serde_json::to_string_pretty(&done).unwrap_or_default(),
    )?;
    let applied = Applied {
        edits,
        journal: journal.to_owned(),
        earlier,
    };
    for (at, edit) in applied.edits.iter().enumerate() {
        if let Err(error) = write(&edit.path, &edit.after) {
            applied.restore(at)?;
            return Err(error);
        }
    }
    Ok(applied)
}

impl Applied {
    /// Takes back these edits and no earlier ones: a set-up that worked before works again.
    ///
    /// # Errors
    /// Somebody has changed one of the files since: then none is touched.
    pub fn take_back(self) -> Result<(), Error> {
        check(&self.edits, &self.journal)?;
        self.restore(self.edits.len())
    }

    /// Takes back the first `count` edits, and what the journal says of all.
    fn restore(&self, count: usize) -> Result<(), Error> {
        for edit in self.edits.iter().take(count).rev() {
            restore(&edit.path, edit.before.as_deref())?;
        }
        restore(&self.journal, self.earlier.as_deref())
    }
}

/// Takes back what `journal` says; gives the files.
///
/// # Errors
/// Somebody has changed one of them since, or between two set-ups: then none is touched. Or there is no journal.
pub fn undo(journal: &Path) -> Result<Vec<PathBuf>, Error> {
    let done = read(journal)?;
    if done.is_empty() {
        return Err(Error::Nothing(journal.to_owned()));
    }
    check(&done, journal)?;
    let mut paths: Vec<PathBuf> = Vec::new();
    for edit in &done {
        // Of several set-ups the first knows how it was.
        if !paths.contains(&edit.path) {
            paths.push(edit.path.clone());
        }
    }
    // The main file first: it must not import what is gone.
    for path in paths.iter().rev() {
        let first = done.iter().find(|edit| edit.path == *path);
        restore(path, first.and_then(|edit| edit.before.as_deref()))?;
    }
    restore(journal, None)?;
    Ok(paths)
}

/// Insists that nobody else has written the files of `done`.
fn check(done: &[Edit], journal: &Path) -> Result<(), Error> {
    // The texts that each file has had by us. A set-up that was cut short may have left any of them.
    let mut known: Vec<(&Path, Option<&str>)> = Vec::new();
    let changed = |path: &Path| Error::Changed {
        path: path.to_owned(),
        journal: journal.to_owned(),
        added: done.iter().map(Edit::to_string).collect(),
    };
    for edit in done {
        let found = (&*edit.path, edit.before.as_deref());
        let is_first = known.iter().all(|(path, _)| *path != edit.path);
        if !is_first && !known.contains(&found) {
            return Err(changed(&edit.path));
        }
        known.extend([found, (&*edit.path, Some(&*edit.after))]);
    }
    for edit in done {
        let now = content(&edit.path)?;
        if !known.contains(&(&*edit.path, now.as_deref())) {
            return Err(changed(&edit.path));
        }
    }
    Ok(())
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

fn read(journal: &Path) -> Result<Vec<Edit>, Error> {
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

    struct Node {
        folder: tempfile::TempDir,
        main: PathBuf,
        drop_in: PathBuf,
        journal: PathBuf,
    }

    impl Node {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let at = |name: &str| folder.path().join(name);
            let (main, drop_in) = (at("config.toml"), at("conf.d/crfs.toml"));
            let journal = at("etc/setup.json");
            fs::write(&main, "old").unwrap();
            Self {
                folder,
                main,
                drop_in,
                journal,
            }
        }

        fn apply(&self, edits: &[Edit]) -> Result<Applied, Error> {
            apply(edits.to_vec(), &self.journal)
        }

        fn first(&self) -> [Edit; 2] {
            [
                edit(&self.drop_in, None, "one"),
                edit(&self.main, Some("old"), "first"),
            ]
        }

        fn texts(&self) -> (String, String) {
            let read = |path| fs::read_to_string(path).unwrap_or_default();
            (read(&self.drop_in), read(&self.main))
        }
    }

    fn edit(path: &Path, before: Option<&str>, after: &str) -> Edit {
        Edit {
            path: path.to_owned(),
            before: before.map(str::to_owned),
            after: after.to_owned(),
        }
    }

    fn texts(drop_in: &str, main: &str) -> (String, String) {
        (drop_in.to_owned(), main.to_owned())
    }

    #[test]
    fn what_was_done_is_taken_back_unless_somebody_came_between() {
        let node = Node::new();
        fs::set_permissions(&node.main, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(undo(&node.journal), Err(Error::Nothing(_))));
        let _ = node.apply(&node.first()).unwrap();
        let second = [edit(&node.main, Some("first"), "second")];
        let _ = node.apply(&second).unwrap();
        assert_eq!(
            fs::metadata(&node.main).unwrap().permissions().mode() & 0o777,
            0o600
        );
        fs::write(&node.main, "somebody").unwrap();
        let refused = undo(&node.journal).unwrap_err();
        assert!(matches!(&refused, Error::Changed { path, .. } if *path == node.main));
        let told = refused.to_string();
        assert!(told.contains("+one") && told.contains("+second"), "{told}");
        assert_eq!(node.texts(), texts("one", "somebody"));
        // Cut short before it was written.
        fs::write(&node.main, "first").unwrap();
        assert_eq!(undo(&node.journal).unwrap().len(), 2);
        assert_eq!(node.texts(), texts("", "old"));
        assert!(!node.drop_in.exists() && !node.journal.exists());
    }

    #[test]
    fn a_set_up_that_fails_takes_back_nothing_of_one_that_worked() {
        let node = Node::new();
        let _ = node.apply(&node.first()).unwrap();
        let journal = fs::read_to_string(&node.journal).unwrap();
        let second = [edit(&node.drop_in, Some("one"), "two")];
        node.apply(&second).unwrap().take_back().unwrap();
        assert_eq!(node.texts(), texts("one", "first"));
        assert_eq!(fs::read_to_string(&node.journal).unwrap(), journal);

        // Somebody may write while it is tried.
        let applied = node.apply(&second).unwrap();
        fs::write(&node.drop_in, "somebody").unwrap();
        assert!(matches!(applied.take_back(), Err(Error::Changed { .. })));
        assert_eq!(node.texts(), texts("somebody", "first"));
    }

    #[test]
    fn a_file_that_cannot_be_written_takes_back_the_others_at_once() {
        let node = Node::new();
        let bad = [
            edit(&node.main, Some("old"), "x"),
            edit(&node.main.join("below"), None, "y"),
        ];
        node.apply(&bad).unwrap_err();
        assert_eq!(node.texts(), texts("", "old"));
        assert!(!node.journal.exists(), "{:?}", node.folder);
    }

    #[test]
    fn what_somebody_wrote_between_two_set_ups_is_not_lost() {
        let node = Node::new();
        let _ = node.apply(&node.first()).unwrap();
        fs::write(&node.main, "first, and theirs").unwrap();
        let second = [edit(
            &node.main,
            Some("first, and theirs"),
            "second, theirs",
        )];
        node.apply(&second).unwrap().take_back().unwrap();
        assert_eq!(node.texts(), texts("one", "first, and theirs"));
        let _ = node.apply(&second).unwrap();
        let refused = undo(&node.journal).unwrap_err();
        assert!(matches!(refused, Error::Changed { path, .. } if path == node.main));
        assert_eq!(node.texts(), texts("one", "second, theirs"));
    }
}
