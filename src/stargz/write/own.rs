//! The entries that the format itself adds to a tar: two landmarks and the TOC.

use super::error::Unsuitable;
use super::header::BLOCK;
use super::names::components;
use super::scan::{Entry, Kind};

/// Name of the TOC's tar entry, the last one (stargz-snapshotter `docs/estargz.md`).
pub(super) const TOC_NAME: &str = "stargz.index.json";
/// Marks the end of what a node should fetch at once.
pub(super) const PREFETCH: &str = ".prefetch.landmark";
/// Says that nothing should be fetched at once.
pub(super) const NO_PREFETCH: &str = ".no.prefetch.landmark";
/// What a landmark's one byte is.
pub(super) const LANDMARK_DATA: u8 = 0xf;

/// The name of the format's own that an entry has, if it has one; only in the root they mean it.
pub(super) fn reserved(entry: &Entry) -> Option<&'static str> {
    let mut parts = components(&entry.name);
    let only = parts.next()?;
    if parts.next().is_some() {
        return None;
    }
    let own = |name: &&'static str| name.as_bytes() == only;
    [TOC_NAME, PREFETCH, NO_PREFETCH].into_iter().find(own)
}

/// Whether an entry of the reserved `name`, whose data begins with `start`, was written by a
/// converter. If not it is the image's own file, which the converted layer would not show.
pub(super) fn check(entry: &Entry, name: &'static str, start: &[u8]) -> Result<(), Unsuitable> {
    let ours = match name {
        TOC_NAME => {
            let text = String::from_utf8_lossy(start);
            let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
            text.starts_with("{\"version\":") || text.starts_with("{\"entries\":")
        }
        _ => start == [LANDMARK_DATA] && entry.size == 1,
    };
    match ours && entry.kind == Kind::File {
        true => Ok(()),
        false => Err(Unsuitable::Reserved(name)),
    }
}

/// A ustar header for a file of our own: owned by root, without a time.
pub(super) fn header(name: &str, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in block.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    put(0, name.as_bytes());
    put(100, b"0000444\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    put(329, b"0000000\0");
    put(337, b"0000000\0");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    for (to, from) in block
        .iter_mut()
        .skip(148)
        .zip(format!("{sum:06o}\0 ").bytes())
    {
        *to = from;
    }
    block
}
