//! Two copies of every record, one truth: which snapshots there are after a crash or damage.
//!
//! Pure: it is told what was found and says what to do. The rules, by folder and database:
//!
//! | folder's record | database | then |
//! |---|---|---|
//! | valid | the same | kept |
//! | valid | another revision | the greater revision is kept, the other written anew |
//! | valid | none | kept, entered in the database |
//! | missing or damaged | has it | kept, the record written anew |
//! | missing | none | rubbish of a call that never ended: deleted |
//! | damaged | none | kept aside, reported: nobody knows what it was |
//! | marked as removed | any | removed |
//! | no folder | has it | dropped, reported: there is nothing left of it |

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::snapshotter::folder::Found;
use crate::snapshotter::model::{Key, Kind, Record};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// What an interrupted call leaves; nothing was lost.
    Note,
    /// Damage, made good from the other copy.
    Damage,
    /// Something is lost.
    Loss,
}

/// One thing that was not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The snapshot's folder number; `None` if it is about the whole.
    pub id: Option<u64>,
    /// How bad it is.
    pub severity: Severity,
    /// What was found and what follows, as a sentence without a full stop.
    pub what: String,
}

/// One folder as it was found.
pub(super) struct Seen {
    /// Its record.
    pub(super) found: Found,
    /// Whether `fs` is there.
    pub(super) has_files: bool,
}

/// What there is and what to do.
#[derive(Default)]
pub(super) struct Plan {
    /// The snapshots.
    pub(super) keep: BTreeMap<u64, Arc<Record>>,
    /// Those of them whose record has to be written anew.
    pub(super) rewrite: Vec<u64>,
    /// Folders that are to be marked as removed.
    pub(super) remove: Vec<u64>,
    /// Folders that nobody can make sense of; they stay.
    pub(super) aside: Vec<u64>,
    /// Folders without a record and unknown to the database.
    pub(super) rubbish: Vec<u64>,
    /// What was not as it should be.
    pub(super) findings: Vec<Finding>,
}

/// Compares folders and database.
pub(super) fn reconcile(folders: BTreeMap<u64, Seen>, database: Vec<(u64, Record)>) -> Plan {
    let mut plan = Plan::default();
    let mut database: BTreeMap<u64, Record> = database
        .into_iter()
        .filter(|(id, record)| *id == record.id)
        .collect();
    for (id, seen) in folders {
        let kept = plan.choose(id, seen.found, database.remove(&id));
        if let Some(record) = kept {
            plan.keep_if_whole(record, seen.has_files);
        }
    }
    for (id, record) in database {
        plan.note(
            id,
            Severity::Loss,
            format!("{} has no folder any more: dropped", record.key),
        );
    }
    plan.drop_doubles();
    plan.report_broken_chains();
    plan
}

impl Plan {
    fn choose(&mut self, id: u64, found: Found, known: Option<Record>) -> Option<Record> {
        match (found, known) {
            (Found::Removed, Some(known)) => {
                let what = format!("removal of {} was interrupted: finished", known.key);
                self.note(id, Severity::Note, what);
                None
            }
            (Found::Removed, None) => None,
            (Found::Record(own), known) if own.id == id => Some(self.newer(id, *own, known)),
            (Found::Nothing, Some(known)) => {
                let what = format!("{} has no record in its folder: written anew", known.key);
                self.note(id, Severity::Damage, what);
                self.rewrite.push(id);
                Some(known)
            }
            (Found::Nothing, None) => {
                self.note(
                    id,
                    Severity::Note,
                    "left by an interrupted call: deleted".to_owned(),
                );
                self.rubbish.push(id);
                None
            }
            (Found::Damaged(_) | Found::Record(_), Some(known)) => {
                let what = format!("the record of {} is damaged: written anew", known.key);
                self.note(id, Severity::Damage, what);
                self.rewrite.push(id);
                Some(known)
            }
            (Found::Damaged(_) | Found::Record(_), None) => {
                let what = "both copies of its record are unreadable: kept aside".to_owned();
                self.note(id, Severity::Loss, what);
                self.aside.push(id);
                None
            }
        }
    }

    fn newer(&mut self, id: u64, own: Record, known: Option<Record>) -> Record {
        match known {
            Some(known) if known == own => own,
            Some(known) if known.revision > own.revision => {
                let what = format!(
                    "the record of {} is behind the database: renewed",
                    known.key
                );
                self.note(id, Severity::Note, what);
                self.rewrite.push(id);
                known
            }
            Some(_) => {
                let what = format!("the database is behind the record of {}: renewed", own.key);
                self.note(id, Severity::Damage, what);
                own
            }
            None => {
                let what = format!("{} is missing in the database: entered", own.key);
                self.note(id, Severity::Damage, what);
                own
            }
        }
    }

    /// A mount point or a view's empty folder can be made again; files cannot.
    fn keep_if_whole(&mut self, record: Record, has_files: bool) {
        if has_files || record.lazy.is_some() || record.kind == Kind::View {
            self.keep.insert(record.id, Arc::new(record));
            return;
        }
        let what = format!("the files of {} are gone: dropped", record.key);
        self.note(record.id, Severity::Loss, what);
        self.remove.push(record.id);
    }

    /// A call that failed and could not be taken back may have left a second snapshot of a key.
    fn drop_doubles(&mut self) {
        let mut newest: HashMap<Key, (u64, u64)> = HashMap::new();
        for record in self.keep.values() {
            let this = (record.revision, record.id);
            let best = newest.entry(record.key.clone()).or_insert(this);
            *best = this.max(*best);
        }
        let is_newest = |record: &Record| newest.get(&record.key).is_some_and(|n| n.1 == record.id);
        let old: Vec<u64> = self
            .keep
            .values()
            .filter(|r| !is_newest(r))
            .map(|r| r.id)
            .collect();
        for id in old {
            if let Some(record) = self.keep.remove(&id) {
                let what = format!("an older {} was left by a failed call: deleted", record.key);
                self.note(id, Severity::Note, what);
            }
            self.remove.push(id);
        }
    }

    fn report_broken_chains(&mut self) {
        let keys: std::collections::HashSet<&Key> = self.keep.values().map(|r| &r.key).collect();
        let is_broken = |record: &&Arc<Record>| {
            let parent = record.parent.as_ref();
            parent.is_some_and(|parent| !keys.contains(parent))
        };
        let broken: Vec<_> = self.keep.values().filter(is_broken).cloned().collect();
        for record in broken {
            let what = format!(
                "the parent of {} is lost: it can only be removed",
                record.key
            );
            self.note(record.id, Severity::Loss, what);
        }
    }

    fn note(&mut self, id: u64, severity: Severity, what: String) {
        let id = Some(id);
        self.findings.push(Finding { id, severity, what });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshotter::model::{Labels, Stamp};
    use crate::store::codec::Broken;

    fn record(id: u64, revision: u64, key: &str) -> Record {
        let stamp = Stamp { secs: 1, nanos: 2 };
        Record {
            id,
            revision,
            kind: Kind::Committed,
            key: Key::new(key).unwrap(),
            parent: None,
            labels: Labels::new(),
            created: stamp,
            updated: stamp,
            usage: None,
            lazy: None,
            refused: None,
        }
    }

    fn valid(id: u64, revision: u64, key: &str) -> Found {
        Found::Record(Box::new(record(id, revision, key)))
    }

    #[test]
    fn the_table_of_rules_holds() {
        let damaged = || Found::Damaged(Broken::Checksum);
        // What is found, what the database knows; the revision kept, and whether it is rewritten.
        for (case, found, known, kept, rewritten) in [
            ("same", valid(1, 5, "k"), Some(5), Some(5), false),
            ("record newer", valid(1, 6, "k"), Some(5), Some(6), false),
            ("database newer", valid(1, 5, "k"), Some(6), Some(6), true),
            ("only record", valid(1, 5, "k"), None, Some(5), false),
            ("record missing", Found::Nothing, Some(5), Some(5), true),
            ("record damaged", damaged(), Some(5), Some(5), true),
            (
                "record of another folder",
                valid(9, 7, "k"),
                Some(5),
                Some(5),
                true,
            ),
            ("nothing", Found::Nothing, None, None, false),
            ("both damaged", damaged(), None, None, false),
            ("removed", Found::Removed, Some(5), None, false),
        ] {
            let has_files = true;
            let folders = BTreeMap::from([(1, Seen { found, has_files })]);
            let database = known.map(|revision| (1, record(1, revision, "k")));
            let plan = reconcile(folders, database.into_iter().collect());
            let revision = plan.keep.get(&1).map(|record| record.revision);
            assert_eq!(revision, kept, "{case}");
            assert_eq!(plan.rewrite == [1], rewritten, "{case}");
            assert_eq!(plan.findings.is_empty(), case == "same", "{case}");
        }
    }

    #[test]
    fn what_cannot_be_kept_is_reported() {
        let plan = reconcile(BTreeMap::new(), vec![(1, record(1, 1, "k"))]);
        assert!(plan.keep.is_empty());
        assert_eq!(plan.findings.first().unwrap().severity, Severity::Loss);
        let found = valid(1, 1, "k");
        let has_files = false;
        let plan = reconcile(BTreeMap::from([(1, Seen { found, has_files })]), Vec::new());
        assert_eq!(plan.remove, [1]);
        let mut child = record(2, 2, "child");
        child.parent = Key::optional("gone");
        let found = Found::Record(Box::new(child));
        let has_files = true;
        let plan = reconcile(BTreeMap::from([(2, Seen { found, has_files })]), Vec::new());
        assert!(
            plan.keep.contains_key(&2),
            "a snapshot whose parent is lost stays"
        );
        assert!(plan.findings.iter().any(|f| f.severity == Severity::Loss));
    }

    #[test]
    fn of_two_snapshots_of_a_key_the_newer_stays() {
        let has_files = true;
        let folders = [
            (1, valid(1, 9, "k")),
            (2, valid(2, 3, "k")),
            (3, valid(3, 1, "other")),
        ]
        .map(|(id, found)| (id, Seen { found, has_files }));
        let plan = reconcile(folders.into(), Vec::new());
        assert_eq!(plan.keep.keys().copied().collect::<Vec<_>>(), [1, 3]);
        assert_eq!(plan.remove, [2]);
    }
}
