//! The one codec: a sealed record.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `CRFSREC` and the format's version, today 1 |
//! | 4 | length of the body, little-endian |
//! | n | the body, JSON |
//! | 4 | CRC-32 (IEEE) of everything before it, little-endian |
//!
//! JSON because a person with a broken node can read it with `strings`, and because unknown fields
//! of a later minor version are skipped. The seal because neither sled nor a file system notices a
//! flipped bit.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version in the last byte of the magic.
pub const VERSION: u8 = 1;
const MAGIC: &[u8; 7] = b"CRFSREC";
const HEAD: usize = 12;
const TAIL: usize = 4;

/// Why bytes are not a sealed record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Not begun by the magic, or cut.
    #[error("not a record, or cut short")]
    Shape,
    /// The checksum is another one.
    #[error("checksum mismatch")]
    Checksum,
    /// Intact, but written by a later program.
    #[error("record format {0} is newer than this program")]
    Newer(u8),
    /// Intact, but the body is not what it should be.
    #[error("body: {0}")]
    Body(String),
}

/// Encodes and seals `value`.
///
/// # Errors
/// The value cannot be written as JSON, or is larger than 4 GiB.
pub fn seal<T: Serialize>(value: &T) -> Result<Vec<u8>, Broken> {
    let body = serde_json::to_vec(value).map_err(|error| Broken::Body(error.to_string()))?;
    let len = u32::try_from(body.len()).map_err(|_| Broken::Body("too large".to_owned()))?;
    let mut bytes = Vec::with_capacity(HEAD + body.len() + TAIL);
    bytes.extend_from_slice(MAGIC);
    bytes.push(VERSION);
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&body);
    let sum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    Ok(bytes)
}

/// Checks the seal and decodes the body.
///
/// # Errors
/// The bytes are damaged, cut, or of a later format.
pub fn unseal<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Broken> {
    let (rest, sum) = bytes.split_last_chunk::<TAIL>().ok_or(Broken::Shape)?;
    let (head, body) = rest.split_first_chunk::<HEAD>().ok_or(Broken::Shape)?;
    let (magic, tail) = head.split_at(MAGIC.len());
    let (version, len) = tail.split_at(1);
    if magic != MAGIC {
        return Err(Broken::Shape);
    }
    if crc32fast::hash(rest) != u32::from_le_bytes(*sum) {
        return Err(Broken::Checksum);
    }
    if version != [VERSION] {
        return Err(Broken::Newer(version.first().copied().unwrap_or(0)));
    }
    if u32::try_from(body.len())
        .map(u32::to_le_bytes)
        .as_ref()
        .map(<[u8; 4]>::as_slice)
        != Ok(len)
    {
        return Err(Broken::Shape);
    }
    serde_json::from_slice(body).map_err(|error| Broken::Body(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_is_read_back() {
        let bytes = seal(&("a\0b", 7_u64)).unwrap();
        assert_eq!(unseal::<(String, u64)>(&bytes), Ok(("a\0b".to_owned(), 7)));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let bytes = seal(&vec!["some", "text"]).unwrap();
        for at in 0..bytes.len() {
            assert!(unseal::<Vec<String>>(&bytes[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(
                    unseal::<Vec<String>>(&damaged).is_err(),
                    "bit {bit} of {at}"
                );
            }
        }
    }

    #[test]
    fn a_later_format_is_told_from_damage() {
        let mut bytes = seal(&1).unwrap();
        bytes[7] = 2;
        let sum = crc32fast::hash(&bytes[..bytes.len() - TAIL]);
        let at = bytes.len() - TAIL;
        bytes[at..].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(unseal::<i32>(&bytes), Err(Broken::Newer(2)));
    }
}
