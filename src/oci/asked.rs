//! An image as somebody asks for it: by its name, pinned or not, or by the digest of its manifest.

use std::str::FromStr;

use super::{Digest, Reference, ReferenceError};

/// What an image is asked for by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Its manifest, whatever it is called.
    Manifest(Digest),
    /// `host/name:tag`, or a name that is pinned to the digest of a manifest or, as Kubernetes does it, of
    /// the index that leads to the manifest.
    Name(Reference),
}

impl FromStr for Asked {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        match text.parse() {
            Ok(digest) => Ok(Self::Manifest(digest)),
            Err(_) => text.parse().map(Self::Name),
        }
    }
}

impl Asked {
    /// Whether an image with this manifest that was pulled by any of these names is meant.
    pub fn is_of<'a>(
        &self,
        manifest: Option<Digest>,
        names: impl IntoIterator<Item = &'a str>,
    ) -> bool {
        let digest = match self {
            Self::Manifest(asked) => Some(*asked),
            Self::Name(asked) => asked.digest(),
        };
        (digest.is_some() && manifest == digest) || self.is_any_of(names)
    }

    /// Whether it is one of these names. Of pinned names the tags say nothing.
    pub fn is_any_of<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> bool {
        let Self::Name(asked) = self else {
            return false;
        };
        let same = |known: Reference| {
            let same_place =
                (known.host(), known.repository()) == (asked.host(), asked.repository());
            same_place
                && match asked.digest() {
                    None => known.tag() == asked.tag(),
                    pinned => known.digest() == pinned,
                }
        };
        names.into_iter().any(|known| known.parse().is_ok_and(same))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_meant_by_its_manifest_or_by_any_of_its_names() {
        let [one, other, index] = [&b"1"[..], b"2", b"i"].map(Digest::of);
        let pinned = format!("r.io/app:3@{index}");
        let names = ["no reference", "r.io/app:1", "r.io/app:2", &pinned];
        for (text, manifest, meant) in [
            (one.to_string(), Some(one), true),
            (one.to_string(), Some(other), false),
            (one.to_string(), None, false),
            (format!("r.io/elsewhere@{one}"), Some(one), true),
            (format!("r.io/elsewhere@{one}"), None, false),
            (format!("r.io/app@{index}"), Some(one), true),
            (format!("r.io/app:other@{index}"), None, true),
            (format!("r.io/elsewhere@{index}"), Some(one), false),
            (format!("r.io/app:1@{other}"), Some(one), false),
            (index.to_string(), Some(one), false),
            ("r.io/app:2".to_owned(), Some(other), true),
            ("r.io/app:2".to_owned(), None, true),
            ("r.io/app:4".to_owned(), Some(one), false),
            ("r.io/other:1".to_owned(), Some(one), false),
        ] {
            let asked: Asked = text.parse().unwrap();
            assert_eq!(asked.is_of(manifest, names), meant, "{text} {manifest:?}");
        }
        "Not A Name".parse::<Asked>().unwrap_err();
    }
}
