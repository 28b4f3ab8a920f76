//! The table of contents of a layer: what is in it, and where in the blob its bytes are.
//!
//! [`inflate_toc`] unpacks it, [`Toc::verify`] compares it with its digest, and only then
//! [`Toc::for_each`] parses it: one pass over the JSON, one call for each object, never all of them
//! in memory at once. Everything is checked on the way (names, types, numbers, times, attributes,
//! and that a file's chunks cover it exactly); what remains for the caller is the tree: duplicate
//! names, missing parents, and where hard links lead.

mod chunks;
mod entry;
mod json;
mod name;
mod time;
mod unpack;
mod walk;
mod xattr;

use std::borrow::Cow;

use crate::oci::Digest;
use crate::stargz::{Error, Limits};

pub use entry::{Chunk, Entry, EntryKind, Mtime};
pub use unpack::inflate_toc;

/// The JSON of a TOC that may be believed.
pub struct Toc {
    json: Vec<u8>,
    digest: Digest,
    verified: bool,
}

impl Toc {
    /// Accepts a TOC whose bytes, all of them, have the digest that the manifest promises. Every
    /// chunk in it must then have a digest too.
    ///
    /// # Errors
    /// [`Error::TocDigest`]: it is another TOC.
    pub fn verify(json: Vec<u8>, expected: &Digest) -> Result<Self, Error> {
        let digest = Digest::of(&json);
        if digest != *expected {
            return Err(Error::TocDigest {
                expected: *expected,
                found: digest,
            });
        }
        Ok(Self {
            json,
            digest,
            verified: true,
        })
    }

    /// Accepts any TOC, and chunks without a digest in it: for legacy stargz, where the operator
    /// has allowed it by name.
    #[must_use]
    pub fn unverified(json: Vec<u8>) -> Self {
        Self {
            digest: Digest::of(&json),
            json,
            verified: false,
        }
    }

    /// The digest of the JSON.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Whether somebody vouched for it.
    #[must_use]
    pub const fn is_verified(&self) -> bool {
        self.verified
    }

    /// Calls `visit` for each object of the layer, in the TOC's order; `data_end` is the footer's
    /// TOC offset, before which all chunks must lie.
    ///
    /// The end of the TOC is judged last: a caller that builds something keeps it only when this
    /// function returns `Ok`.
    ///
    /// # Errors
    /// The TOC is malformed or exceeds a limit, or `visit` refused an entry, which ends the walk.
    pub fn for_each<E: From<Error>>(
        &self,
        limits: &Limits,
        data_end: u64,
        visit: &mut dyn FnMut(Entry<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut refused = None;
        let mut sink = |entry: Entry<'_>| match visit(entry) {
            Ok(()) => true,
            Err(error) => {
                refused = Some(error);
                false
            }
        };
        let rules = walk::Rules {
            limits,
            data_end,
            digests: self.verified,
        };
        let outcome = walk::walk(&self.json, &rules, &mut sink);
        refused.map_or_else(|| outcome.map_err(E::from), Err)
    }
}

/// A string's bytes, borrowed if it was.
fn bytes(name: Cow<'_, str>) -> Cow<'_, [u8]> {
    match name {
        Cow::Borrowed(name) => Cow::Borrowed(name.as_bytes()),
        Cow::Owned(name) => Cow::Owned(name.into_bytes()),
    }
}

#[cfg(test)]
mod tests;
