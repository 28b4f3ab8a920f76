//! What can be wrong with a layer: one error type for the blob, one for an entry of its TOC.
//!
//! Strings that came from a blob are quoted, escaped and cut before they enter a message, so that
//! a hostile layer can neither forge nor flood a log.

use crate::oci::{Digest, DigestError};
use crate::stargz::{Format, TOC_NAME};

/// How much of a hostile string a message shows, in characters.
const SHOWN: usize = 120;

/// Why a blob, its TOC or one of its chunks is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The blob ends like a layer with a TOC, but not exactly as the format says.
    #[error("the blob ends in a gzip member as long as {format}'s footer, but {what}")]
    Footer {
        /// Whose footer it resembles.
        format: Format,
        /// Which field is wrong.
        what: &'static str,
    },
    /// The bytes given as the end of the blob are longer than the blob.
    #[error("the blob has {blob_size} bytes, but {tail} were given as its end")]
    FooterTail {
        /// Bytes given.
        tail: usize,
        /// Size of the blob.
        blob_size: u64,
    },
    /// The footer's TOC offset does not lie between the data and the footer.
    #[error("the footer says that the toc is at {offset}, which is not inside 1..{end}")]
    TocOffset {
        /// What the footer says.
        offset: u64,
        /// Where the footer starts.
        end: u64,
    },
    /// The TOC lies in another image (eStargz with an external TOC).
    #[error("the toc is kept in a separate image (external toc), which is not supported")]
    ExternalToc,

    /// What the footer points at is not a gzip member with a tar in it.
    #[error("the toc cannot be unpacked: {0}")]
    TocUnpack(String),
    /// The TOC is larger than allowed.
    #[error("the toc is larger than {limit} bytes")]
    TocTooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// The tar in the TOC member holds something else than one `stargz.index.json`.
    #[error("the toc's tar holds {found}, expected the regular file {TOC_NAME} and nothing else")]
    TocTar {
        /// What was found.
        found: String,
    },
    /// The tar header promises more JSON than there is.
    #[error("the toc's tar header says {expected} bytes, found {found}")]
    TocSize {
        /// Size in the tar header.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// The TOC is not the one that the manifest promises.
    #[error("the toc's digest is {found}, expected {expected}")]
    TocDigest {
        /// What the manifest says.
        expected: Digest,
        /// What was found.
        found: Digest,
    },

    /// The TOC is not UTF-8.
    #[error("the toc is not utf-8 at byte {at}")]
    TocUtf8 {
        /// First byte that is not.
        at: u64,
    },
    /// The TOC is not JSON, or not JSON of the right shape.
    #[error("the toc is malformed in the value at byte {at}: {what}")]
    TocJson {
        /// Where that value begins in the JSON; lines and columns in `what` count from there.
        at: u64,
        /// What the JSON parser says.
        what: String,
    },
    /// The TOC has a version that is not 1.
    #[error("the toc has version {found}, only version 1 is known")]
    TocVersion {
        /// What was found.
        found: i64,
    },
    /// The TOC has more entries than allowed.
    #[error("the toc has more than {limit} entries")]
    TocEntries {
        /// The limit.
        limit: u32,
    },
    /// An entry of the TOC is refused.
    #[error("toc entry {index} ({name}): {why}")]
    Entry {
        /// Position in the TOC, from 0, chunks counted.
        index: u32,
        /// The name it has in the TOC, quoted and cut.
        name: String,
        /// What is wrong with it.
        why: EntryError,
    },

    /// What should be a gzip member is none, or its header is not one that RFC 1952 allows.
    #[error("not a gzip member: {0}")]
    MemberHeader(&'static str),
    /// The compressed data of a gzip member is damaged.
    #[error("the gzip member's data is damaged after {inflated} bytes: {what}")]
    MemberData {
        /// Bytes that came out before.
        inflated: u64,
        /// What zlib says.
        what: String,
    },
    /// A gzip member ended, or its bytes did, before all that was wanted came out.
    #[error("the gzip member yields {inflated} bytes, expected at least {wanted}")]
    MemberShort {
        /// Bytes that came out.
        inflated: u64,
        /// Bytes the TOC promises.
        wanted: u64,
    },
    /// The content of a chunk is not what the TOC promises.
    #[error("the chunk's digest is {found} ({len} bytes), expected {expected}")]
    ChunkDigest {
        /// What the TOC says.
        expected: Digest,
        /// What was found.
        found: Digest,
        /// Bytes digested.
        len: usize,
    },
}

/// Why one entry of a TOC is refused. Offsets and sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The entry has no `name`.
    #[error("it has no name")]
    NameMissing,
    /// A path holds a `..`.
    #[error("its path {0} holds a .. component")]
    DotDot(String),
    /// A path or a symlink's target holds a NUL byte.
    #[error("its path {0} holds a nul byte")]
    Nul(String),
    /// A component of a path is longer than the kernel allows.
    #[error("its path has a component of {0} bytes, the kernel allows 255")]
    Component(usize),
    /// A path or a symlink's target is longer than the kernel allows.
    #[error("its path has {0} bytes, the kernel allows 4095")]
    Path(usize),
    /// Something that is not a directory has the root's name, or links to the root.
    #[error("the root is a directory, and nothing else can be or link to it")]
    Root,
    /// The `type` is not one that the format knows.
    #[error("its type {0} is unknown")]
    Type(String),
    /// A link has no target.
    #[error("it is a link without a target")]
    LinkEmpty,
    /// A hard link to itself.
    #[error("it is a hard link to itself")]
    LinkSelf,
    /// The mode is negative.
    #[error("its mode {0} is negative")]
    Mode(i64),
    /// A user or group id that Linux cannot express.
    #[error("its {key} {id} is above 4294967294")]
    Id {
        /// `uid` or `gid`.
        key: &'static str,
        /// What was found.
        id: u64,
    },
    /// A device number that Linux cannot express.
    #[error("its device {major}:{minor} is outside 0..4096:0..1048576")]
    Device {
        /// Major number.
        major: u64,
        /// Minor number.
        minor: u64,
    },
    /// The modification time is not RFC 3339.
    #[error("its modtime {0} is not an rfc 3339 time of the years 0000 to 9999")]
    Mtime(String),

    /// A chunk that does not follow its file.
    #[error("it is a chunk that does not follow a regular file")]
    ChunkOrphan,
    /// A chunk that names another file than the one it follows.
    #[error("it is a chunk of {0}, but follows another file")]
    ChunkName(String),
    /// A chunk that does not start where the one before ended.
    #[error("its chunk starts at {found}, expected {expected}")]
    ChunkOffset {
        /// Where the chunk before ended.
        expected: u64,
        /// What was found.
        found: u64,
    },
    /// A chunk that reaches beyond the end of its file.
    #[error("its chunk of {size} bytes at {at} reaches beyond the file's size {file}")]
    ChunkBeyond {
        /// Where in the file it starts.
        at: u64,
        /// Its size.
        size: u64,
        /// Size of the file.
        file: u64,
    },
    /// A chunk larger than allowed.
    #[error("its chunk has {size} bytes, the limit is {limit}")]
    ChunkLarge {
        /// Its size.
        size: u64,
        /// The limit.
        limit: u32,
    },
    /// The chunks end before their file does.
    #[error("its chunks end at {found}, its size is {size}")]
    ChunksShort {
        /// Where the last chunk ends.
        found: u64,
        /// Size of the file.
        size: u64,
    },
    /// The chunk does not lie in the blob's data.
    #[error("its offset {offset} is not inside the blob's data (0..{end})")]
    Offset {
        /// What was found.
        offset: u64,
        /// Where the TOC starts.
        end: u64,
    },
    /// The chunk lies further inside an inflated gzip member than allowed.
    #[error("its chunk ends {end} bytes into an inflated gzip member, the limit is {limit}")]
    InnerOffset {
        /// Where it ends (`u64::MAX`: beyond all numbers).
        end: u64,
        /// The limit.
        limit: u64,
    },
    /// A chunk has no digest, though the layer is to be verified.
    #[error("its chunk at {at} has no digest")]
    DigestMissing {
        /// Where in the file the chunk starts.
        at: u64,
    },
    /// A digest is not one.
    #[error(transparent)]
    Digest(#[from] DigestError),

    /// The name of an extended attribute is empty, too long, or holds a NUL byte.
    #[error("the name of its extended attribute {0} is empty, above 255 bytes or holds a nul")]
    XattrName(String),
    /// The name of an extended attribute occurs twice.
    #[error("its extended attribute {0} occurs twice")]
    XattrTwice(String),
    /// The value of an extended attribute is not base64.
    #[error("the value of its extended attribute {0} is not base64")]
    XattrBase64(String),
    /// The value of an extended attribute is too large.
    #[error("its extended attribute {name} has {size} bytes, the kernel allows 65536")]
    XattrLarge {
        /// Its name, quoted.
        name: String,
        /// Its size.
        size: usize,
    },
    /// The names of all extended attributes are together too long to be listed.
    #[error("the names of its extended attributes take {0} bytes, the kernel allows 65536")]
    XattrList(usize),
    /// The value of an extended attribute that the kernel interprets is malformed.
    #[error("the value of its extended attribute {0} is malformed")]
    XattrMalformed(String),
}

/// Quotes, escapes and cuts a string that came from a blob.
pub(crate) fn quoted(hostile: &[u8]) -> String {
    let text = String::from_utf8_lossy(hostile.get(..4 * SHOWN).unwrap_or(hostile));
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < hostile.len() && text.chars().count() > SHOWN {
        shown.push('…');
    }
    format!("{shown:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_strings_are_escaped_and_cut() {
        assert_eq!(quoted(b"a/b"), "\"a/b\"");
        assert_eq!(quoted(b"a\nlevel=info"), "\"a\\nlevel=info\"");
        assert!(quoted(&vec![b'x'; 1 << 20]).len() < 2 * SHOWN);
        assert!(quoted(&vec![0; 1 << 20]).len() < 7 * SHOWN);
    }
}
