//! Start-up: read both copies of everything, make them agree, build the table.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::{Mutex, RwLock};

use crate::layer::LayerRecord;
use crate::snapshotter::counts::Counters;
use crate::snapshotter::flights::Flights;
use crate::snapshotter::folder::{Found, Snapshots};
use crate::snapshotter::health::Health;
use crate::snapshotter::locks::Locks;
use crate::snapshotter::reconcile::{Finding, Plan, Seen, Severity, reconcile};
use crate::snapshotter::table::Table;
use crate::snapshotter::{Error, Inner, Parts, Record};
use crate::store::codec::Broken;
use crate::store::{self, Opened, SCHEMA, Step, Store, files};

/// Findings of one kind that are logged one by one; a lost database would fill the log.
const LOGGED: usize = 20;

pub(super) fn open(parts: Parts) -> Result<Inner, Error> {
    let snapshots = Snapshots::open(parts.root.path())?;
    let mut opened = Store::<Record>::open(&parts.root.path().join("store"))?;
    let (plan, last_id) = plan(&snapshots, &mut opened)?;
    log(&plan.findings);
    parts
        .faults
        .at(Step::RecoverPlanned)
        .map_err(Error::io("recover", snapshots.path()))?;
    repair(&snapshots, &plan)?;
    let last_revision = plan.keep.values().map(|record| record.revision).max();
    let mut table = Table::default();
    for record in plan.keep.values() {
        table.insert(Arc::clone(record));
    }
    let lazy = plan.keep.values().filter(|record| record.lazy.is_some());
    let health = Health::new(lazy.map(|record| record.id));
    // With a database that cannot be read now, a folder without a record may be in there.
    let kept_aside = if opened.unavailable.is_some() {
        plan.rubbish
    } else {
        Vec::new()
    };
    let store = opened.start(plan.keep, last_id, parts.faults.clone())?;
    parts
        .faults
        .at(Step::RecoverDone)
        .map_err(Error::io("recover", snapshots.path()))?;
    Ok(Inner {
        root: parts.root,
        snapshots,
        store,
        table: RwLock::new(table),
        locks: Locks::default(),
        lazy: Flights::default(),
        counts: Counters::default(),
        health,
        layers: parts.layers,
        overlay: parts.overlay,
        faults: parts.faults,
        next_id: AtomicU64::new(last_id + 1),
        next_revision: AtomicU64::new(last_revision.unwrap_or(0) + 1),
        making: Mutex::new(HashSet::from_iter(kept_aside)),
        lent: Mutex::default(),
        sweeping: tokio::sync::Mutex::default(),
        removed: Arc::default(),
        running: Arc::default(),
        closed: AtomicBool::new(false),
        stop: tokio_util::sync::CancellationToken::new(),
    })
}

/// The lazy layers of a root at whose mount points `wanted` holds, as their folders record them. Reads
/// nothing else, so that a start can serve them before the database is open; what cannot be read is
/// left to [`open`].
pub fn lazy_layers(root: &Path, wanted: impl Fn(&Path) -> bool) -> Vec<(PathBuf, LayerRecord)> {
    let snapshots = Snapshots::existing(root);
    let ids = snapshots.ids().unwrap_or_default().into_iter();
    let targets = ids.flat_map(|id| {
        let folder = snapshots.folder(id);
        let own = folder.own_layers().unwrap_or_default();
        let own = own.into_iter().map(|layer| (folder.lower(layer), layer));
        std::iter::once((folder.fs(), id)).chain(own.collect::<Vec<_>>())
    });
    let wanted = targets.filter(|(target, _)| wanted(target));
    let lazy = wanted.filter_map(|(target, layer)| match snapshots.folder(layer).find() {
        Ok(Found::Record(record)) => Some((target, record.lazy.clone()?)),
        _ => None,
    });
    lazy.collect()
}

/// What both copies say together, and the highest id ever given out.
pub(super) fn plan(
    snapshots: &Snapshots,
    opened: &mut Opened<Record>,
) -> Result<(Plan, u64), Error> {
    let mut folders = BTreeMap::new();
    for id in snapshots.ids()? {
        let folder = snapshots.folder(id);
        let found = folder.find()?;
        if let Found::Damaged(Broken::Newer(version)) = found {
            return Err(newer(snapshots, version));
        }
        let has_files = folder.has_files()?;
        folders.insert(id, Seen { found, has_files });
    }
    for (_, broken) in &opened.damaged {
        if let Broken::Newer(version) = broken {
            return Err(newer(snapshots, *version));
        }
    }
    let known = std::mem::take(&mut opened.records);
    let ids = known
        .iter()
        .map(|(id, _)| *id)
        .chain(folders.keys().copied());
    let last_id = ids.max().unwrap_or(0).max(opened.last_id);
    let mut plan = reconcile(folders, known);
    plan.findings.extend(about_database(opened));
    Ok((plan, last_id))
}

/// Does what the plan says to folders. The database follows when it is started.
pub(super) fn repair(snapshots: &Snapshots, plan: &Plan) -> Result<(), Error> {
    for (id, record) in &plan.keep {
        // Costs three lstat, and mends folders that damage has taken something from.
        snapshots.folder(*id).complete(record.kind)?;
    }
    for id in &plan.remove {
        snapshots.folder(*id).mark_removed()?;
    }
    rewrite(snapshots, plan)
}

/// Two flushes of the whole file system instead of two for each record: ten thousand may need it.
fn rewrite(snapshots: &Snapshots, plan: &Plan) -> Result<(), Error> {
    if plan.rewrite.is_empty() {
        return Ok(());
    }
    let records = || plan.rewrite.iter().filter_map(|id| plan.keep.get(id));
    for record in records() {
        snapshots.folder(record.id).write_fresh_unsynced(record)?;
    }
    files::sync_file_system(snapshots.path())?;
    for record in records() {
        snapshots.folder(record.id).rename_fresh()?;
    }
    Ok(files::sync_file_system(snapshots.path())?)
}

fn about_database(opened: &Opened<Record>) -> Vec<Finding> {
    let whole = |severity, what| Finding {
        id: None,
        severity,
        what,
    };
    let mut findings = Vec::new();
    if let Some(error) = &opened.lost {
        let what = format!("the database is damaged and written anew from the records: {error}");
        findings.push(whole(Severity::Damage, what));
    }
    if let Some(error) = &opened.unavailable {
        let what = format!("the database cannot be opened at present: {error}");
        findings.push(whole(Severity::Damage, what));
    }
    for (id, broken) in &opened.damaged {
        findings.push(Finding {
            id: Some(*id),
            severity: Severity::Damage,
            what: format!("its entry in the database is damaged ({broken})"),
        });
    }
    findings
}

fn log(findings: &[Finding]) {
    for severity in [Severity::Loss, Severity::Damage, Severity::Note] {
        let of_kind = || {
            findings
                .iter()
                .filter(|finding| finding.severity == severity)
        };
        for Finding { id, what, .. } in of_kind().take(LOGGED) {
            match severity {
                Severity::Loss => tracing::error!(id, "{what}"),
                Severity::Damage => tracing::warn!(id, "{what}"),
                Severity::Note => tracing::info!(id, "{what}"),
            }
        }
        let more = of_kind().count().saturating_sub(LOGGED);
        if more > 0 {
            tracing::warn!(more, ?severity, "further findings, crfs fsck lists them");
        }
    }
}

fn newer(snapshots: &Snapshots, version: u8) -> Error {
    Error::Store(store::Error::NewerSchema {
        path: snapshots.path().to_owned(),
        found: u32::from(version),
        known: SCHEMA,
    })
}
