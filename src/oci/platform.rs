//! Operating system and processor: `linux/amd64`, `linux/arm/v7`.
//!
//! Names are Go's, as in the OCI image spec ("Platform Variants"); those that other tools use for the
//! same are understood.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Why a text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a platform: it is OS/PROCESSOR or OS/PROCESSOR/VARIANT, as linux/amd64")]
pub struct PlatformError(String);

/// Operating system and processor of an image (image-index.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Processor, by Go's name: `amd64`.
    pub architecture: String,
    /// Operating system, by Go's name: `linux`.
    pub os: String,
    /// Variant of the processor: `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Fields crfs does not use.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Platform {
    /// The platform crfs itself runs on.
    #[must_use]
    pub fn this_machine() -> Self {
        Self {
            architecture: go_name(std::env::consts::ARCH).to_owned(),
            os: std::env::consts::OS.to_owned(),
            variant: None,
            extra: Map::new(),
        }
    }

    /// Whether an image for this platform is one for the platform that was asked for. Whoever asks
    /// for no variant gets any, and an image that names none has the usual one.
    #[must_use]
    pub fn serves(&self, asked: &Self) -> bool {
        let same = self.os == asked.os && self.architecture == asked.architecture;
        same && (asked.variant.is_none() || self.is_exactly(asked))
    }

    /// The same with the same variant.
    #[must_use]
    pub fn is_exactly(&self, asked: &Self) -> bool {
        let same = self.os == asked.os && self.architecture == asked.architecture;
        same && self.true_variant() == asked.true_variant()
    }

    fn true_variant(&self) -> &str {
        match (self.architecture.as_str(), self.variant.as_deref()) {
            ("arm64", None) => "v8",
            ("arm", None) => "v7",
            ("amd64", None) => "v1",
            (_, variant) => variant.unwrap_or_default(),
        }
    }
}

/// A processor by Go's name.
fn go_name(processor: &str) -> &str {
    match processor {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let is_word = |part: &&str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        let parts: Vec<_> = text.split('/').collect();
        let (os, processor, variant) = match parts.as_slice() {
            [os, processor] => (os, processor, None),
            [os, processor, variant] => (os, processor, Some((*variant).to_owned())),
            _ => return Err(PlatformError(text.to_owned())),
        };
        if !parts.iter().all(is_word) {
            return Err(PlatformError(text.to_owned()));
        }
        Ok(Self {
            architecture: go_name(processor).to_owned(),
            os: (*os).to_owned(),
            variant,
            extra: Map::new(),
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn an_image_serves_who_asks_for_its_platform() {
        for (own, asked, serves) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/amd64", "linux/x86_64", true),
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm64/v8", "linux/arm64", true),
            ("linux/arm/v6", "linux/arm", true),
            ("linux/arm/v6", "linux/arm/v7", false),
            ("linux/arm", "linux/arm/v7", true),
            ("linux/amd64", "linux/arm64", false),
            ("windows/amd64", "linux/amd64", false),
        ] {
            let found = platform(own).serves(&platform(asked));
            assert_eq!(found, serves, "{own} for {asked}");
        }
        assert_eq!(platform("linux/aarch64/v8").to_string(), "linux/arm64/v8");
        let own = Platform::this_machine();
        assert!(own.serves(&own));
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for bad in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/amd 64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
