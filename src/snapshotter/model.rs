//! What a snapshot is: keys, kinds, times, labels and the record that is kept of it.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::layer::{LayerRecord, Reason};
use crate::oci::{Digest, label};
use crate::snapshotter::Error;

/// Most characters of a key shown in a message.
const SHOWN: usize = 200;
/// Most bytes of one label, key and value together (containerd `pkg/labels/validate.go`).
const LABEL: usize = 4096;

/// A snapshot's key or name: any text that is not empty. It is never used as a path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(Arc<str>);

/// Labels of a snapshot, by key. None is empty: containerd's own stores drop a label whose value
/// is empty, which is how a client deletes one.
pub type Labels = BTreeMap<String, String>;

/// What a snapshot is at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Read only, cannot be committed.
    View,
    /// Writable.
    Active,
    /// Fixed; can be a parent.
    Committed,
}

/// A moment, to the nanosecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Seconds since 1970.
    pub secs: i64,
    /// Nanoseconds within the second.
    pub nanos: u32,
}

/// What a snapshot holds by itself, without its parents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes of disk.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// All that is kept of one snapshot: enough, together with the snapshot's folder, to bring it
/// back without the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Number of its folder; never given out twice.
    pub id: u64,
    /// Greater in each later version of any record: of two copies the greater one holds.
    pub revision: u64,
    /// What it is at present.
    pub kind: Kind,
    /// Its key, or since the commit its name.
    pub key: Key,
    /// The committed snapshot it builds on.
    pub parent: Option<Key>,
    /// Its labels.
    pub labels: Labels,
    /// When it was prepared, or committed.
    pub created: Stamp,
    /// When it was last changed.
    pub updated: Stamp,
    /// What it held when it was committed.
    pub usage: Option<Usage>,
    /// What is needed to mount it again, if it is a lazy layer.
    pub lazy: Option<LayerRecord>,
    /// Why it is not lazy, if containerd asked for that and unpacked it instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
}

/// Why a layer is not lazy, as it is kept with its snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The reason.
    pub reason: Reason,
    /// The same in a sentence, cut to [`MAX_WHY`] characters.
    pub why: String,
    /// The image it was pulled as part of, if containerd said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The manifest that names it, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Digest>,
    /// Digest of the compressed blob, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<Digest>,
}

/// Most characters that are kept of why a layer is not lazy.
pub const MAX_WHY: usize = 1000;

impl Refused {
    /// What is kept of a refusal, with what the labels of the Prepare say of the layer.
    pub(super) fn new(reason: Reason, why: &str, labels: &Labels) -> Self {
        let digest = |key: &str| labels.get(key)?.parse().ok();
        Self {
            reason,
            why: why.chars().take(MAX_WHY).collect(),
            image: labels.get(label::IMAGE_REF).cloned(),
            manifest: digest(label::MANIFEST_DIGEST),
            layer: digest(label::LAYER_DIGEST),
        }
    }
}

impl Key {
    /// Takes a key from outside.
    ///
    /// # Errors
    /// It is empty.
    pub fn new(text: impl Into<Arc<str>>) -> Result<Self, Error> {
        let text = text.into();
        if text.is_empty() {
            return Err(Error::Invalid("the snapshot's key is empty".to_owned()));
        }
        Ok(Self(text))
    }

    /// Takes a parent from outside, where the empty text means none.
    #[must_use]
    pub fn optional(text: impl Into<Arc<str>>) -> Option<Self> {
        let text = text.into();
        (!text.is_empty()).then_some(Self(text))
    }

    /// The whole text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The containerd namespace that the snapshot belongs to: containerd calls it `NAMESPACE/NUMBER/NAME`
    /// (`core/metadata/snapshot.go`, `createKey`).
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        let mut parts = self.0.splitn(3, '/');
        let (namespace, number) = (parts.next()?, parts.next()?);
        parts.next()?;
        (!namespace.is_empty() && number.parse::<u64>().is_ok()).then_some(namespace)
    }
}

impl TryFrom<String> for Key {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        Self::new(text)
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.as_str().to_owned()
    }
}

impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.chars();
        for c in shown.by_ref().take(SHOWN) {
            write!(f, "{}", if c.is_control() { '?' } else { c })?;
        }
        match shown.next() {
            Some(_) => f.write_str("..."),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl Stamp {
    /// The present moment.
    #[must_use]
    pub fn now() -> Self {
        // A clock before 1970 is a broken clock; its snapshots are then of 1970.
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: since.subsec_nanos(),
        }
    }
}

impl Record {
    /// The chain id that this lazy snapshot answers for, as containerd's next List asks for it.
    #[must_use]
    pub fn target(&self) -> Option<&str> {
        let target = self.labels.get(label::SNAPSHOT_REF)?;
        self.lazy.is_some().then_some(target.as_str())
    }
}

/// Takes labels from outside.
///
/// # Errors
/// One is longer than containerd allows.
pub fn labels(given: HashMap<String, String>) -> Result<Labels, Error> {
    let mut kept = Labels::new();
    for (key, value) in given {
        if key.len() + value.len() > LABEL {
            let shown: String = key.chars().take(64).collect();
            return Err(Error::Invalid(format!(
                "label {shown:?} is longer than {LABEL} bytes, key and value together"
            )));
        }
        if !value.is_empty() {
            kept.insert(key, value);
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_key_is_cut_in_messages_and_whole_in_records() {
        let key = Key::new("k\0".repeat(1 << 19)).unwrap();
        assert!(key.to_string().len() < 300);
        let json = serde_json::to_vec(&key).unwrap();
        assert!(serde_json::from_slice::<Key>(&json).unwrap() == key);
    }

    #[test]
    fn the_namespace_is_the_first_part_of_containerds_names() {
        for (name, namespace) in [
            ("k8s.io/12/extract-1 sha256:ab", Some("k8s.io")),
            ("default/7/a/b", Some("default")),
            ("default/x/a", None),
            ("default/7", None),
            ("/7/a", None),
            ("sha256:ab", None),
        ] {
            assert_eq!(Key::new(name).unwrap().namespace(), namespace, "{name}");
        }
    }

    #[test]
    fn labels_have_containerds_limit() {
        let one = |len: usize| HashMap::from([("k".repeat(96), "v".repeat(len))]);
        assert!(labels(one(4000)).is_ok());
        assert!(matches!(labels(one(4001)), Err(Error::Invalid(_))));
        assert!(labels(one(0)).unwrap().is_empty());
    }
}
