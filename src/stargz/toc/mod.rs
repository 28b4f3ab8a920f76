//! The table of contents of a layer: what is in it, and where in the blob its bytes are.
//!
//! It is read twice from where it lies, and never held in memory: [`Toc::unpack`] inflates it to
//! compare it with its digest, and only then [`Toc::for_each`] inflates it again and parses it, one
//! call for each object. (*Measured*, 400,000 files: inflating is a fifth of the work on a layer, so
//! the second time costs a tenth; keeping 126 MB of JSON on disk for it would not cost less.)
//! Everything is checked on the way (names, types, numbers, times, attributes, and that a file's
//! chunks cover it exactly); what remains for the caller is the tree: duplicate names, missing
//! parents, and where hard links lead.

mod chunks;
mod entry;
mod json;
mod name;
mod time;
mod unpack;
mod walk;
mod window;
mod xattr;

use std::borrow::Cow;
use std::io::{self, BufRead, Read};

use crate::oci::{Digest, Hasher};
use crate::stargz::{Error, Limits};

pub use entry::{Chunk, Entry, EntryKind, Mtime};

/// How much is hashed at a time, in bytes.
const PIECE: usize = 128 << 10;

/// Bytes that do not change and can be read from their beginning more than once.
pub trait Reread: Send {
    /// A reader at their beginning.
    fn reread(&self) -> Box<dyn BufRead + '_>;
}

impl Reread for Vec<u8> {
    fn reread(&self) -> Box<dyn BufRead + '_> {
        Box::new(self.as_slice())
    }
}

/// A TOC that may be believed.
pub struct Toc {
    bytes: Packing,
    digest: Digest,
    verified: bool,
}

/// How a TOC is kept.
enum Packing {
    /// As it lies in the blob.
    Member(Box<dyn Reread>),
    Json(Vec<u8>),
}

impl Toc {
    /// Unpacks a TOC: `member` is the blob from the footer's TOC offset up to the footer; bytes
    /// after the gzip member in it are ignored. With a `promised` digest all of its bytes must have
    /// that, and every chunk in it must have a digest too; without one, anything is accepted (for
    /// legacy stargz, where the operator has allowed it by name).
    ///
    /// # Errors
    /// It is no gzip member, its checksum is wrong, its tar holds anything but one
    /// `stargz.index.json`, it is larger than `limits.toc_json`, which ends the work early; or
    /// [`Error::TocDigest`]: it is another TOC.
    pub fn unpack(
        member: Box<dyn Reread>,
        promised: Option<&Digest>,
        limits: &Limits,
    ) -> Result<Self, Error> {
        let digest = unpack::unpack(&mut *member.reread(), limits, |json| {
            let mut hasher = Hasher::new();
            let mut piece = vec![0; PIECE];
            loop {
                match json.read(&mut piece) {
                    Ok(0) => return Ok(hasher.finish()),
                    Ok(len) => hasher.update(piece.get(..len).unwrap_or_default()),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(Error::TocUnpack(error.to_string())),
                }
            }
        })?;
        Self::promised(Packing::Member(member), digest, promised)
    }

    /// Accepts a TOC's JSON whose bytes, all of them, have the digest that the manifest promises.
    ///
    /// # Errors
    /// [`Error::TocDigest`]: it is another TOC.
    pub fn verify(json: Vec<u8>, expected: &Digest) -> Result<Self, Error> {
        let digest = Digest::of(&json);
        Self::promised(Packing::Json(json), digest, Some(expected))
    }

    /// Accepts any TOC's JSON, and chunks without a digest in it.
    #[must_use]
    pub fn unverified(json: Vec<u8>) -> Self {
        Self {
            digest: Digest::of(&json),
            bytes: Packing::Json(json),
            verified: false,
        }
    }

    fn promised(bytes: Packing, digest: Digest, promised: Option<&Digest>) -> Result<Self, Error> {
        match promised {
            Some(expected) if *expected != digest => Err(Error::TocDigest {
                expected: *expected,
                found: digest,
            }),
            _ => Ok(Self {
                bytes,
                digest,
                verified: promised.is_some(),
            }),
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
        let mut walk = |json: &mut dyn Read| walk::walk(json, &rules, &mut sink);
        let outcome = match &self.bytes {
            Packing::Json(json) => walk(&mut json.as_slice()),
            Packing::Member(member) => unpack::unpack(&mut *member.reread(), limits, walk),
        };
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

/// The JSON of a TOC, all of it in memory.
#[cfg(test)]
pub(in crate::stargz) fn inflate_toc(mut member: &[u8], limits: &Limits) -> Result<Vec<u8>, Error> {
    unpack::unpack(&mut member, limits, |json| {
        let mut all = Vec::new();
        let read = json.read_to_end(&mut all);
        read.map_err(|error| Error::TocUnpack(error.to_string()))?;
        Ok(all)
    })
}

#[cfg(test)]
mod tests;
