//! An image as somebody asks for it: by its name, or by the digest of its manifest.

use std::str::FromStr;

use super::{Digest, Reference, ReferenceError};

/// What an image is asked for by. A name that is pinned to a digest asks for that manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Its manifest, whatever it is called.
    Manifest(Digest),
    /// `host/name:tag`.
    Name(Reference),
}

impl FromStr for Asked {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if let Ok(digest) = text.parse() {
            return Ok(Self::Manifest(digest));
        }
        let name: Reference = text.parse()?;
        Ok(match name.digest() {
            Some(digest) => Self::Manifest(digest),
            None => Self::Name(name),
        })
    }
}

impl Asked {
    /// Whether an image with this manifest that was pulled by any of these names is meant.
    pub fn is_of<'a>(
        &self,
        manifest: Option<Digest>,
        names: impl IntoIterator<Item = &'a str>,
    ) -> bool {
        match self {
            Self::Manifest(asked) => manifest == Some(*asked),
            Self::Name(asked) => names.into_iter().any(|known| {
                known.parse().is_ok_and(|known: Reference| {
                    let known = (known.host(), known.repository(), known.tag());
                    known == (asked.host(), asked.repository(), asked.tag())
                })
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_meant_by_its_manifest_or_by_any_of_its_names() {
        let (one, other) = (Digest::of(b"1"), Digest::of(b"2"));
        let names = ["no reference", "r.io/app:1", "r.io/app:2"];
        for (text, manifest, meant) in [
            (one.to_string(), Some(one), true),
            (one.to_string(), Some(other), false),
            (one.to_string(), None, false),
            (format!("r.io/elsewhere@{one}"), Some(one), true),
            ("r.io/app:2".to_owned(), Some(other), true),
            ("r.io/app:2".to_owned(), None, true),
            ("r.io/app:3".to_owned(), Some(one), false),
            ("r.io/other:1".to_owned(), Some(one), false),
        ] {
            let asked: Asked = text.parse().unwrap();
            assert_eq!(asked.is_of(manifest, names), meant, "{text} {manifest:?}");
        }
        "Not A Name".parse::<Asked>().unwrap_err();
    }
}
