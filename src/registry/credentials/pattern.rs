//! Which images a credential is for, in Kubernetes' way of saying it.
//!
//! Source: Kubernetes, "Configure a kubelet image credential provider" (`matchImages`) and
//! "Images" (`config.json`): a pattern is `HOST[:PORT][/PATH]`; the host may have globs, each
//! within one part of the name; the number of parts and the port must be the same; the path is a
//! prefix.

use regex::Regex;

use crate::registry::credentials::docker_config::split;

/// A pattern of `matchImages`, or the key of an entry of `auths`.
#[derive(Debug)]
pub(super) struct Pattern {
    /// Each part of the host name.
    host: Vec<Regex>,
    port: String,
    path: String,
}

impl Pattern {
    /// Reads a pattern; a scheme and an API version (`https://host/v1/`) are left out. `None` if
    /// its globs make no sense.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (host, path) = split(text);
        let (name, port) = host_port(host);
        Some(Self {
            host: name.split('.').map(glob).collect::<Option<_>>()?,
            port: port.to_owned(),
            path: path.to_owned(),
        })
    }

    /// Whether it is for a repository of this host.
    pub(super) fn matches(&self, host: &str, repository: &str) -> bool {
        let (name, port) = host_port(host);
        let parts: Vec<_> = name.split('.').collect();
        self.port == port
            && parts.len() == self.host.len()
            && repository.starts_with(&self.path)
            && self
                .host
                .iter()
                .zip(parts)
                .all(|(glob, part)| glob.is_match(part))
    }
}

fn host_port(host: &str) -> (&str, &str) {
    host.rsplit_once(':').unwrap_or((host, ""))
}

/// A shell-like pattern: `*`, `?`, `[a-z]`, `[^a-z]`.
fn glob(text: &str) -> Option<Regex> {
    let mut pattern = "^".to_owned();
    let mut class = false;
    for c in text.chars() {
        match c {
            '*' if !class => pattern.push_str(".*"),
            '?' if !class => pattern.push('.'),
            '[' if !class => {
                class = true;
                pattern.push(c);
            }
            ']' if class => {
                class = false;
                pattern.push(c);
            }
            '^' | '-' if class => pattern.push(c),
            _ => pattern.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    Regex::new(&(pattern + "$")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_match_as_kubelet_matches_them() {
        for (pattern, image, expected) in [
            ("r.io", "r.io/a", true),
            ("*.r.io", "eu.r.io/a", true),
            ("*.r.io", "r.io/a", false),
            ("*.io", "eu.r.io/a", false),
            ("*.*.io", "eu.r.io/a", true),
            ("app*.k8s.io", "app1.k8s.io/a", true),
            ("k8s.*.io", "k8s.eu.io/a/b", true),
            (
                "123.dkr.ecr.*.amazonaws.com",
                "123.dkr.ecr.eu-west-1.amazonaws.com/a",
                true,
            ),
            ("r[0-4].io", "r3.io/a", true),
            ("r[0-4].io", "r7.io/a", false),
            ("r?.io", "r7.io/a", true),
            ("r.io/team", "r.io/team/app", true),
            ("r.io/team", "r.io/teams", true),
            ("r.io/team", "r.io/other", false),
            ("r.io:5000", "r.io:5000/a", true),
            ("r.io", "r.io:5000/a", false),
            ("r.io:5000", "r.io/a", false),
            ("rXio", "r.io/a", false),
            ("https://r.io/v1/", "r.io/a", true),
            ("index.docker.io", "docker.io/library/a", true),
            ("127.0.0.*:5000", "127.0.0.1:5000/a", true),
        ] {
            let (host, repository) = image.split_once('/').unwrap();
            let matches = Pattern::parse(pattern).unwrap().matches(host, repository);
            assert_eq!(matches, expected, "{pattern} {image}");
        }
        assert!(Pattern::parse("r[.io").is_none());
    }
}
