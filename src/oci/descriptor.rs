//! Descriptors, manifests, indexes and image configs, in OCI's and docker's dialect.
//!
//! Formats: OCI image spec 1.1 (descriptor.md, manifest.md, image-index.md, config.md) and docker's
//! image manifest V2 schema 2. Unknown fields are kept out of what crfs decides on, but an image
//! that is converted keeps them, because `extra` carries them through.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::oci::{Digest, Platform};

/// The largest manifest, index or config that is read, in bytes (registries limit them to 4 MiB).
pub const MAX_MANIFEST: u64 = 8 << 20;

/// What an index's entry that attests to another one is annotated with.
const ATTESTATION: &str = "vnd.docker.reference.type";

/// Why a manifest, index or config cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The document is not JSON of the expected form.
    #[error("malformed {what}: {source}")]
    Malformed {
        /// Which document.
        what: &'static str,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// The schema version is not 2.
    #[error("unsupported manifest schema version {0} (only version 2 is read)")]
    SchemaVersion(u64),
}

/// A media type crfs knows, or the text of one it does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum MediaType {
    /// `application/vnd.oci.image.index.v1+json`
    OciIndex,
    /// `application/vnd.docker.distribution.manifest.list.v2+json`
    DockerIndex,
    /// `application/vnd.oci.image.manifest.v1+json`
    OciManifest,
    /// `application/vnd.docker.distribution.manifest.v2+json`
    DockerManifest,
    /// `application/vnd.oci.image.config.v1+json`
    OciConfig,
    /// `application/vnd.docker.container.image.v1+json`
    DockerConfig,
    /// `application/vnd.oci.image.layer.v1.tar`
    OciTar,
    /// `application/vnd.oci.image.layer.v1.tar+gzip`
    OciTarGzip,
    /// `application/vnd.oci.image.layer.v1.tar+zstd`
    OciTarZstd,
    /// `application/vnd.docker.image.rootfs.diff.tar`
    DockerTar,
    /// `application/vnd.docker.image.rootfs.diff.tar.gzip`
    DockerTarGzip,
    /// Any other, as it was written.
    Other(String),
}

const MEDIA_TYPES: [(MediaType, &str); 11] = [
    (
        MediaType::OciIndex,
        "application/vnd.oci.image.index.v1+json",
    ),
    (
        MediaType::DockerIndex,
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ),
    (
        MediaType::OciManifest,
        "application/vnd.oci.image.manifest.v1+json",
    ),
    (
        MediaType::DockerManifest,
        "application/vnd.docker.distribution.manifest.v2+json",
    ),
    (
        MediaType::OciConfig,
        "application/vnd.oci.image.config.v1+json",
    ),
    (
        MediaType::DockerConfig,
        "application/vnd.docker.container.image.v1+json",
    ),
    (MediaType::OciTar, "application/vnd.oci.image.layer.v1.tar"),
    (
        MediaType::OciTarGzip,
        "application/vnd.oci.image.layer.v1.tar+gzip",
    ),
    (
        MediaType::OciTarZstd,
        "application/vnd.oci.image.layer.v1.tar+zstd",
    ),
    (
        MediaType::DockerTar,
        "application/vnd.docker.image.rootfs.diff.tar",
    ),
    (
        MediaType::DockerTarGzip,
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
    ),
];

impl MediaType {
    /// The media type as it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Other(text) => text,
            known => MEDIA_TYPES
                .iter()
                .find(|(t, _)| t == known)
                .map_or("", |(_, text)| text),
        }
    }

    /// An index of manifests, in either dialect.
    #[must_use]
    pub const fn is_index(&self) -> bool {
        matches!(self, Self::OciIndex | Self::DockerIndex)
    }

    /// A manifest of one image, in either dialect.
    #[must_use]
    pub const fn is_manifest(&self) -> bool {
        matches!(self, Self::OciManifest | Self::DockerManifest)
    }

    /// An image's config, in either dialect.
    #[must_use]
    pub const fn is_config(&self) -> bool {
        matches!(self, Self::OciConfig | Self::DockerConfig)
    }

    /// A gzip-compressed tar layer: the only kind that can be stargz or eStargz.
    #[must_use]
    pub const fn is_tar_gzip(&self) -> bool {
        matches!(self, Self::OciTarGzip | Self::DockerTarGzip)
    }

    /// A tar layer of any known compression.
    #[must_use]
    pub const fn is_tar(&self) -> bool {
        matches!(self, Self::OciTar | Self::DockerTar | Self::OciTarZstd) || self.is_tar_gzip()
    }
}

impl From<String> for MediaType {
    fn from(text: String) -> Self {
        match MEDIA_TYPES.iter().find(|(_, known)| *known == text) {
            Some((known, _)) => known.clone(),
            None => Self::Other(text),
        }
    }
}

impl From<MediaType> for String {
    fn from(media_type: MediaType) -> Self {
        media_type.as_str().to_owned()
    }
}

/// Content as another document points to it (descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    pub media_type: MediaType,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes; a negative or fractional one does not parse.
    pub size: u64,
    /// Annotations, sorted so that the same input gives the same bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Which platform a manifest is for, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Fields crfs does not use (`urls` above all: they are never followed).
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Descriptor {
    /// Whether an index's entry only says something about another one (buildkit, "Image attestation storage").
    #[must_use]
    pub fn is_attestation(&self) -> bool {
        let unknown = |p: &Platform| p.os == "unknown" && p.architecture == "unknown";
        self.annotations.contains_key(ATTESTATION) || self.platform.as_ref().is_some_and(unknown)
    }
}

/// A manifest of one image (manifest.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u64,
    /// The manifest's own media type; optional in OCI's dialect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// The image's config.
    pub config: Descriptor,
    /// Its layers, bottom first.
    pub layers: Vec<Descriptor>,
    /// Annotations, sorted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Fields crfs does not use.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Manifest {
    /// Parses a manifest whose digest was checked before.
    ///
    /// # Errors
    /// The document is malformed or of another schema version.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = parse("manifest", json)?;
        check_version(manifest.schema_version)?;
        Ok(manifest)
    }
}

/// An index of the manifests of one image for several platforms (image-index.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u64,
    /// The index's own media type; optional in OCI's dialect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// One descriptor a platform.
    pub manifests: Vec<Descriptor>,
    /// Annotations, sorted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Fields crfs does not use.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Index {
    /// Parses an index whose digest was checked before.
    ///
    /// # Errors
    /// The document is malformed or of another schema version.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        let index: Self = parse("index", json)?;
        check_version(index.schema_version)?;
        Ok(index)
    }

    /// The entries that may be or lead to an image for a platform, the best first: those that say they are
    /// for it, of them those with the very variant, then those that say nothing.
    #[must_use]
    pub fn choices(&self, asked: &Platform) -> Vec<&Descriptor> {
        let rank = |d: &Descriptor| match &d.platform {
            Some(own) if own.is_exactly(asked) => Some(0),
            Some(own) if own.serves(asked) => Some(1),
            None if d.media_type.is_manifest() || d.media_type.is_index() => Some(2),
            _ => None,
        };
        let images = self.manifests.iter().filter(|d| !d.is_attestation());
        let mut ranked: Vec<_> = images.filter_map(|d| Some((rank(d)?, d))).collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        ranked.into_iter().map(|(_, d)| d).collect()
    }

    /// The platforms that entries say they are for.
    pub fn platforms(&self) -> impl Iterator<Item = &Platform> {
        let images = self.manifests.iter().filter(|d| !d.is_attestation());
        images.filter_map(|d| d.platform.as_ref())
    }
}

/// The part of an image config that a conversion has to keep in step (config.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// The digests of the uncompressed layers.
    pub rootfs: RootFs,
    /// Everything else, kept as it was.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ImageConfig {
    /// Parses a config whose digest was checked before.
    ///
    /// # Errors
    /// The document is malformed.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        parse("image config", json)
    }

    /// The platform it says it is for.
    #[must_use]
    pub fn platform(&self) -> Option<Platform> {
        let field = |name: &str| self.extra.get(name).and_then(Value::as_str);
        let said = |name: &str| field(name).filter(|said| !said.is_empty());
        Some(Platform {
            architecture: said("architecture")?.to_owned(),
            os: said("os")?.to_owned(),
            variant: said("variant").map(str::to_owned),
            extra: Map::new(),
        })
    }
}

/// The digests of the uncompressed layers, bottom first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// One digest a layer, of the tar before compression.
    pub diff_ids: Vec<Digest>,
}

fn parse<'a, T: Deserialize<'a>>(what: &'static str, json: &'a [u8]) -> Result<T, ManifestError> {
    serde_json::from_slice(json).map_err(|source| ManifestError::Malformed { what, source })
}

fn check_version(version: u64) -> Result<(), ManifestError> {
    match version {
        2 => Ok(()),
        other => Err(ManifestError::SchemaVersion(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_manifest_survives_a_round_trip_with_fields_crfs_does_not_know() {
        let json = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
               "config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{D}","size":2}},
               "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{D}","size":7,
                           "annotations":{{"a":"b"}},"urls":["http://x"]}}],
               "subject":{{"x":1}}}}"#
        );
        let manifest = Manifest::parse(json.as_bytes()).unwrap();
        assert!(manifest.layers[0].media_type.is_tar_gzip());
        let before: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_value(&manifest).unwrap(), before);
    }

    #[test]
    fn sizes_versions_and_digests_are_checked() {
        let manifest = |version: &str, size: &str, digest: &str| {
            format!(
                r#"{{"schemaVersion":{version},"config":{{"mediaType":"c","digest":"{digest}","size":{size}}},"layers":[]}}"#
            )
        };
        assert!(Manifest::parse(manifest("2", "1", D).as_bytes()).is_ok());
        for (version, size, digest) in [
            ("1", "1", D),
            ("2", "-1", D),
            ("2", "1.5", D),
            ("2", "\"1\"", D),
            ("2", "1", "x"),
        ] {
            let json = manifest(version, size, digest);
            assert!(Manifest::parse(json.as_bytes()).is_err(), "{json}");
        }
        assert!(Manifest::parse(b"null").is_err());
    }

    #[test]
    fn entries_that_say_nothing_of_their_platform_are_chosen_last() {
        let entry = |name: &str, kind: &str, more: &str| {
            let (digest, kind) = (
                Digest::of(name.as_bytes()),
                format!("application/vnd.oci.image.{kind}.v1+json"),
            );
            format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":1{more}}}"#)
        };
        let on = |architecture: &str, variant: &str| {
            format!(r#","platform":{{"os":"linux","architecture":"{architecture}"{variant}}}"#)
        };
        let entries = [
            entry("silent", "manifest", ""),
            entry("within", "index", ""),
            entry(
                "attests",
                "manifest",
                r#","annotations":{"vnd.docker.reference.type":"attestation-manifest"}"#,
            ),
            entry(
                "unknown",
                "manifest",
                r#","platform":{"os":"unknown","architecture":"unknown"}"#,
            ),
            entry("config", "config", ""),
            entry("other", "manifest", &on("arm64", "")),
            entry("v3", "manifest", &on("amd64", r#","variant":"v3""#)),
            entry("exact", "index", &on("amd64", "")),
        ];
        let json = format!(
            r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
            entries.join(",")
        );
        let index = Index::parse(json.as_bytes()).unwrap();
        for (asked, wanted) in [
            ("linux/amd64", &["exact", "v3", "silent", "within"][..]),
            ("linux/arm64/v8", &["other", "silent", "within"][..]),
            ("unknown/unknown", &["silent", "within"][..]),
        ] {
            let chosen = index.choices(&asked.parse().unwrap());
            let chosen: Vec<_> = chosen.iter().map(|d| d.digest).collect();
            let wanted: Vec<_> = wanted
                .iter()
                .map(|name| Digest::of(name.as_bytes()))
                .collect();
            assert_eq!(chosen, wanted, "{asked}");
        }
        assert_eq!(index.platforms().count(), 3);
    }
}
