//! Image references: `HOST[:PORT]/NAME[:TAG][@DIGEST]`, with docker's short forms.
//!
//! The grammar is that of the distribution project (`reference/regexp.go`, "Grammar"): what
//! containerd calls a "fully qualified" reference always names its host; what people type may not,
//! and then `docker.io`, `library/` and `:latest` are meant.

use std::fmt;
use std::str::FromStr;

use crate::oci::Digest;

/// The longest name the distribution grammar allows, in bytes.
const MAX_NAME: usize = 255;
/// The longest tag the distribution grammar allows, in bytes.
const MAX_TAG: usize = 128;

/// Why a string is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an image reference: {text:?}: {why}")]
pub struct ReferenceError {
    text: String,
    why: &'static str,
}

/// An image as a registry names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Registry host with its port if one is named: `docker.io`, `127.0.0.1:5000`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The same without port: `docker.io`, `127.0.0.1`, `::1`.
    #[must_use]
    pub fn host_name(&self) -> &str {
        match self.host.strip_prefix('[') {
            Some(address) => address.split(']').next().unwrap_or(address),
            None => self.host.split(':').next().unwrap_or(&self.host),
        }
    }

    /// Repository without host, tag and digest: `library/debian`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if one is named or implied.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one is named.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What follows `/manifests/` in a request for this image: the digest, else the tag.
    #[must_use]
    pub fn manifest_selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// The same repository, pinned to a digest.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let refuse = |why| ReferenceError {
            text: text.chars().take(300).collect(),
            why,
        };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (
                rest,
                Some(
                    digest
                        .parse()
                        .map_err(|_| refuse("the digest is not sha256"))?,
                ),
            ),
            None => (text, None),
        };
        let (host, path) = split_host(rest);
        let (name, tag) = match path.rsplit_once(':') {
            Some((name, tag)) => (name, Some(tag.to_owned())),
            None => (path, None),
        };
        if tag.as_deref().is_some_and(|tag| !is_tag(tag)) {
            return Err(refuse("the tag has a character that is not allowed"));
        }
        if !is_host(host) {
            return Err(refuse("the host is not a host name with an optional port"));
        }
        let repository = match name.contains('/') || host != "docker.io" {
            true => name.to_owned(),
            false => format!("library/{name}"),
        };
        if repository.len() > MAX_NAME || !repository.split('/').all(is_component) {
            return Err(refuse(
                "the name has an empty, over-long or upper-case part",
            ));
        }
        let tag = tag.or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self {
            host: host.to_owned(),
            repository,
            tag,
            digest,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// The first part is a host if it looks like one: it has a dot or a port, or is `localhost`.
fn split_host(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => match host {
            "index.docker.io" | "registry-1.docker.io" => ("docker.io", path),
            _ => (host, path),
        },
        _ => ("docker.io", text),
    }
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            let address_ok = address.parse::<std::net::Ipv6Addr>().is_ok();
            return address_ok && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// Lower-case letters and digits, joined by single separators (`.`, `_`, `__` or dashes).
fn is_component(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    bytes.first().copied().is_some_and(alphanumeric)
        && bytes.last().copied().is_some_and(alphanumeric)
        && bytes
            .iter()
            .all(|&b| alphanumeric(b) || matches!(b, b'.' | b'_' | b'-'))
        && !part.contains("..")
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_forms_mean_what_everyone_means() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (text, full) in [
            ("debian", "docker.io/library/debian:latest"),
            ("debian:12", "docker.io/library/debian:12"),
            ("grafana/grafana", "docker.io/grafana/grafana:latest"),
            (
                "index.docker.io/library/debian:1",
                "docker.io/library/debian:1",
            ),
            ("localhost/a", "localhost/a:latest"),
            ("127.0.0.1:5000/a/b:t", "127.0.0.1:5000/a/b:t"),
            ("[::1]:5000/a:t", "[::1]:5000/a:t"),
            ("ghcr.io/a/b__c-d.e:T_1.2-3", "ghcr.io/a/b__c-d.e:T_1.2-3"),
            (
                &format!("r.io/a@sha256:{hex}"),
                &format!("r.io/a@sha256:{hex}"),
            ),
            (
                &format!("r.io/a:t@sha256:{hex}"),
                &format!("r.io/a:t@sha256:{hex}"),
            ),
        ] {
            assert_eq!(
                text.parse::<Reference>().unwrap().to_string(),
                full,
                "{text}"
            );
        }
    }

    #[test]
    fn a_host_has_a_name_without_its_port() {
        let cases = [
            ("debian", "docker.io"),
            ("r.io:5000/a", "r.io"),
            ("[::1]:5000/a", "::1"),
        ];
        for (text, name) in cases {
            assert_eq!(text.parse::<Reference>().unwrap().host_name(), name);
        }
    }

    #[test]
    fn what_could_reach_another_path_or_host_is_refused() {
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "r.io/",
            "r.io/A",
            "r.io/../a",
            "r.io/a/../b",
            "r.io/a//b",
            "r.io/a:",
            "r.io/a:.t",
            "r.io/a:t t",
            "r.io/a?x=y",
            "r.io/a#f",
            "user@r.io/a",
            "r.io:0/a",
            "r.io:65536/a",
            "r.io:5x/a",
            "r..io/a",
            "[::1/a",
            "r.io/a@md5:00",
            "r.io/a\n",
            "r.io\r\nHost: x/a",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}
