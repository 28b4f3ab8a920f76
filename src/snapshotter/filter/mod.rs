//! containerd's filters, by which List is asked for some snapshots.
//!
//! The language (containerd `pkg/filters`): a filter is selectors joined by `,`, all of which must
//! hold; of several filters one is enough. A selector is a field path, alone (the field is there)
//! or with `==`, `!=` or `~=` (a regular expression matches somewhere) and a value. Parts of a
//! path are joined by `.`; a part or a value may be quoted by `"` as in Go, the value of `~=` also
//! by `/` or `|`. A field that is not there counts as empty for `!=` and `~=`.
//!
//! Filters come from outside: their length and number are bounded by the message, a regular
//! expression's size by [`MAX_REGEX`], and matching takes linear time.

mod parse;

use regex::Regex;

pub use parse::parse;

use crate::snapshotter::model::{Kind, Record};

/// Bytes a compiled regular expression may take.
const MAX_REGEX: usize = 1 << 20;

/// Why a text is not a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at}")]
pub struct FilterError {
    /// What is wrong.
    pub what: String,
    /// Where, in bytes from the filter's begin.
    pub at: usize,
}

/// Which snapshots are asked for.
#[derive(Debug)]
pub struct Filters(Vec<Vec<Selector>>);

/// One condition.
#[derive(Debug)]
pub struct Selector {
    field: Field,
    test: Test,
}

#[derive(Debug, PartialEq, Eq)]
enum Field {
    Name,
    Parent,
    Kind,
    /// The path after `labels`, its parts joined by dots again: label keys have dots in them.
    Label(Vec<u8>),
    /// No snapshot has such a field.
    Unknown,
}

#[derive(Debug)]
enum Test {
    Present,
    /// Values are bytes: a quoted one need not be UTF-8.
    Equal(Vec<u8>),
    NotEqual(Vec<u8>),
    Matches(Regex),
}

impl Filters {
    /// Parses the filters of one List. None at all selects every snapshot, as does an empty one.
    ///
    /// # Errors
    /// One of them is not a filter.
    pub fn parse<S: AsRef<str>>(filters: &[S]) -> Result<Self, FilterError> {
        let parsed = filters.iter().map(|filter| parse(filter.as_ref()));
        Ok(Self(parsed.collect::<Result<_, _>>()?))
    }

    /// Whether the snapshot is asked for.
    #[must_use]
    pub fn matches(&self, record: &Record) -> bool {
        let all = |selectors: &Vec<Selector>| selectors.iter().all(|one| one.matches(record));
        self.0.is_empty() || self.0.iter().any(all)
    }
}

impl Selector {
    fn matches(&self, record: &Record) -> bool {
        let value = self.field.of(record);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value.is_some_and(|value| value.as_bytes() == wanted),
            Test::NotEqual(other) => value.unwrap_or_default().as_bytes() != other,
            Test::Matches(regex) => regex.is_match(value.unwrap_or_default()),
        }
    }
}

impl Field {
    fn new(path: &[Vec<u8>]) -> Self {
        match path.split_first() {
            Some((first, rest)) => match first.as_slice() {
                b"name" => Self::Name,
                b"parent" => Self::Parent,
                b"kind" => Self::Kind,
                b"labels" => Self::Label(rest.join(&b'.')),
                _ => Self::Unknown,
            },
            None => Self::Unknown,
        }
    }

    /// The field's value; a snapshot without a parent has an empty one.
    fn of<'a>(&self, record: &'a Record) -> Option<&'a str> {
        match self {
            Self::Name => Some(record.key.as_str()),
            Self::Parent => Some(record.parent.as_ref().map_or("", |parent| parent.as_str())),
            Self::Kind => Some(match record.kind {
                Kind::View => "view",
                Kind::Active => "active",
                Kind::Committed => "committed",
            }),
            Self::Label(key) => {
                let key = str::from_utf8(key).ok()?;
                record.labels.get(key).map(String::as_str)
            }
            Self::Unknown => None,
        }
    }
}

#[cfg(test)]
mod tests;
