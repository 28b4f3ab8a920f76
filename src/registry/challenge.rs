//! What a 401 asks for: `WWW-Authenticate` headers (RFC 9110, 11.6.1), as far as registries use
//! them (distribution spec, "Token Authentication").

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use url::Url;

/// The longest header that is parsed, in bytes.
const MAX_HEADER: usize = 8 << 10;

/// What has to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User name and password with every request.
    Basic,
    /// A token, to be had at `realm`.
    Bearer {
        realm: Url,
        service: Option<String>,
        /// What the registry says the token must allow.
        scope: Option<String>,
    },
}

impl Challenge {
    /// The best challenge that crfs can answer: Bearer before Basic.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let texts = headers.get_all(WWW_AUTHENTICATE).iter();
        let texts = texts.filter_map(|value| value.to_str().ok());
        let all: Vec<_> = texts
            .filter(|text| text.len() <= MAX_HEADER)
            .flat_map(|text| http_auth::parse_challenges(text).unwrap_or_default())
            .filter_map(|challenge| Self::from(&challenge))
            .collect();
        let bearer = all.iter().find(|c| matches!(c, Self::Bearer { .. }));
        bearer.or(all.first()).cloned()
    }

    fn from(challenge: &http_auth::ChallengeRef<'_>) -> Option<Self> {
        if challenge.scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !challenge.scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let value = |name: &str| {
            let mut params = challenge.params.iter();
            let found = params.find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_unescaped())
        };
        Some(Self::Bearer {
            realm: value("realm")?.parse().ok()?,
            service: value("service"),
            scope: value("scope").filter(|scope| !scope.is_empty()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        Challenge::of(&headers)
    }

    #[test]
    fn bearer_is_preferred_and_malformed_ones_are_skipped() {
        let bearer = Some(Challenge::Bearer {
            realm: "https://auth.r.io/token?x=1".parse().unwrap(),
            service: Some("r, \"io\"".to_owned()),
            scope: Some("repository:a/b:pull,push".to_owned()),
        });
        let text = r#"BEARER Realm="https://auth.r.io/token?x=1",service="r, \"io\"",scope="repository:a/b:pull,push""#;
        assert_eq!(parse(&[text]), bearer);
        assert_eq!(parse(&["Basic realm=\"x\"", text]), bearer);
        assert_eq!(parse(&[&format!("Basic realm=\"x\", {text}")]), bearer);
        assert_eq!(
            parse(&["Bearer realm=\"\"", "Negotiate", "basic realm=x"]),
            Some(Challenge::Basic)
        );
        for bad in [
            "",
            "Bearer",
            "Bearer service=\"x\"",
            "Bearer realm=\"not a url\"",
            "Digest x=1",
            "=,=\"",
        ] {
            assert_eq!(parse(&[bad]), None, "{bad}");
        }
    }
}
