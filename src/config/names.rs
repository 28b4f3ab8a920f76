//! The names of a struct's keys, and which of them a mistyped one was probably meant to be.

use std::fmt;

use serde::de::{self, DeserializeOwned, Deserializer, Visitor};
use serde::forward_to_deserialize_any;

/// How alike two names must be, from 0 to 1, for one to be taken for the other.
const ALIKE: f64 = 0.75;

/// The keys that `T` is read from: none if it is no struct.
pub(super) fn fields_of<T: DeserializeOwned>() -> &'static [&'static str] {
    match T::deserialize(Asked) {
        Err(Told(fields)) => fields,
        Ok(_) => &[],
    }
}

/// The one of `known` that `name` was probably meant to be.
pub(super) fn nearest(name: &str, known: &[&'static str]) -> Option<&'static str> {
    let likeness = |known: &str| strsim::normalized_damerau_levenshtein(name, known);
    // Someone who writes a part of the name means the whole of it.
    let part = |known: &&str| name.len() >= 4 && (known.contains(name) || name.contains(*known));
    let alike = known
        .iter()
        .filter(|known| likeness(known) >= ALIKE || part(known));
    alike
        .max_by(|one, other| likeness(one).total_cmp(&likeness(other)))
        .copied()
}

/// Asks a type what fields it wants, and gives it nothing.
struct Asked;

/// The answer, on the only way out there is.
#[derive(Debug)]
struct Told(&'static [&'static str]);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::error::Error for Told {}

impl de::Error for Told {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self(&[])
    }
}

impl<'de> Deserializer<'de> for Asked {
    type Error = Told;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Told> {
        Err(Told(fields))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Told> {
        Err(Told(&[]))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_name_is_taken_for_what_is_near() {
        let known = &["background", "prefetch", "rate_limit", "max_connections"];
        for (name, near) in [
            ("backgrond", Some("background")),
            ("background_", Some("background")),
            ("rate-limit", Some("rate_limit")),
            ("ratelimit", Some("rate_limit")),
            ("connections", Some("max_connections")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, known), near, "{name}");
        }
    }

    #[test]
    fn a_struct_tells_its_keys() {
        let keys = fields_of::<crate::telemetry::Config>();
        assert_eq!(keys, ["level", "format"]);
        assert!(fields_of::<String>().is_empty());
    }
}
