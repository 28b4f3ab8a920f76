//! What a running daemon can take over of a changed file, and what needs a restart.

use toml::{Table, Value};

use crate::config::Config;

/// Keys whose new value holds at once.
pub const RELOADABLE: [&str; 2] = ["log.level", "fetch.rate_limit"];

/// The keys in which two configurations differ, as `section.key`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Those of [`RELOADABLE`].
    pub reloadable: Vec<String>,
    /// Those that need a restart.
    pub others: Vec<String>,
}

impl Config {
    /// What is new in `new`.
    #[must_use]
    pub fn changes(&self, new: &Self) -> Changes {
        let (old, new) = (self.keys(), new.keys());
        let mut changed: Vec<String> = Vec::new();
        // A key that is not set is not there.
        let all = old.iter().chain(&new).map(|(key, _)| key);
        for key in all {
            let value = |keys: &[(String, Value)]| {
                let found = keys.iter().find(|(name, _)| name == key);
                found.map(|(_, value)| value.clone())
            };
            if value(&old) != value(&new) && !changed.contains(key) {
                changed.push(key.clone());
            }
        }
        changed.sort();
        let is_reloadable = |key: &String| RELOADABLE.contains(&key.as_str());
        let (reloadable, others) = changed.into_iter().partition(is_reloadable);
        Changes { reloadable, others }
    }

    /// Takes over what a running daemon can.
    pub fn take_reloadable(&mut self, new: &Self) {
        self.log.level.clone_from(&new.log.level);
        self.fetch.rate_limit = new.fetch.rate_limit;
    }

    /// Every key that is set, with its value.
    fn keys(&self) -> Vec<(String, Value)> {
        let mut keys = Vec::new();
        // What was read as a configuration can be written as one.
        for (name, value) in Table::try_from(self).unwrap_or_default() {
            match value {
                Value::Table(section) => {
                    let within = section.into_iter();
                    keys.extend(within.map(|(key, value)| (format!("{name}.{key}"), value)));
                }
                value => keys.push((name, value)),
            }
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::ByteSize;

    #[test]
    fn what_is_new_is_sorted_into_what_can_be_had_and_what_not() {
        let old = Config::default();
        assert_eq!(old.changes(&old), Changes::default());
        let mut new = Config::default();
        new.log.level = "debug".to_owned();
        new.fetch.rate_limit = ByteSize(1000);
        new.fetch.background = false;
        new.root = "/elsewhere".into();
        new.cri.listen = Some("/run/cri.sock".into());
        let changes = old.changes(&new);
        assert_eq!(changes.reloadable, ["fetch.rate_limit", "log.level"]);
        assert_eq!(changes.others, ["cri.listen", "fetch.background", "root"]);
        let mut kept = old;
        kept.take_reloadable(&new);
        let left = kept.changes(&new);
        assert!(left.reloadable.is_empty(), "{left:?}");
        assert_eq!(left.others, changes.others);
    }
}
