//! How an image is named on the command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::convert::Error;
use crate::oci::Reference;

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// `docker://HOST/NAME:TAG`, or the reference alone.
    Registry(Reference),
    /// `oci:DIR:TAG`.
    Layout {
        /// The layout's folder.
        dir: PathBuf,
        /// The image's `org.opencontainers.image.ref.name`.
        tag: Option<String>,
    },
}

impl FromStr for Location {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |why: String| Error::Location {
            text: text.to_owned(),
            why,
        };
        if let Some(rest) = text.strip_prefix("oci:") {
            // A tag has no slash; a folder's name may have a colon.
            let (dir, tag) = match rest.rsplit_once(':') {
                Some((dir, tag)) if !tag.contains('/') => (dir, Some(tag.to_owned())),
                _ => (rest, None),
            };
            return match (dir, tag.as_deref()) {
                ("", _) | (_, Some("")) => Err(refuse("expected oci:DIR:TAG".to_owned())),
                _ => Ok(Self::Layout {
                    dir: dir.into(),
                    tag,
                }),
            };
        }
        let reference = text.strip_prefix("docker://").unwrap_or(text);
        if reference.contains("://") {
            return Err(refuse(
                "expected docker://HOST/NAME:TAG or oci:DIR:TAG".to_owned(),
            ));
        }
        let reference = reference.parse().map_err(|e| refuse(format!("{e}")))?;
        Ok(Self::Registry(reference))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => write!(f, "docker://{reference}"),
            Self::Layout {
                dir,
                tag: Some(tag),
            } => write!(f, "oci:{}:{tag}", dir.display()),
            Self::Layout { dir, tag: None } => write!(f, "oci:{}", dir.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_and_layouts_are_told_apart() {
        for (text, shown) in [
            ("docker://r.io/a:t", "docker://r.io/a:t"),
            ("debian", "docker://docker.io/library/debian:latest"),
            ("127.0.0.1:5000/a", "docker://127.0.0.1:5000/a:latest"),
            ("oci:/tmp/x:t", "oci:/tmp/x:t"),
            ("oci:rel/x", "oci:rel/x"),
            ("oci:/a:b/c", "oci:/a:b/c"),
            ("oci:/a:b/c:1.0", "oci:/a:b/c:1.0"),
        ] {
            assert_eq!(text.parse::<Location>().unwrap().to_string(), shown);
        }
        for bad in [
            "",
            "oci:",
            "oci::t",
            "oci:x:",
            "https://r.io/a",
            "docker://",
            "R.io/../x",
        ] {
            assert!(bad.parse::<Location>().is_err(), "{bad}");
        }
    }
}
