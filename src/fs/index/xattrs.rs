//! Sets of extended attributes, each distinct set stored once.
//!
//! A set: number of attributes, length of what follows (u32 each), then for each attribute the
//! lengths of name and value (u32 each), name, value; sorted by name.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::fs::index::error::{HELD, TreeError};
use crate::fs::index::format::Fields;

/// What marks a folder as opaque to overlayfs (kernel: `Documentation/filesystems/overlayfs.rst`).
pub const OPAQUE: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");

/// Names under which the kernel keeps POSIX ACLs.
const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

/// File capabilities (capabilities(7)).
const CAPABILITY: &[u8] = b"security.capability";

/// Length of a set's own header.
pub const SET_HEADER: u64 = 8;

/// All sets of an index under construction.
#[derive(Default)]
pub struct Sets {
    bytes: Vec<u8>,
    known: HashMap<Box<[u8]>, u32>,
    has_acl: bool,
}

impl Sets {
    /// Stores a set, and returns the reference to it that goes into an inode record: 1 + its
    /// offset, 0 for an empty one.
    ///
    /// # Errors
    /// [`TreeError::TooLarge`], [`TreeError::TooMuch`].
    pub fn add(&mut self, set: &[(Cow<'_, [u8]>, Vec<u8>)]) -> Result<u32, TreeError> {
        let mut set: Vec<(&[u8], &[u8])> = set.iter().map(|(n, v)| (&**n, &**v)).collect();
        self.intern(&mut set)
    }

    /// Stores the set `reference` with [`OPAQUE`] added.
    ///
    /// # Errors
    /// [`TreeError::TooLarge`], [`TreeError::TooMuch`].
    pub fn with_opaque(&mut self, reference: u32) -> Result<u32, TreeError> {
        let at = (reference as usize).checked_sub(1);
        let old = at.and_then(|at| Set::parse(self.bytes.get(at..)?));
        let body = old.map_or_else(Vec::new, |set| set.body.to_owned());
        let mut set: Vec<_> = Set { body: &body }.iter().collect();
        set.retain(|(name, _)| *name != OPAQUE.0);
        set.push(OPAQUE);
        self.intern(&mut set)
    }

    /// Stores the set `reference` as it is after a change of owner, which takes file capabilities
    /// away, with the attributes of `set` in it.
    ///
    /// # Errors
    /// [`TreeError::TooLarge`], [`TreeError::TooMuch`].
    pub fn relabelled(
        &mut self,
        reference: u32,
        set: &[(Cow<'_, [u8]>, Vec<u8>)],
    ) -> Result<u32, TreeError> {
        let at = (reference as usize).checked_sub(1);
        let old = at.and_then(|at| Set::parse(self.bytes.get(at..)?));
        let body = old.map_or_else(Vec::new, |set| set.body.to_owned());
        let new = set.iter().map(|(name, value)| (&**name, &**value));
        let mut all: Vec<(&[u8], &[u8])> = Set { body: &body }.iter().collect();
        all.retain(|(old, _)| *old != CAPABILITY && !set.iter().any(|(name, _)| **name == **old));
        all.extend(new);
        self.intern(&mut all)
    }

    /// Whether any file has a POSIX ACL.
    pub const fn has_acl(&self) -> bool {
        self.has_acl
    }

    /// The section's bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn intern(&mut self, set: &mut [(&[u8], &[u8])]) -> Result<u32, TreeError> {
        if set.is_empty() {
            return Ok(0);
        }
        set.sort_unstable();
        self.has_acl |= set.iter().any(|(name, _)| ACLS.contains(name));
        let encoded = encode(set).ok_or(TreeError::TooLarge)?;
        if let Some(reference) = self.known.get(encoded.as_slice()) {
            return Ok(*reference);
        }
        if self.bytes.len() + encoded.len() > HELD {
            return Err(TreeError::TooMuch("extended attributes"));
        }
        let reference = self.bytes.len() + 1;
        let reference = u32::try_from(reference).map_err(|_| TreeError::TooLarge)?;
        self.bytes.extend_from_slice(&encoded);
        self.known.insert(encoded.into_boxed_slice(), reference);
        Ok(reference)
    }
}

fn encode(set: &[(&[u8], &[u8])]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    for (name, value) in set {
        for part in [name, value] {
            body.extend_from_slice(&u32::try_from(part.len()).ok()?.to_le_bytes());
        }
        body.extend_from_slice(name);
        body.extend_from_slice(value);
    }
    let mut out = u32::try_from(set.len()).ok()?.to_le_bytes().to_vec();
    out.extend_from_slice(&u32::try_from(body.len()).ok()?.to_le_bytes());
    out.append(&mut body);
    Some(out)
}

/// A stored set.
#[derive(Debug, Clone, Copy)]
pub struct Set<'a> {
    body: &'a [u8],
}

impl<'a> Set<'a> {
    /// No attributes.
    pub const EMPTY: Self = Self { body: &[] };

    /// The set at the start of `bytes`; `None` if they are too few.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let _count = fields.u32()?;
        let len = fields.u32()?;
        let body = fields.bytes(len as usize)?;
        Some(Self { body })
    }

    /// How many bytes follow a set's header, from the header.
    pub fn body_len(header: &[u8]) -> Option<u64> {
        let mut fields = Fields(header);
        let _count = fields.u32()?;
        fields.u32().map(u64::from)
    }

    /// Its attributes, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let mut fields = Fields(self.body);
        std::iter::from_fn(move || {
            let (name, value) = (fields.u32()?, fields.u32()?);
            Some((fields.bytes(name as usize)?, fields.bytes(value as usize)?))
        })
    }

    /// The value of one attribute.
    pub fn get(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(set: &[(&'static str, &str)]) -> Vec<(Cow<'static, [u8]>, Vec<u8>)> {
        set.iter()
            .map(|(n, v)| (Cow::Borrowed(n.as_bytes()), v.as_bytes().to_vec()))
            .collect()
    }

    #[test]
    fn equal_sets_are_stored_once_and_come_back_sorted() {
        let mut sets = Sets::default();
        assert_eq!(sets.add(&[]).unwrap(), 0);
        let one = sets
            .add(&pairs(&[("user.b", "2"), ("user.a", "1")]))
            .unwrap();
        let two = sets
            .add(&pairs(&[("user.a", "1"), ("user.b", "2")]))
            .unwrap();
        let three = sets.add(&pairs(&[("user.a", "")])).unwrap();
        assert_eq!(one, two);
        assert_ne!(one, three);
        assert!(!sets.has_acl());
        let opaque = sets.with_opaque(one).unwrap();
        assert_eq!(sets.with_opaque(opaque).unwrap(), opaque);
        let bare = sets.with_opaque(0).unwrap();
        let bytes = sets.into_bytes();
        let at = |reference: u32| Set::parse(&bytes[reference as usize - 1..]).unwrap();
        let all: Vec<_> = at(one).iter().collect();
        assert_eq!(all, [(&b"user.a"[..], &b"1"[..]), (b"user.b", b"2")]);
        assert_eq!(at(three).get(b"user.a"), Some(&b""[..]));
        assert_eq!(at(three).get(b"user.b"), None);
        assert_eq!(at(opaque).get(OPAQUE.0), Some(OPAQUE.1));
        assert_eq!(at(opaque).iter().count(), 3);
        assert_eq!(at(bare).iter().count(), 1);
    }

    #[test]
    fn more_than_is_held_is_refused() {
        let mut sets = Sets::default();
        let mut add = |number: usize| {
            let value = format!("{number:065535}");
            sets.add(&pairs(&[("user.a", &value)])).map(drop)
        };
        let most = HELD >> 16;
        (1..most).for_each(|number| add(number).unwrap());
        add(1).unwrap();
        let refused = add(most).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the layer has more than 64 MiB of extended attributes"
        );
    }

    #[test]
    fn an_acl_is_noticed() {
        let mut sets = Sets::default();
        sets.add(&pairs(&[("system.posix_acl_access", "x")]))
            .unwrap();
        assert!(sets.has_acl());
    }

    #[test]
    fn a_cut_set_ends_early_and_never_panics() {
        let mut sets = Sets::default();
        sets.add(&pairs(&[("user.a", "1"), ("user.b", "22")]))
            .unwrap();
        let bytes = sets.into_bytes();
        for cut in 0..bytes.len() {
            assert!(Set::parse(&bytes[..cut]).is_none());
            let body = bytes.get(8..cut).unwrap_or_default();
            assert!(Set { body }.iter().count() < 2);
        }
    }
}
