//! What a `PullImage` is made with. The call itself is passed on as it came.

use hyper::body::{Bytes, HttpBody as _};
use hyper::{Body, Request};
use prost::Message as _;

use crate::oci::Reference;
use crate::registry::{Credential, Learned, Pulled, Secret};

/// Largest message, in bytes: containerd's own limit.
const MAX_MESSAGE: usize = 16 << 20;
/// What precedes a message: whether it is compressed, and its length (gRPC over HTTP/2,
/// "Length-Prefixed-Message").
const PREFIX: usize = 5;

#[allow(
    missing_docs,
    clippy::allow_attributes_without_reason,
    reason = "generated; what it means is in proto/cri.proto"
)]
mod api {
    include!(concat!(env!("OUT_DIR"), "/runtime.v1.rs"));
}

/// A pull that is under way.
pub(super) struct Pull {
    image: Reference,
    learned: Option<Learned>,
}

impl Pull {
    /// It has succeeded: its credential is kept. Yields what was pulled.
    pub(super) fn succeeded(self) -> Reference {
        if let Some(learned) = self.learned {
            learned.keep();
        }
        self.image
    }
}

/// Whether a call pulls an image, in any version of the API.
pub(super) fn is_pull(path: &str) -> bool {
    path.starts_with("/runtime.v1") && path.ends_with(".ImageService/PullImage")
}

/// Takes in what the pull is made with. The request comes back as it was.
///
/// # Errors
/// It is larger than containerd would take, or breaks off.
pub(super) async fn look(
    request: Request<Body>,
    pulled: &Pulled,
) -> Result<(Request<Body>, Option<Pull>), String> {
    let (head, mut body) = request.into_parts();
    let mut bytes = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece.map_err(|error| error.to_string())?;
        if bytes.len() + piece.len() > MAX_MESSAGE + PREFIX {
            return Err(format!("the message is larger than {MAX_MESSAGE} bytes"));
        }
        bytes.extend_from_slice(&piece);
    }
    let bytes = Bytes::from(bytes);
    let pull = learn(&bytes, pulled);
    Ok((Request::from_parts(head, Body::from(bytes)), pull))
}

/// Whatever is strange about the message is containerd's to say: then nothing is learned.
fn learn(bytes: &[u8], pulled: &Pulled) -> Option<Pull> {
    let (prefix, message) = bytes.split_at_checked(PREFIX)?;
    let is_plain = prefix.first() == Some(&0);
    let request = api::PullImageRequest::decode(message).ok();
    let request = request.filter(|_| is_plain)?;
    let image: Reference = request.image?.image.parse().ok()?;
    let credential = request.auth.and_then(|auth| credential(auth, &image));
    let learned = credential.map(|credential| {
        tracing::debug!(%image, "a pull brought credentials");
        pulled.learn(&image, credential)
    });
    Some(Pull { image, learned })
}

/// What containerd makes of it too (its `ParseAuth`), and the registry token, which it ignores.
fn credential(auth: api::AuthConfig, image: &Reference) -> Option<Credential> {
    if !auth.server_address.is_empty() && !is_for(&auth.server_address, image.host()) {
        return None;
    }
    if !auth.username.is_empty() {
        return Some(Credential::Password {
            username: auth.username,
            password: Secret::new(auth.password),
        });
    }
    if !auth.identity_token.is_empty() {
        return Some(Credential::IdentityToken(Secret::new(auth.identity_token)));
    }
    if !auth.auth.is_empty() {
        return Credential::decode(&auth.auth);
    }
    let token = Secret::new(auth.registry_token);
    (!token.expose().is_empty()).then_some(Credential::AccessToken(token))
}

/// Whether a server's address, with or without scheme and path, is that of a registry host.
fn is_for(address: &str, host: &str) -> bool {
    let bare = address.split_once("://").map_or(address, |(_, rest)| rest);
    let named = bare.split('/').next().unwrap_or_default();
    let hub = ["index.docker.io", "registry-1.docker.io"].contains(&named);
    named == host || (hub && host == "docker.io")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned(auth: api::AuthConfig) -> Option<Credential> {
        credential(auth, &"r.io/a".parse().unwrap())
    }

    fn password(username: &str, password: &str) -> Option<Credential> {
        Some(Credential::Password {
            username: username.to_owned(),
            password: Secret::new(password.to_owned()),
        })
    }

    #[test]
    fn what_opens_the_registry_is_read_as_containerd_reads_it() {
        let auth = || api::AuthConfig {
            auth: "dTpw".to_owned(),
            ..Default::default()
        };
        assert_eq!(learned(auth()), password("u", "p"));
        let with_name = api::AuthConfig {
            username: "name".to_owned(),
            password: "word".to_owned(),
            ..auth()
        };
        assert_eq!(learned(with_name), password("name", "word"));
        let token = api::AuthConfig {
            identity_token: "t".to_owned(),
            ..auth()
        };
        let identity = Credential::IdentityToken(Secret::new("t".to_owned()));
        assert_eq!(learned(token), Some(identity));
        assert_eq!(learned(api::AuthConfig::default()), None);
        for (server, fits) in [
            ("r.io", true),
            ("https://r.io/v1/", true),
            ("q.io", false),
            ("r.io:5000", false),
        ] {
            let auth = api::AuthConfig {
                server_address: server.to_owned(),
                ..auth()
            };
            assert_eq!(learned(auth).is_some(), fits, "{server}");
        }
        assert!(is_for("https://index.docker.io/v1/", "docker.io"));
    }

    #[test]
    fn only_pulls_are_looked_into() {
        assert!(is_pull("/runtime.v1.ImageService/PullImage"));
        assert!(is_pull("/runtime.v1alpha2.ImageService/PullImage"));
        assert!(!is_pull("/runtime.v1.ImageService/ListImages"));
        assert!(!is_pull("/other.v1.ImageService/PullImage"));
    }

    #[test]
    fn what_is_no_message_teaches_nothing() {
        for bytes in [
            &b""[..],
            &[0, 0],
            &[0; 5],
            &[1, 0, 0, 0, 1, 8],
            &[0, 0, 0, 0, 2, 255, 255],
        ] {
            assert!(learn(bytes, &Pulled::default()).is_none(), "{bytes:?}");
        }
    }
}
