//! One conversation with a token service: what it is asked, and what it answers.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Deserialize;
use url::{Url, form_urlencoded};

use crate::registry::credentials::Credential;
use crate::registry::payload::Payload;
use crate::registry::transport::{Request, Transport, host_of};
use crate::registry::{Error, endpoint};

/// The largest answer of a token service, in bytes.
const MAX_TOKEN: u64 = 1 << 20;
/// Life of a token that does not say (distribution spec, "Token Response Fields").
const USUAL_LIFE: Duration = Duration::from_secs(60);
/// A token service's answer (distribution spec, "Token Response Fields"; OAuth2 the same).
#[derive(Deserialize)]
pub(super) struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

impl Token {
    pub(super) fn text(&self) -> &str {
        match self.token.is_empty() {
            true => &self.access_token,
            false => &self.token,
        }
    }

    pub(super) fn life(&self) -> Duration {
        let seconds = self.expires_in.filter(|&seconds| seconds > 0);
        // A year is for ever, and the clock can add it.
        seconds.map_or(USUAL_LIFE, |s| Duration::from_secs(s.min(31_536_000)))
    }
}

/// GET with what a password opens, or POST with an identity token (distribution spec, "Token
/// Authentication" and "OAuth2 Token Authentication").
pub(super) struct TokenRequest<'a> {
    what: &'a Arc<str>,
    url: Url,
    authorization: Option<HeaderValue>,
    form: Option<Payload>,
}

pub(super) fn token_request<'a>(
    realm: &Url,
    service: Option<&str>,
    scopes: &[&str],
    credential: Option<&Credential>,
    what: &'a Arc<str>,
) -> Result<TokenRequest<'a>, Error> {
    let mut request = TokenRequest {
        what,
        url: realm.clone(),
        authorization: None,
        form: None,
    };
    if let Some(Credential::IdentityToken(token)) = credential {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token");
        form.append_pair("client_id", "crfs");
        form.append_pair("service", service.unwrap_or_default());
        form.append_pair("scope", &scopes.join(" "));
        form.append_pair("refresh_token", token.expose());
        request.form = Some(Payload::Bytes(Bytes::from(form.finish())));
        return Ok(request);
    }
    if let Some(Credential::Password { username, password }) = credential {
        request.authorization = Some(basic(username, password.expose())?);
    }
    let mut query = request.url.query_pairs_mut();
    if let Some(service) = service {
        query.append_pair("service", service);
    }
    for scope in scopes.iter().flat_map(|scopes| scopes.split(' ')) {
        query.append_pair("scope", scope);
    }
    drop(query);
    Ok(request)
}

pub(super) async fn fetch(
    transport: &Transport,
    request: TokenRequest<'_>,
) -> Result<Token, Error> {
    let mut headers = HeaderMap::new();
    if request.form.is_some() {
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(CONTENT_TYPE, form);
    }
    let host = host_of(&request.url);
    let answer = transport.send(Request {
        method: request.form.as_ref().map_or(Method::GET, |_| Method::POST),
        url: request.url,
        what: request.what,
        headers,
        private: request
            .authorization
            .map(|value| (AUTHORIZATION, value))
            .into_iter()
            .collect(),
        payload: request.form.as_ref(),
        confidential: request.form.is_some(),
    });
    let answer = answer.await?;
    if !answer.status().is_success() {
        return Err(endpoint::refusal(answer, request.what, "the token service").await);
    }
    let json = answer.read(MAX_TOKEN).await?;
    let token = serde_json::from_slice::<Token>(&json).ok();
    token
        .filter(|token| !token.text().is_empty())
        .ok_or_else(|| {
            Error::Protocol(format!("{}: {host} answered without a token", request.what))
        })
}

pub(super) fn basic(username: &str, password: &str) -> Result<HeaderValue, Error> {
    let text = STANDARD.encode(format!("{username}:{password}"));
    secret_header(&format!("Basic {text}"))
}

pub(super) fn secret_header(text: &str) -> Result<HeaderValue, Error> {
    let mut header = HeaderValue::from_str(text)
        .map_err(|_| Error::Protocol("a token has characters no header can carry".to_owned()))?;
    header.set_sensitive(true);
    Ok(header)
}
