//! The making of HTTP clients: TLS, proxies, windows, and the guard as their resolver.

use std::time::Duration;

use reqwest::{Certificate, Client, ClientBuilder};
use url::Url;

use crate::registry::Error;
use crate::registry::egress::Guard;
use crate::registry::hosts::Tls;
use crate::registry::tls;
use crate::registry::transport::chain;

const USER_AGENT: &str = concat!("crfs/", env!("CARGO_PKG_VERSION"));
/// Flow-control windows of HTTP/2, in bytes: 4 MiB is 50 ms at 650 Mbit/s for each stream.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// How clients for one host, and for where it leads, are made.
pub(super) struct Recipe {
    pub(super) connect_timeout: Duration,
    /// Proxies of the environment are not for loopback hosts.
    pub(super) proxied: bool,
    pub(super) tls: Tls,
}

/// A pool of connections to a host, and one to all others: a client certificate is for the host it
/// was configured for only.
#[derive(Clone)]
pub(super) struct Pools {
    pub(super) home: Client,
    pub(super) away: Client,
}

impl Recipe {
    /// New pools without connections.
    pub(super) fn pools(&self, guard: &Guard) -> Result<Pools, Error> {
        let away = self.client(guard)?;
        let home = match self.tls.identities.is_empty() {
            true => away.clone(),
            false => {
                let home = self.builder(guard);
                let home = home.tls_backend_preconfigured(tls::client(&self.tls)?);
                home.build().map_err(|error| Error::Setup(chain(&error)))?
            }
        };
        Ok(Pools { home, away })
    }

    fn builder(&self, guard: &Guard) -> ClientBuilder {
        let builder = Client::builder()
            .user_agent(USER_AGENT)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(self.connect_timeout)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .http2_keep_alive_timeout(Duration::from_secs(10))
            .tls_danger_accept_invalid_certs(self.tls.skip_verify)
            .dns_resolver(guard.clone());
        match self.proxied {
            true => builder,
            false => builder.no_proxy(),
        }
    }

    /// A client that shows no certificate.
    fn client(&self, guard: &Guard) -> Result<Client, Error> {
        // Fails if a provider is installed already: then that one is used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let setup = |error: reqwest::Error| Error::Setup(chain(&error));
        let mut ca = Vec::new();
        for pem in &self.tls.ca {
            ca.extend(Certificate::from_pem_bundle(pem).map_err(setup)?);
        }
        // A node without CA certificates can still use plain-HTTP registries and those whose CA is
        // configured; https to others fails there with the reason when it is tried.
        self.builder(guard).tls_certs_merge(ca.clone()).build().or_else(|error| {
            tracing::warn!(%error, "no usable CA certificates (is the package ca-certificates installed?)");
            self.builder(guard).tls_certs_only(ca).build()
        })
        .map_err(setup)
    }
}

/// Hosts of the proxies the environment names: they may be inside the network.
pub(super) fn proxies() -> Vec<String> {
    let names = [
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
    ];
    let values = names.iter().filter_map(|name| std::env::var(name).ok());
    values.filter_map(|value| proxy_host(&value)).collect()
}

/// The host of a proxy, whose URL may be written without a scheme.
fn proxy_host(value: &str) -> Option<String> {
    let url = match value.contains("://") {
        true => Url::parse(value),
        false => Url::parse(&format!("http://{value}")),
    };
    url.ok()?.host_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_known_however_it_is_written() {
        for (value, host) in [
            ("http://proxy.in:3128", Some("proxy.in")),
            ("http://user:pass@10.0.0.3:3128/", Some("10.0.0.3")),
            ("proxy.in:3128", Some("proxy.in")),
            ("", None),
        ] {
            assert_eq!(proxy_host(value).as_deref(), host, "{value}");
        }
    }
}
