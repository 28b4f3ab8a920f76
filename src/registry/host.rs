//! From the host in a reference to the URL that is asked, where no `hosts.toml` says another.

use url::{Host, Url};

use crate::registry::{Config, Error};

/// Where `docker.io` is served (as every client has it; docker.io itself is a web site).
const DOCKER_HUB: &str = "registry-1.docker.io";

/// Where the repositories of the registry that references call `name` are.
pub(super) fn base_url(name: &str, config: &Config) -> Result<Url, Error> {
    let host = if name == "docker.io" {
        DOCKER_HUB
    } else {
        name
    };
    let parse = |scheme: &str| {
        let url = Url::parse(&format!("{scheme}://{host}/v2"));
        url.map_err(|error| Error::Setup(format!("{name:?} is not a host: {error}")))
    };
    let url = parse("https")?;
    let listed = |entry: &String| entry == name || Some(entry.as_str()) == url.host_str();
    match is_loopback(&url) || config.plain_http.iter().any(listed) {
        true => parse("http"),
        false => Ok(url),
    }
}

/// Host of a URL, with its port if it is not the usual one.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Whether a URL's host is this machine by its text: 127/8, ::1, localhost.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_and_listed_hosts_only() {
        let config = Config {
            plain_http: vec!["in.house".to_owned(), "r.io:5000".to_owned()],
            ..Config::default()
        };
        for (name, url) in [
            ("docker.io", "https://registry-1.docker.io/v2"),
            ("ghcr.io", "https://ghcr.io/v2"),
            ("localhost", "http://localhost/v2"),
            ("localhost:5000", "http://localhost:5000/v2"),
            ("127.0.0.9:5000", "http://127.0.0.9:5000/v2"),
            ("[::1]:5000", "http://[::1]:5000/v2"),
            ("127.0.0.1.nip.io", "https://127.0.0.1.nip.io/v2"),
            ("10.0.0.1:5000", "https://10.0.0.1:5000/v2"),
            ("in.house", "http://in.house/v2"),
            ("in.house:5000", "http://in.house:5000/v2"),
            ("r.io:5000", "http://r.io:5000/v2"),
            ("r.io", "https://r.io/v2"),
        ] {
            assert_eq!(base_url(name, &config).unwrap().as_str(), url, "{name}");
        }
    }
}
