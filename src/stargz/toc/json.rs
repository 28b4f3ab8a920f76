//! The TOC's JSON, read as a stream: each entry is handed on as soon as it is parsed.
//!
//! Keys and their meaning are those of stargz-snapshotter `estargz/types.go`, and one of ours
//! ([`crate::stargz::UNREAD`]); a key that is left out stands for zero, false or the empty string, as
//! Go's `omitempty` leaves it out.
//!
//! Strict: a known key occurs once and has the right type, numbers are integers in range, nothing
//! follows the document. Unknown keys are read over, nested at most as deep as `serde_json` allows
//! (128).

use std::borrow::Cow;
use std::fmt;
use std::io::Read;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::stargz::Error;
use crate::stargz::toc::window::{Window, first};
use crate::stargz::toc::xattr;

/// More attributes than the kernel could list, and fewer than would cost memory.
const MAX_XATTRS: usize = 10_000;

/// Takes the next entry; `false` ends the parse.
pub(super) type Sink<'s> = &'s mut dyn FnMut(RawEntry<'_>) -> bool;

/// Reads a whole document and hands its entries on. Gives its version, which may stand behind the
/// entries; `None` if `sink` has ended it.
pub(super) fn document(input: &mut dyn Read, sink: Sink<'_>) -> Result<Option<i64>, Error> {
    let mut window = Window::new(input);
    let (mut version, mut entries) = (None, false);
    window.next_of("{")?;
    let mut after = match window.peek()? {
        Some(b'}') => window.next_of("}")?,
        _ => b',',
    };
    while after == b',' {
        let key = key(&mut window)?;
        window.next_of(":")?;
        match key {
            DocumentKey::Version if version.is_none() => version = Some(number(&mut window)?),
            DocumentKey::Entries if !entries => {
                entries = true;
                if !each_entry(&mut window, sink)? {
                    return Ok(None);
                }
            }
            DocumentKey::Other => window.value(&mut |text| Ok(first::<Unknown>(text)?.1))?,
            DocumentKey::Version | DocumentKey::Entries => {
                return Err(window.malformed("a key of the toc occurs twice"));
            }
        }
        after = window.next_of(",}")?;
    }
    if window.peek()?.is_some() {
        return Err(window.malformed("something follows the toc"));
    }
    match version {
        Some(version) if entries => Ok(Some(version)),
        _ => Err(window.malformed("the toc has no version or no entries")),
    }
}

/// The document's own keys.
enum DocumentKey {
    Version,
    Entries,
    Other,
}

fn key(window: &mut Window<'_>) -> Result<DocumentKey, Error> {
    let mut key = DocumentKey::Other;
    window.value(&mut |text| {
        let (Text(name), len) = first(text)?;
        key = match &*name {
            "version" => DocumentKey::Version,
            "entries" => DocumentKey::Entries,
            _ => DocumentKey::Other,
        };
        Ok(len)
    })?;
    Ok(key)
}

fn number(window: &mut Window<'_>) -> Result<i64, Error> {
    let mut number = 0;
    window.value(&mut |text| {
        let (found, len) = first(text)?;
        number = found;
        Ok(len)
    })?;
    Ok(number)
}

/// Hands on all entries of the list; false if `sink` has ended it.
fn each_entry(window: &mut Window<'_>, sink: Sink<'_>) -> Result<bool, Error> {
    if window.peek()? == Some(b'n') {
        // `null` is how Go writes the list of an empty layer.
        window.value(&mut |text| Ok(first::<()>(text)?.1))?;
        return Ok(true);
    }
    window.next_of("[")?;
    let mut after = match window.peek()? {
        Some(b']') => window.next_of("]")?,
        _ => b',',
    };
    while after == b',' {
        if window.peek()? != Some(b'{') {
            return Err(window.malformed("a toc entry is no object"));
        }
        let mut more = true;
        window.value(&mut |text| {
            let (entry, len) = first(text)?;
            more = sink(entry);
            Ok(len)
        })?;
        if !more {
            return Ok(false);
        }
        after = window.next_of(",]")?;
    }
    Ok(true)
}

/// One entry as it stands in the TOC.
#[derive(Default)]
pub(super) struct RawEntry<'a> {
    pub name: Option<Cow<'a, str>>,
    pub kind: Cow<'a, str>,
    pub size: u64,
    pub modtime: Cow<'a, str>,
    pub link_name: Cow<'a, str>,
    pub mode: i64,
    pub uid: u64,
    pub gid: u64,
    pub dev_major: u64,
    pub dev_minor: u64,
    pub xattrs: xattr::Encoded<'a>,
    pub digest: Cow<'a, str>,
    pub offset: u64,
    pub inner_offset: u64,
    pub chunk_offset: u64,
    pub chunk_size: u64,
    pub chunk_digest: Cow<'a, str>,
    pub unread: bool,
}

impl RawEntry<'_> {
    /// The entry, independent of the text it was read from.
    pub(super) fn into_owned(self) -> RawEntry<'static> {
        let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        let pair = |(name, value)| (owned(name), owned(value));
        RawEntry {
            name: self.name.map(owned),
            kind: owned(self.kind),
            modtime: owned(self.modtime),
            link_name: owned(self.link_name),
            xattrs: self.xattrs.into_iter().map(pair).collect(),
            digest: owned(self.digest),
            chunk_digest: owned(self.chunk_digest),
            ..self
        }
    }
}

/// The keys of an entry, in the order of bits in the set of those seen.
#[derive(Clone, Copy, Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum Key {
    Name,
    Type,
    Size,
    Modtime,
    LinkName,
    Mode,
    Uid,
    Gid,
    DevMajor,
    DevMinor,
    Xattrs,
    Digest,
    Offset,
    InnerOffset,
    ChunkOffset,
    ChunkSize,
    ChunkDigest,
    /// [`crate::stargz::UNREAD`].
    Unread,
    #[serde(other)]
    Unknown,
}

impl<'de> Deserialize<'de> for RawEntry<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntryVisitor)
    }
}

struct EntryVisitor;

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = RawEntry<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a toc entry")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawEntry<'de>, A::Error> {
        let mut entry = RawEntry::default();
        let mut seen = 0_u32;
        while let Some(key) = map.next_key::<Key>()? {
            let bit = 1 << key as u32;
            if seen & bit != 0 && !matches!(key, Key::Unknown) {
                return Err(A::Error::custom("a key occurs twice in a toc entry"));
            }
            seen |= bit;
            match key {
                Key::Name => entry.name = Some(text(&mut map)?),
                Key::Type => entry.kind = text(&mut map)?,
                Key::Size => entry.size = map.next_value()?,
                Key::Modtime => entry.modtime = text(&mut map)?,
                Key::LinkName => entry.link_name = text(&mut map)?,
                Key::Mode => entry.mode = map.next_value()?,
                Key::Uid => entry.uid = map.next_value()?,
                Key::Gid => entry.gid = map.next_value()?,
                Key::DevMajor => entry.dev_major = map.next_value()?,
                Key::DevMinor => entry.dev_minor = map.next_value()?,
                Key::Xattrs => entry.xattrs = map.next_value::<Xattrs<'de>>()?.0,
                Key::Digest => entry.digest = text(&mut map)?,
                Key::Offset => entry.offset = map.next_value()?,
                Key::InnerOffset => entry.inner_offset = map.next_value()?,
                Key::ChunkOffset => entry.chunk_offset = map.next_value()?,
                Key::ChunkSize => entry.chunk_size = map.next_value()?,
                Key::ChunkDigest => entry.chunk_digest = text(&mut map)?,
                Key::Unread => entry.unread = map.next_value()?,
                Key::Unknown => _ = map.next_value::<Unknown>()?,
            }
        }
        Ok(entry)
    }
}

/// A string that is copied only if it has escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

fn text<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Cow<'de, str>, A::Error> {
    Ok(map.next_value::<Text<'de>>()?.0)
}

struct Xattrs<'a>(xattr::Encoded<'a>);

impl<'de> Deserialize<'de> for Xattrs<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(XattrsVisitor)
    }
}

struct XattrsVisitor;

impl<'de> Visitor<'de> for XattrsVisitor {
    type Value = Xattrs<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of extended attributes")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Xattrs<'de>, A::Error> {
        let mut xattrs = Vec::new();
        // A nil slice of Go is written as null.
        while let Some((Text(name), value)) = map.next_entry::<Text<'de>, Option<Text<'de>>>()? {
            if xattrs.len() == MAX_XATTRS {
                return Err(A::Error::custom(
                    "an entry has too many extended attributes",
                ));
            }
            xattrs.push((name, value.map_or(Cow::Borrowed(""), |text| text.0)));
        }
        Ok(Xattrs(xattrs))
    }
}

/// A value that is read over. Unlike `serde::de::IgnoredAny` it counts against the depth limit.
struct Unknown;

impl<'de> Deserialize<'de> for Unknown {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Unknown {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self, A::Error> {
        while seq.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}
