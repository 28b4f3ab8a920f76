//! Looking after a root folder while no daemon works on it.
//!
//! What a start repairs by itself is only reported here, or with `repair` repaired without a
//! start; beyond that, `repair` gives up what nobody can make sense of, so that the next start
//! frees its disk space.

use std::fs;
use std::io;
use std::path::Path;

use crate::snapshotter::folder::Snapshots;
use crate::snapshotter::recover;
use crate::snapshotter::{Error, Record};
use crate::store::{Faults, Root, Store};

pub use crate::snapshotter::reconcile::{Finding, Severity};

/// What a root holds and what was wrong with it.
#[derive(Debug)]
pub struct Report {
    /// Snapshots that are whole, or were made whole.
    pub snapshots: usize,
    /// What was not as it should be, the worst first.
    pub findings: Vec<Finding>,
    /// Whether it has been repaired.
    pub repaired: bool,
}

/// Checks the root folder, which must exist, and repairs it if asked to. Blocks.
///
/// # Errors
/// A daemon works on it, a newer program has written it, or it cannot be read or written.
pub fn fsck(root: &Path, repair: bool) -> Result<Report, Error> {
    fs::metadata(root).map_err(Error::io("open", root))?;
    let root = Root::claim(root)?;
    let database = root.path().join("store");
    let snapshots = Snapshots::existing(root.path());
    // Opening a database changes its files; to look at it a copy is opened.
    let copy = (!repair)
        .then(|| copy_of(&database))
        .transpose()
        .map_err(Error::io("copy", &database))?;
    let looked_at = copy
        .as_ref()
        .map_or(database, |copy| copy.path().join("store"));
    let mut opened = Store::<Record>::open(&looked_at)?;
    let (plan, last_id) = recover::plan(&snapshots, &mut opened)?;
    if repair {
        recover::repair(&snapshots, &plan)?;
        for id in &plan.aside {
            snapshots.folder(*id).mark_removed()?;
        }
    }
    let mut findings = plan.findings;
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let count = plan.keep.len();
    if repair {
        opened.start(plan.keep, last_id, Faults::none())?.close();
    }
    Ok(Report {
        snapshots: count,
        findings,
        repaired: repair,
    })
}

fn copy_of(database: &Path) -> io::Result<tempfile::TempDir> {
    let copy = tempfile::tempdir()?;
    let mut folders = vec![(database.to_owned(), copy.path().join("store"))];
    while let Some((from, to)) = folders.pop() {
        let entries = match fs::read_dir(&from) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        fs::create_dir_all(&to)?;
        for entry in entries {
            let entry = entry?;
            let to = to.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push((entry.path(), to));
            } else if kind.is_file() {
                fs::copy(entry.path(), &to)?;
            }
        }
    }
    Ok(copy)
}
