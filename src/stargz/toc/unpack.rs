//! The TOC's wrapping: a gzip member with a tar whose only entry is `stargz.index.json`.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;
use tar::{Archive, EntryType};

use crate::stargz::error::quoted;
use crate::stargz::{Error, Limits, TOC_NAME};

/// What the member may hold beyond the JSON, in bytes: the tar header and padding.
const SLACK: u64 = 64 << 10;

/// Unpacks the TOC: `member` is the blob from the footer's TOC offset up to the footer. `take` gets
/// the JSON to read, all of it, as it is inflated: it is checked only when this returns.
///
/// Bytes after the gzip member are ignored. What comes out has still to be verified.
///
/// # Errors
/// It is no gzip member, its checksum is wrong, its tar holds anything but one `stargz.index.json`,
/// or it is larger than `limits.toc_json`, which ends the work early; or what `take` says.
pub(super) fn unpack<T>(
    member: &mut dyn BufRead,
    limits: &Limits,
    take: impl FnOnce(&mut dyn Read) -> Result<T, Error>,
) -> Result<T, Error> {
    let bounded = GzDecoder::new(member).take(limits.toc_json.saturating_add(SLACK));
    let mut archive = Archive::new(bounded);
    let taken = only_entry(&mut archive, limits.toc_json, take)?;
    // Reads to the end, because the checksum stands there.
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(broken)?;
    if rest.limit() == 0 {
        let limit = limits.toc_json;
        return Err(Error::TocTooLarge { limit });
    }
    Ok(taken)
}

fn only_entry<R: Read, T>(
    archive: &mut Archive<R>,
    limit: u64,
    take: impl FnOnce(&mut dyn Read) -> Result<T, Error>,
) -> Result<T, Error> {
    // Raw: an extended header that renames the entry is one entry too many.
    let mut entries = archive.entries().map_err(broken)?.raw(true);
    let entry = match entries.next() {
        Some(entry) => entry.map_err(broken)?,
        None => return Err(found("nothing".to_owned())),
    };
    let name = entry.path_bytes().into_owned();
    let kind = entry.header().entry_type();
    if name != TOC_NAME.as_bytes() || !matches!(kind, EntryType::Regular) {
        return Err(found(format!("{} (tar type {kind:?})", quoted(&name))));
    }
    let size = entry.header().entry_size().map_err(broken)?;
    if size > limit {
        return Err(Error::TocTooLarge { limit });
    }
    // One byte more than there can be: what is left of it says how much there was.
    let mut json = entry.take(size.saturating_add(1));
    let taken = take(&mut json)?;
    let read = size.saturating_add(1) - json.limit();
    if read != size {
        return Err(Error::TocSize {
            expected: size,
            found: read,
        });
    }
    match entries.next() {
        None => Ok(taken),
        Some(Ok(second)) => Err(found(format!("also {}", quoted(&second.path_bytes())))),
        Some(Err(error)) => Err(broken(error)),
    }
}

fn found(found: String) -> Error {
    Error::TocTar { found }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn broken(error: io::Error) -> Error {
    Error::TocUnpack(error.to_string())
}
