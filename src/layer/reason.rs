//! Why a layer is not lazy: [`NotLazy`] says it of one layer in a sentence, [`Reason`] sorts it.
//!
//! Promise: every way in which a layer can fail to be lazy leads to exactly one [`Reason`]; its name
//! is a label of a metric, a word of `crfs why`, a field of the log line and what is kept in the
//! snapshot's record, so a name never changes its meaning.

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, LabelError};
use crate::registry;

/// Why a layer is not served lazily, sorted. README, "When a layer is not lazy", lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// containerd did not ask: no label named the layer.
    NotAsked,
    /// containerd did not say, or not so that it can be understood, which layer of which image it is.
    Labels,
    /// The manifest promises no table of contents.
    NoTocDigest,
    /// A table of contents is promised, but the blob has none.
    PlainGzip,
    /// Not a gzip-compressed tar.
    MediaType,
    /// The manifest has no such layer.
    NotInManifest,
    /// The table of contents is longer than is allowed.
    TooLarge,
    /// The blob or the manifest is damaged or hostile.
    Invalid,
    /// The registry wants other credentials.
    Unauthorized,
    /// The registry does not have it.
    NotFound,
    /// The registry does not answer.
    Unreachable,
    /// The registry answers with something else than what was asked for.
    Registry,
    /// This node could not mount or store it.
    Local,
    /// A bug in crfs.
    Internal,
    /// No reason is kept: an older crfs, or a newer one, unpacked it.
    #[serde(other)]
    Unknown,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::NotAsked,
        Self::Labels,
        Self::NoTocDigest,
        Self::PlainGzip,
        Self::MediaType,
        Self::NotInManifest,
        Self::TooLarge,
        Self::Invalid,
        Self::Unauthorized,
        Self::NotFound,
        Self::Unreachable,
        Self::Registry,
        Self::Local,
        Self::Internal,
        Self::Unknown,
    ];

    /// Its name: a label value in metrics, a word in `crfs why` and the log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotAsked => "not_asked",
            Self::Labels => "labels",
            Self::NoTocDigest => "no_toc_digest",
            Self::PlainGzip => "plain_gzip",
            Self::MediaType => "media_type",
            Self::NotInManifest => "not_in_manifest",
            Self::TooLarge => "too_large",
            Self::Invalid => "invalid",
            Self::Unauthorized => "unauthorized",
            Self::NotFound => "not_found",
            Self::Unreachable => "unreachable",
            Self::Registry => "registry",
            Self::Local => "local",
            Self::Internal => "internal",
            Self::Unknown => "unknown",
        }
    }

    /// What would make such a layer lazy, as a sentence for whoever runs the node.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::NotAsked => {
                "remove the image and pull it by crfs pull, or without --local by a containerd (2.1 or \
                 newer) that has an unpack_config for crfs"
            }
            Self::Labels => {
                "set enable_remote_snapshot_annotations = \"true\" in containerd's \
                 proxy_plugins.crfs.exports, restart containerd (2.1 or newer; crfs pull needs neither), remove \
                 the image and pull it again"
            }
            Self::NoTocDigest | Self::PlainGzip => {
                "convert the image with crfs convert, push it and pull that one"
            }
            Self::MediaType => {
                "build the image with gzip layers (a plain tar is converted by crfs convert), convert \
                 it with crfs convert, push it and pull that one"
            }
            Self::NotInManifest => "remove the image and pull it again",
            Self::TooLarge => {
                "raise [layers] max_toc, restart crfs, remove the image and pull it again"
            }
            Self::Invalid => {
                "the blob is not what it should be: find out who pushed it, convert it again"
            }
            Self::Unauthorized => {
                "give crfs credentials for the registry (README, \"On a Kubernetes node\"), remove the \
                 image and pull it again"
            }
            Self::NotFound => "the registry has lost a part of the image: push it again",
            Self::Unreachable => {
                "make the registry reachable from this node (crfs doctor IMAGE says what is wrong), \
                 remove the image and pull it again"
            }
            Self::Registry => {
                "look at what the registry answered; then remove the image and pull it again"
            }
            Self::Local => {
                "mend what the node says (crfs doctor helps), remove the image and pull it again"
            }
            Self::Internal => {
                "a bug: please report it with the log; remove the image and pull it again"
            }
            Self::Unknown => {
                "remove the image and pull it again: the next attempt's reason is kept"
            }
        }
    }

    /// Its place in [`Self::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Why a layer is not lazy. Each has a [`Reason`] and a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotLazy {
    /// containerd did not say which layer of which image this is.
    #[error("{0}")]
    Labels(#[from] LabelError),
    /// The manifest does not list the layer.
    #[error("manifest {manifest} has no layer of this digest")]
    NotInManifest {
        /// The manifest that was read.
        manifest: Digest,
    },
    /// Not a gzip-compressed tar.
    #[error("media type {0} cannot be read lazily (a gzip-compressed tar in eStargz form can)")]
    MediaType(String),
    /// A gzip-compressed tar without a TOC.
    #[error("an ordinary gzip layer without a TOC (crfs convert makes it eStargz)")]
    PlainGzip,
    /// An ordinary layer, or one with a TOC that nothing promises.
    #[error(
        "no annotation containerd.io/snapshot/stargz/toc.digest, as on every ordinary layer: what \
         nobody promised cannot be verified (crfs convert makes an image that can be read lazily)"
    )]
    NoTocDigest,
    /// Its TOC is longer than `[layers] max_toc` allows.
    #[error("{0} ([layers] max_toc)")]
    TooLarge(String),
    /// The blob is damaged or hostile.
    #[error("{0}")]
    Invalid(String),
    /// The registry could not be reached or refused.
    #[error("registry: {why}")]
    Registry {
        /// One of the reasons that are about the registry.
        reason: Reason,
        /// What it said.
        why: String,
    },
    /// It was readable but could not be mounted or stored on this node.
    #[error("{0}")]
    Local(String),
    /// A bug.
    #[error("internal error: {0}")]
    Internal(String),
}

impl NotLazy {
    /// Why, sorted.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Labels(_) => Reason::Labels,
            Self::NotInManifest { .. } => Reason::NotInManifest,
            Self::MediaType(_) => Reason::MediaType,
            Self::PlainGzip => Reason::PlainGzip,
            Self::NoTocDigest => Reason::NoTocDigest,
            Self::TooLarge(_) => Reason::TooLarge,
            Self::Invalid(_) => Reason::Invalid,
            Self::Registry { reason, .. } => *reason,
            Self::Local(_) => Reason::Local,
            Self::Internal(_) => Reason::Internal,
        }
    }
}

impl From<registry::Error> for NotLazy {
    fn from(error: registry::Error) -> Self {
        Self::Registry {
            reason: of_registry(error.trouble()),
            why: error.to_string(),
        }
    }
}

const fn of_registry(trouble: registry::Trouble) -> Reason {
    match trouble {
        registry::Trouble::Unauthorized => Reason::Unauthorized,
        registry::Trouble::NotFound => Reason::NotFound,
        registry::Trouble::Unreachable => Reason::Unreachable,
        registry::Trouble::Other => Reason::Registry,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_reason_has_a_name_of_its_own_a_remedy_and_a_row_in_the_readme() {
        let readme = include_str!("../../README.md");
        for (at, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), at, "{reason:?}");
            let others = Reason::ALL
                .iter()
                .filter(|other| other.name() == reason.name());
            assert_eq!(others.count(), 1, "{reason:?}");
            assert!(reason.remedy().len() > 20, "{reason:?}");
            let row = format!("\n| `{}` |", reason.name());
            assert!(
                readme.contains(&row),
                "README has no row of {}",
                reason.name()
            );
            let kept = serde_json::to_string(&reason).unwrap();
            assert_eq!(kept, format!("\"{}\"", reason.name()));
            assert_eq!(serde_json::from_str::<Reason>(&kept).unwrap(), reason);
        }
        let later: Reason = serde_json::from_str("\"of_a_later_version\"").unwrap();
        assert_eq!(later, Reason::Unknown);
    }

    #[test]
    fn what_a_registry_did_is_told_apart() {
        let what: Arc<str> = "blob".into();
        let host = || "r.io".to_owned();
        let refused = registry::Error::Unauthorized {
            what: Arc::clone(&what),
            host: host(),
            status: 401,
            hint: String::new(),
        };
        let down = registry::Error::Unreachable {
            what: Arc::clone(&what),
            host: host(),
            why: "refused".to_owned(),
        };
        let gone = registry::Error::NotFound {
            what: Arc::clone(&what),
            host: host(),
            detail: String::new(),
        };
        let busy = registry::Error::Status {
            what,
            host: host(),
            status: 503,
            detail: String::new(),
            retry_after: None,
        };
        let late = registry::Error::Deadline {
            after: Duration::from_secs(1),
            last: Arc::new(refused.clone()),
        };
        let odd = registry::Error::Protocol("no digest".to_owned());
        for (error, reason) in [
            (refused, Reason::Unauthorized),
            (late, Reason::Unauthorized),
            (down, Reason::Unreachable),
            (busy, Reason::Unreachable),
            (gone, Reason::NotFound),
            (odd, Reason::Registry),
        ] {
            let text = error.to_string();
            let refusal = NotLazy::from(error);
            assert_eq!(refusal.reason(), reason, "{text}");
            assert!(refusal.to_string().contains(&text));
        }
    }
}
