//! Writing to a registry: blobs and manifests (distribution spec, "Pushing").

use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Method, StatusCode};
use url::Url;

use crate::oci::{Digest, MediaType, Reference};
use crate::registry::auth::Scope;
use crate::registry::endpoint::{Call, Endpoint};
use crate::registry::transport::{Answer, resolve};
use crate::registry::{Client, Error, Payload};

/// How a blob got to where it was pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was there already.
    Existed,
    /// The registry took it from another of its repositories.
    Mounted,
    /// It was sent.
    Uploaded,
}

impl Client {
    /// Whether the repository of `image` holds a blob. Asks with the right to push.
    ///
    /// # Errors
    /// The registry cannot be reached or refuses.
    pub async fn has_blob(&self, image: &Reference, digest: Digest) -> Result<bool, Error> {
        let push = self.push(image, digest, None)?;
        push.exists().await
    }

    /// Puts a blob into the repository of `image`, unless it is there. With `from`, another
    /// repository of the same registry that may hold it, nothing is sent if it does. A broken
    /// upload is started anew.
    ///
    /// # Errors
    /// The registry cannot be reached or refuses, the payload cannot be read, or it does not have
    /// the digest (the registry checks).
    pub async fn push_blob(
        &self,
        image: &Reference,
        digest: Digest,
        payload: &Payload,
        from: Option<&str>,
    ) -> Result<Pushed, Error> {
        let push = self.push(image, digest, from)?;
        if push.exists().await? {
            return Ok(Pushed::Existed);
        }
        let mut patience = push.endpoint.patience(&push.what);
        loop {
            match push.once(payload).await {
                Ok(pushed) => return Ok(pushed),
                Err(error) => {
                    // An upload may last long before it breaks; only the attempts are limited.
                    patience.extend();
                    push.endpoint.recover(error, &mut patience).await?;
                }
            }
        }
    }

    /// Puts a manifest or index under the tag, or else the digest, of `image`.
    ///
    /// # Errors
    /// The registry cannot be reached or refuses, for example because a blob is missing.
    pub async fn put_manifest(
        &self,
        image: &Reference,
        media_type: &MediaType,
        bytes: Bytes,
    ) -> Result<Digest, Error> {
        let endpoint = self.hosts(image.host())?.writable()?;
        let digest = Digest::of(&bytes);
        let selector = match (image.tag(), image.digest()) {
            (_, Some(named)) if named != digest => {
                let why = format!("manifest {image}: the content to be put has digest {digest}");
                return Err(Error::Protocol(why));
            }
            (Some(tag), _) => tag.to_owned(),
            (None, _) => digest.to_string(),
        };
        let kind = HeaderValue::from_str(media_type.as_str())
            .map_err(|_| Error::Protocol(format!("{media_type:?} is not a media type")))?;
        let call = Call {
            method: Method::PUT,
            url: endpoint.url(image.repository(), &format!("manifests/{selector}")),
            what: format!("manifest {image}").into(),
            scope: Scope::push(image.repository()),
            headers: HeaderMap::from_iter([(CONTENT_TYPE, kind)]),
            payload: Some(Payload::Bytes(bytes)),
        };
        endpoint.call(&call).await?;
        Ok(digest)
    }

    fn push<'a>(
        &self,
        image: &'a Reference,
        digest: Digest,
        from: Option<&'a str>,
    ) -> Result<Push<'a>, Error> {
        let (host, repository) = (image.host(), image.repository());
        Ok(Push {
            endpoint: self.hosts(host)?.writable()?,
            repository,
            digest,
            from,
            what: format!("blob {digest} of {host}/{repository}").into(),
        })
    }
}

/// One blob on its way into a repository.
struct Push<'a> {
    endpoint: Arc<Endpoint>,
    repository: &'a str,
    digest: Digest,
    from: Option<&'a str>,
    what: Arc<str>,
}

impl Push<'_> {
    async fn exists(&self) -> Result<bool, Error> {
        let url = self
            .endpoint
            .url(self.repository, &format!("blobs/{}", self.digest));
        match self
            .endpoint
            .call(&self.call(Method::HEAD, url, None))
            .await
        {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks for an upload (or a mount), and sends everything in one request.
    async fn once(&self, payload: &Payload) -> Result<Pushed, Error> {
        let mut url = self.endpoint.url(self.repository, "blobs/uploads/");
        if let Some(from) = self.from {
            let mut query = url.query_pairs_mut();
            query.append_pair("mount", &self.digest.to_string());
            query.append_pair("from", from);
        }
        let nothing = Payload::Bytes(Bytes::new());
        let call = self.call(Method::POST, url, Some(nothing));
        let answer = self.endpoint.attempt(&call).await?;
        if answer.status() == StatusCode::CREATED {
            return Ok(Pushed::Mounted);
        }
        let mut upload = self.upload_url(&answer)?;
        upload
            .query_pairs_mut()
            .append_pair("digest", &self.digest.to_string());
        let call = self.call(Method::PUT, upload, Some(payload.clone()));
        self.endpoint.attempt(&call).await?;
        Ok(Pushed::Uploaded)
    }

    fn upload_url(&self, answer: &Answer) -> Result<Url, Error> {
        let location = answer.headers().get(LOCATION).and_then(|l| l.to_str().ok());
        let url = location.map_or(Err("it has no location"), |l| resolve(&answer.url, l));
        url.map_err(|why| Error::Redirect {
            what: Arc::clone(&self.what),
            host: answer.host(),
            why: why.to_owned(),
        })
    }

    fn call(&self, method: Method, url: Url, payload: Option<Payload>) -> Call {
        let bytes = HeaderValue::from_static("application/octet-stream");
        let headers = payload.iter().map(|_| (CONTENT_TYPE, bytes.clone()));
        Call {
            method,
            url,
            what: Arc::clone(&self.what),
            scope: match self.from {
                Some(from) => Scope::mount(self.repository, from),
                None => Scope::push(self.repository),
            },
            headers: headers.collect(),
            payload,
        }
    }
}
