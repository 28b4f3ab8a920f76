//! What the names of a layer's entries mean: ordinary files, whiteouts, and what is hidden.
//!
//! Whiteouts are the image-spec's (layer.md, "Whiteouts"): `.wh.NAME` says that `NAME` of the
//! layers below is gone, `.wh..wh..opq` that a folder hides all of theirs. AUFS's own bookkeeping
//! (`.wh..wh.plnk`, `.wh..wh.aufs`) is dropped, as containerd does when it unpacks.

use crate::fs::index::error::TreeError;
use crate::stargz::{NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TOC_NAME};

/// Longest name of a directory entry (NAME_MAX).
pub const MAX_NAME: usize = 255;

const WHITEOUT: &[u8] = b".wh.";
const META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What an entry of a TOC stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// The layer's root.
    Root,
    /// The file `name` in `folder`.
    Plain {
        /// Path of the folder, empty for the root.
        folder: &'a [u8],
        /// Name in it.
        name: &'a [u8],
    },
    /// `name` of the layers below is gone.
    Whiteout {
        /// Path of the folder.
        folder: &'a [u8],
        /// What is gone.
        name: &'a [u8],
    },
    /// `folder` hides what the layers below have in it.
    Opaque {
        /// Path of the folder.
        folder: &'a [u8],
    },
    /// The end of what is worth prefetching; not shown.
    Landmark,
    /// Of the format or of AUFS; not shown.
    Hidden,
}

/// Sorts an entry's cleaned path into what it means.
///
/// # Errors
/// [`TreeError::Whiteout`], [`TreeError::BelowWhiteout`], [`TreeError::Name`].
pub fn meaning(path: &[u8]) -> Result<Meaning<'_>, TreeError> {
    if path.is_empty() {
        return Ok(Meaning::Root);
    }
    let (folder, name) = split(path);
    if in_metadata(folder)? {
        return Ok(Meaning::Hidden);
    }
    if folder.is_empty() && path == PREFETCH_LANDMARK {
        return Ok(Meaning::Landmark);
    }
    if folder.is_empty() && (path == NO_PREFETCH_LANDMARK || path == TOC_NAME.as_bytes()) {
        return Ok(Meaning::Hidden);
    }
    if name == OPAQUE {
        return Ok(Meaning::Opaque { folder });
    }
    if name.starts_with(META) {
        return Ok(Meaning::Hidden);
    }
    let Some(gone) = name.strip_prefix(WHITEOUT) else {
        check(name)?;
        return Ok(Meaning::Plain { folder, name });
    };
    check(gone).map_err(|_| TreeError::Whiteout)?;
    Ok(Meaning::Whiteout { folder, name: gone })
}

/// Folder and name of a path that is not empty.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (
            path.get(..slash).unwrap_or_default(),
            path.get(slash + 1..).unwrap_or_default(),
        ),
        None => (&[], path),
    }
}

/// Whether this can be the name of a directory entry. The parser of the TOC holds names to that;
/// what goes into a reply to the kernel is worth a second look (CVE-2026-31694).
///
/// # Errors
/// [`TreeError::Name`].
pub fn check(name: &[u8]) -> Result<(), TreeError> {
    let bad = name.is_empty()
        || name == b"."
        || name == b".."
        || name.len() > MAX_NAME
        || name.iter().any(|&byte| byte == b'/' || byte == 0);
    if bad {
        return Err(TreeError::Name);
    }
    Ok(())
}

/// Whether a folder's path leads through AUFS's bookkeeping. Through a whiteout none can lead.
fn in_metadata(folder: &[u8]) -> Result<bool, TreeError> {
    for part in folder.split(|&byte| byte == b'/') {
        if part.starts_with(META) && part != OPAQUE {
            return Ok(true);
        }
        if part.starts_with(WHITEOUT) {
            return Err(TreeError::BelowWhiteout);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_what_the_image_spec_says() {
        use Meaning::{Hidden, Landmark, Opaque, Plain, Root, Whiteout};
        let plain = |folder, name| Ok(Plain { folder, name });
        for (path, expected) in [
            (&b""[..], Ok(Root)),
            (b"a", plain(b"", b"a")),
            (b"a/b/c", plain(b"a/b", b"c")),
            (b".prefetch.landmark", Ok(Landmark)),
            (b".no.prefetch.landmark", Ok(Hidden)),
            (b"stargz.index.json", Ok(Hidden)),
            (b"a/.prefetch.landmark", plain(b"a", b".prefetch.landmark")),
            (b"a/stargz.index.json", plain(b"a", b"stargz.index.json")),
            (
                b"a/.wh.b",
                Ok(Whiteout {
                    folder: b"a",
                    name: b"b",
                }),
            ),
            (b".wh..wh..opq", Ok(Opaque { folder: b"" })),
            (b"a/.wh..wh..opq", Ok(Opaque { folder: b"a" })),
            (b".wh..wh.plnk", Ok(Hidden)),
            (b".wh..wh.plnk/12.34", Ok(Hidden)),
            (b".wh..wh.aufs", Ok(Hidden)),
            (b".wh.", Err(TreeError::Whiteout)),
            (b".wh..", Err(TreeError::Whiteout)),
            (b"a/.wh...", Err(TreeError::Whiteout)),
            (b".wh.a/b", Err(TreeError::BelowWhiteout)),
            (b".wh..wh..opq/b", Err(TreeError::BelowWhiteout)),
            (b"a/..", Err(TreeError::Name)),
            (b".whx", plain(b"", b".whx")),
        ] {
            assert_eq!(meaning(path), expected, "{}", path.escape_ascii());
        }
        assert_eq!(meaning(&[b'n'; 256]), Err(TreeError::Name));
        assert!(meaning(&[b'n'; 255]).is_ok());
    }
}
