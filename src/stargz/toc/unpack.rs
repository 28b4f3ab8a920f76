//! The TOC's wrapping: a gzip member with a tar whose only entry is `stargz.index.json`.

use std::io::{self, Read};

use flate2::bufread::GzDecoder;
use tar::{Archive, EntryType};

use crate::stargz::error::quoted;
use crate::stargz::{Error, Limits, TOC_NAME};

/// What the member may hold beyond the JSON, in bytes: the tar header and padding.
const SLACK: u64 = 64 << 10;
/// Deflate's best ratio, so that a size in a tar header alone reserves no memory.
const MAX_RATIO: u64 = 1032;

/// Unpacks the TOC: `member` is the blob from the footer's TOC offset up to the footer.
///
/// Bytes after the gzip member are ignored. What comes out has still to be verified.
///
/// # Errors
/// It is no gzip member, its checksum is wrong, its tar holds anything but one `stargz.index.json`,
/// or it is larger than `limits.toc_json`, which ends the work early.
pub fn inflate_toc(member: &[u8], limits: &Limits) -> Result<Vec<u8>, Error> {
    let too_large = Error::TocTooLarge {
        limit: limits.toc_json,
    };
    let bounded = GzDecoder::new(member).take(limits.toc_json.saturating_add(SLACK));
    let mut archive = Archive::new(bounded);
    let json = only_entry(&mut archive, member.len(), &too_large)?;
    // Reads to the end, because the checksum stands there.
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(unpack)?;
    if rest.limit() == 0 {
        return Err(too_large);
    }
    Ok(json)
}

fn only_entry<R: Read>(
    archive: &mut Archive<R>,
    compressed: usize,
    too_large: &Error,
) -> Result<Vec<u8>, Error> {
    let Error::TocTooLarge { limit } = *too_large else {
        return Err(too_large.clone());
    };
    // Raw: an extended header that renames the entry is one entry too many.
    let mut entries = archive.entries().map_err(unpack)?.raw(true);
    let mut entry = match entries.next() {
        Some(entry) => entry.map_err(unpack)?,
        None => return Err(found("nothing".to_owned())),
    };
    let name = entry.path_bytes().into_owned();
    let kind = entry.header().entry_type();
    if name != TOC_NAME.as_bytes() || !matches!(kind, EntryType::Regular) {
        return Err(found(format!("{} (tar type {kind:?})", quoted(&name))));
    }
    let size = entry.header().entry_size().map_err(unpack)?;
    if size > limit {
        return Err(too_large.clone());
    }
    let most = MAX_RATIO.saturating_mul(compressed as u64);
    let mut json = Vec::with_capacity(usize::try_from(size.min(most)).unwrap_or(0));
    entry.read_to_end(&mut json).map_err(unpack)?;
    if json.len() as u64 != size {
        return Err(Error::TocSize {
            expected: size,
            found: json.len() as u64,
        });
    }
    match entries.next() {
        None => Ok(json),
        Some(Ok(second)) => Err(found(format!("also {}", quoted(&second.path_bytes())))),
        Some(Err(error)) => Err(unpack(error)),
    }
}

fn found(found: String) -> Error {
    Error::TocTar { found }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unpack(error: io::Error) -> Error {
    Error::TocUnpack(error.to_string())
}
