//! Where a path leads in a container on a stack of layers.

use std::ops::Range;

use crate::fs::Index;
use crate::fs::index::Kind;

/// Symlinks followed on one path, as the kernel's `MAXSYMLINKS`.
const MOST_LINKS: usize = 40;
/// The deepest file that is looked for: what programs need lies less deep, and each folder on the way is looked up from the
/// root in each layer.
const MOST_DEPTH: usize = 64;

/// A regular file of one of the layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::layer) struct Place {
    /// The layer's place in the stack that was looked through.
    pub layer: usize,
    /// All of its chunks.
    pub chunks: Range<u32>,
    /// Its size in bytes.
    pub size: u64,
    /// Where it lies, symlinks followed, without a slash at the start; `None` if that was not asked for.
    pub path: Option<Vec<u8>>,
}

/// The regular file at `path` in a container on these layers, topmost first. Whiteouts do not count, nor does what
/// cannot be read: at worst something is fetched that nobody needs.
pub(super) fn find(stack: &[&Index], path: &[u8]) -> Option<Place> {
    let names = |path: &[u8]| -> Vec<Vec<u8>> {
        let names = path.split(|byte| *byte == b'/').rev();
        names.map(<[u8]>::to_vec).collect()
    };
    // Names still to go, the next one last.
    let mut rest = names(path);
    let mut at: Vec<Vec<u8>> = Vec::new();
    let mut links = 0;
    while let Some(name) = rest.pop() {
        match name.as_slice() {
            b"" | b"." => continue,
            b".." => _ = at.pop(),
            _ if at.len() == MOST_DEPTH => return None,
            _ => at.push(name),
        }
        let here = |(layer, index): (usize, &&Index)| {
            let kind = index.kind_at(at.iter().map(Vec::as_slice)).ok().flatten();
            Some((layer, kind?))
        };
        let (layer, kind) = stack.iter().enumerate().find_map(here)?;
        match kind {
            Kind::Folder { .. } => {}
            Kind::File { size, chunks } if rest.is_empty() => {
                return Some(Place {
                    layer,
                    chunks,
                    size,
                    path: Some(at.join(&b'/')),
                });
            }
            Kind::Symlink { target, len } if links < MOST_LINKS => {
                links += 1;
                let target = stack.get(layer)?.target(target, len).ok()?;
                match target.starts_with(b"/") {
                    true => at.clear(),
                    false => _ = at.pop(),
                }
                rest.extend(names(target));
            }
            _ => return None,
        }
    }
    None
}

/// Folders with `$ORIGIN` replaced by the one that the file at `path` lies in; without those that cannot be.
pub(super) fn origin(folders: &[Vec<u8>], path: Option<&[u8]>) -> Vec<Vec<u8>> {
    let folder = path.map(|path| {
        let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        path.get(..end).unwrap_or_default()
    });
    let replace = |text: &Vec<u8>| {
        let rest = text
            .strip_prefix(b"$ORIGIN")
            .or_else(|| text.strip_prefix(b"${ORIGIN}"));
        match (rest, folder) {
            (Some(rest), Some(folder)) => Some([folder, rest].concat()),
            (Some(_), None) => None,
            (None, _) => Some(text.clone()),
        }
    };
    folders.iter().filter_map(replace).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_seen_from_the_file_that_names_them() {
        let of = |folders: &[&str], path: Option<&str>| -> Vec<String> {
            let folders: Vec<_> = folders
                .iter()
                .map(|text| text.as_bytes().to_vec())
                .collect();
            let found = origin(&folders, path.map(str::as_bytes));
            let text = |found: Vec<u8>| String::from_utf8(found).unwrap();
            found.into_iter().map(text).collect()
        };
        let all = ["$ORIGIN/../lib", "${ORIGIN}", "/opt"];
        assert_eq!(of(&all, Some("a/b/c")), ["a/b/../lib", "a/b", "/opt"]);
        assert_eq!(of(&all, Some("c")), ["/../lib", "", "/opt"]);
        assert_eq!(of(&all, None), ["/opt"]);
    }
}
