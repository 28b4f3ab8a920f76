//! Update: labels, the only thing about a snapshot that can be changed.

use std::sync::Arc;

use crate::snapshotter::model::{Key, Labels, Record, Stamp};
use crate::snapshotter::persist::Steps;
use crate::snapshotter::{Error, Inner};
use crate::store::Step;

const STEPS: Steps = Steps {
    record: Step::UpdateRecord,
    stored: Step::UpdateStored,
    done: Step::UpdateDone,
};

/// Which labels an Update is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mask {
    /// All: those that are not given go.
    All,
    /// These keys; one that is not given goes.
    Labels(Vec<String>),
}

impl Mask {
    /// Reads field paths; none at all means everything.
    ///
    /// # Errors
    /// A path is neither `labels` nor `labels.` and a key.
    pub fn parse(paths: Vec<String>) -> Result<Self, Error> {
        let mut keys = Vec::new();
        let mut all = paths.is_empty();
        for path in paths {
            if path == "labels" {
                all = true;
            } else if let Some(key) = path.strip_prefix("labels.") {
                keys.push(key.to_owned());
            } else {
                let shown: String = path.chars().take(64).collect();
                return Err(Error::Invalid(format!("field {shown:?} cannot be updated")));
            }
        }
        Ok(if all { Self::All } else { Self::Labels(keys) })
    }

    fn apply(&self, labels: &mut Labels, mut given: Labels) {
        match self {
            Self::All => *labels = given,
            Self::Labels(keys) => {
                for key in keys {
                    match given.remove(key) {
                        Some(value) => labels.insert(key.clone(), value),
                        None => labels.remove(key),
                    };
                }
            }
        }
    }
}

impl Inner {
    pub(super) async fn update(
        self: Arc<Self>,
        key: &Key,
        labels: Labels,
        mask: Mask,
    ) -> Result<Arc<Record>, Error> {
        let _held = self.locks.hold(&[key], None).await;
        let old = Arc::clone(self.table.read().get(key)?);
        let mut record = Record {
            revision: self.new_revision(),
            updated: Stamp::now(),
            ..(*old).clone()
        };
        mask.apply(&mut record.labels, labels);
        self.persist(record, Some(old), STEPS).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        pairs.iter().map(own).collect()
    }

    fn paths(paths: &[&str]) -> Result<Mask, Error> {
        Mask::parse(paths.iter().map(|path| (*path).to_owned()).collect())
    }

    #[test]
    fn a_mask_names_labels_or_all_of_them() {
        for (mask, expected) in [
            (&[][..], &[("b", "2"), ("c", "3")][..]),
            (&["labels"], &[("b", "2"), ("c", "3")]),
            (&["labels.b"], &[("a", "1"), ("b", "2")]),
            (&["labels.a"], &[("b", "1")]),
            (&["labels.a", "labels"], &[("b", "2"), ("c", "3")]),
        ] {
            let mut now = labels(&[("a", "1"), ("b", "1")]);
            let given = labels(&[("b", "2"), ("c", "3")]);
            paths(mask).unwrap().apply(&mut now, given);
            assert_eq!(now, labels(expected), "{mask:?}");
        }
    }

    #[test]
    fn nothing_else_can_be_updated() {
        for path in ["name", "parent", "kind", "labelsx", ""] {
            assert!(matches!(paths(&[path]), Err(Error::Invalid(_))), "{path}");
        }
    }
}
