//! Where requests may go: a registry must not make a node ask hosts inside its own network.
//!
//! A host an operator named (in a reference, or in a `hosts.toml`) may have any address. Every other
//! host (redirect, token service, upload location) must have a public address, or one of the same
//! kind as the host that led there, or be listed in `registry.allow_private`; link-local addresses
//! are never reached by kinship. Names are judged by the addresses they resolve to, in the very
//! resolution the connection then uses, so a name that changes its mind gains nothing. Proxies of
//! the environment may be anywhere, but only as proxies: what leads to one by name is refused. Through
//! a proxy the proxy resolves names, and only literal addresses and `localhost` are judged here.

use std::error::Error as StdError;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use crate::registry::lookup::Lookups;

/// How far an address reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    Public,
    Private,
    Loopback,
    /// Link-local, and everything else that nobody serves images from (multicast, reserved).
    Local,
}

impl Reach {
    /// The kind of `address`, by the IANA special-purpose registries (RFC 6890).
    pub(super) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::of_v4(v4),
            IpAddr::V6(v6) => match embedded(v6) {
                Some(v4) => Self::of_v4(v4),
                None => Self::of_v6(v6),
            },
        }
    }

    fn of_v4(v4: Ipv4Addr) -> Self {
        match v4.octets() {
            [127 | 0, ..] => Self::Loopback,
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Self::Private,
            // Shared address space, protocol assignments, benchmarks: all used inside networks.
            [100, 64..=127, ..] | [192, 0, 0, _] | [198, 18 | 19, ..] => Self::Private,
            [169, 254, ..] | [224..=255, ..] => Self::Local,
            _ => Self::Public,
        }
    }

    fn of_v6(v6: Ipv6Addr) -> Self {
        if v6.is_loopback() || v6.is_unspecified() {
            return Self::Loopback;
        }
        match v6.segments() {
            // Unique local, the site-local of old, and a network's own NAT64 (RFC 8215).
            [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] | [0x64, 0xff9b, 1, ..] => Self::Private,
            // Link-local, multicast, discard (RFC 6666), and Teredo, which tunnels to anywhere.
            [0xfe80..=0xfebf | 0xff00..=0xffff, ..] => Self::Local,
            [0x100, 0, 0, 0, ..] | [0x2001, 0, ..] => Self::Local,
            _ => Self::Public,
        }
    }
}

/// The IPv4 address that an IPv6 address is another way to write or to reach: mapped, compatible,
/// translated (RFC 2765), NAT64 (RFC 6052), 6to4 (RFC 3056), ISATAP (RFC 5214).
fn embedded(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    match v6.segments() {
        // `::` and `::1` are addresses of their own.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => Some(v4(high, low)),
        [0, 0, 0, 0, 0xffff, 0, high, low] => Some(v4(high, low)),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(v4(high, low)),
        [0x2002, high, low, ..] => Some(v4(high, low)),
        [first, _, _, _, 0 | 0x200, 0x5efe, high, low] if first & 0xffc0 != 0xfe80 => {
            Some(v4(high, low))
        }
        _ => None,
    }
}

/// A host that was not asked.
#[derive(Debug)]
pub(super) struct Refused(pub(super) String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not a public address", self.0)
    }
}

impl StdError for Refused {}

/// The rule for one registry host, and the resolver that enforces it.
#[derive(Clone)]
pub(super) struct Guard(Arc<Inner>);

struct Inner {
    /// Without port, as URLs write it.
    home: String,
    /// The kind of address `home` has; learned when it is first resolved.
    reach: Mutex<Reach>,
    /// What the configuration allows by name.
    allowed: Vec<String>,
    /// Hosts of proxies: may be connected to, not asked.
    proxies: Vec<String>,
    lookups: Arc<Lookups>,
}

impl Guard {
    /// A guard for the registry at `home`; `allowed` are hosts that may be asked in any case,
    /// `proxies` those through which requests go.
    pub(super) fn new(home: &Url, allowed: Vec<String>, proxies: Vec<String>) -> Self {
        let reach = match home.host() {
            Some(Host::Ipv4(v4)) => Reach::of(v4.into()),
            Some(Host::Ipv6(v6)) => Reach::of(v6.into()),
            Some(Host::Domain(name)) if is_localhost(name) => Reach::Loopback,
            _ => Reach::Public,
        };
        Self(Arc::new(Inner {
            home: home.host_str().unwrap_or_default().to_owned(),
            reach: Mutex::new(reach),
            allowed,
            proxies,
            lookups: Arc::default(),
        }))
    }

    /// Whether `url` may be asked, as far as its text tells; names are judged when they resolve.
    pub(super) fn check(&self, url: &Url) -> Result<(), Refused> {
        let host = url.host_str().unwrap_or_default();
        let permitted = match url.host() {
            Some(Host::Ipv4(v4)) => self.permits(Reach::of(v4.into())),
            Some(Host::Ipv6(v6)) => self.permits(Reach::of(v6.into())),
            Some(Host::Domain(name)) if is_localhost(name) => self.permits(Reach::Loopback),
            Some(Host::Domain(name)) => !self.0.proxies.iter().any(|proxy| proxy == name),
            None => false,
        };
        match permitted || self.is_exempt(host) {
            true => Ok(()),
            false => Err(Refused(host.to_owned())),
        }
    }

    fn is_exempt(&self, host: &str) -> bool {
        let bare = |text: &str| text.trim_matches(['[', ']']).to_owned();
        host == self.0.home || self.0.allowed.iter().any(|a| bare(a) == bare(host))
    }

    /// The home's own kind may be asked too: the storage of a registry inside is inside as well.
    /// Link-local is where clouds keep what only the node itself may know.
    fn permits(&self, reach: Reach) -> bool {
        reach == Reach::Public || (reach != Reach::Local && reach == *self.0.reach.lock())
    }

    fn judge(&self, host: &str, addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Refused> {
        if host == self.0.home {
            let mut kinds = addresses.iter().map(|a| Reach::of(a.ip()));
            let first = kinds.next().unwrap_or(Reach::Public);
            // A name with addresses of several kinds vouches for none of them.
            let all = kinds.all(|kind| kind == first);
            *self.0.reach.lock() = if all { first } else { Reach::Public };
            return Ok(addresses);
        }
        // A proxy is resolved to connect to it; what would be asked was judged by `check`.
        if self.is_exempt(host) || self.0.proxies.iter().any(|proxy| proxy == host) {
            return Ok(addresses);
        }
        let permitted: Vec<_> = addresses
            .into_iter()
            .filter(|a| self.permits(Reach::of(a.ip())))
            .collect();
        match permitted.is_empty() {
            true => Err(Refused(host.to_owned())),
            false => Ok(permitted),
        }
    }
}

/// The names that mean this machine whatever a resolver says (RFC 6761).
fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    name == "localhost" || name.ends_with(".localhost")
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move {
            let host = name.as_str();
            let found = guard.0.lookups.find(host).await;
            let found = found.map_err(|why| why.to_string())?;
            let permitted = guard.judge(host, found)?;
            Ok(Box::new(permitted.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_of_their_kind_however_they_are_written() {
        for (text, reach) in [
            ("8.8.8.8", Reach::Public),
            ("172.32.0.1", Reach::Public),
            ("2606:4700::1", Reach::Public),
            ("127.1.2.3", Reach::Loopback),
            ("0.0.0.0", Reach::Loopback),
            ("::1", Reach::Loopback),
            ("::", Reach::Loopback),
            ("::ffff:127.0.0.1", Reach::Loopback),
            ("10.0.0.1", Reach::Private),
            ("172.31.255.255", Reach::Private),
            ("192.168.0.1", Reach::Private),
            ("100.100.100.200", Reach::Private),
            ("100.63.255.255", Reach::Public),
            ("100.128.0.0", Reach::Public),
            ("::ffff:100.64.0.1", Reach::Private),
            ("::ffff:8.8.8.8", Reach::Public),
            ("::ffff:0.0.0.0", Reach::Loopback),
            ("::ffff:0.0.0.1", Reach::Loopback),
            ("::ffff:0:10.0.0.1", Reach::Private),
            ("64:ff9b::8.8.8.8", Reach::Public),
            ("64:ff9b::169.254.169.254", Reach::Local),
            ("64:ff9b:1::8.8.8.8", Reach::Private),
            ("2002:a9fe:a9fe::", Reach::Local),
            ("2001:0:4136:e378:8000:63bf:3fff:fdd2", Reach::Local),
            ("2001:4860::5efe:10.0.0.1", Reach::Private),
            ("fe80::5efe:8.8.8.8", Reach::Local),
            ("100::1", Reach::Local),
            ("fec0::1", Reach::Private),
            ("ff02::1", Reach::Local),
            ("fd00::1", Reach::Private),
            ("64:ff9b::a00:1", Reach::Private),
            ("2002:a00:1::", Reach::Private),
            ("169.254.169.254", Reach::Local),
            ("::ffff:169.254.169.254", Reach::Local),
            ("::169.254.169.254", Reach::Local),
            ("fe80::1", Reach::Local),
            ("224.0.0.1", Reach::Local),
            ("255.255.255.255", Reach::Local),
        ] {
            assert_eq!(Reach::of(text.parse().unwrap()), reach, "{text}");
        }
    }

    #[test]
    fn only_the_registry_itself_and_its_kind_may_be_inside() {
        let url = |text: &str| Url::parse(text).unwrap();
        let public = Guard::new(
            &url("https://r.io/"),
            vec!["10.0.0.9".to_owned()],
            Vec::new(),
        );
        for (target, ok) in [
            ("https://8.8.8.8/", true),
            ("https://10.0.0.9/", true),
            ("https://10.0.0.8/", false),
            ("http://2130706433/", false), // 127.0.0.1 as one number
            ("http://0x7f.1/", false),
            ("http://[::ffff:10.0.0.1]/", false),
            ("http://169.254.169.254/latest", false),
            ("http://[::ffff:0.0.0.0]/", false),
            ("http://[::]/", false),
            ("http://localhost/", false),
            ("http://localhost./", false),
            ("http://x.localhost/", false),
            ("http://localhost.io/", true),
        ] {
            assert_eq!(public.check(&url(target)).is_ok(), ok, "{target}");
        }
        let private = Guard::new(&url("http://10.0.0.1:5000/"), Vec::new(), Vec::new());
        assert!(private.check(&url("http://10.0.0.2/")).is_ok());
        assert!(private.check(&url("http://127.0.0.1/")).is_err());
        assert!(private.check(&url("http://169.254.169.254/")).is_err());
        let local = Guard::new(&url("http://169.254.1.1:5000/"), Vec::new(), Vec::new());
        assert!(local.check(&url("http://169.254.1.1/x")).is_ok(), "itself");
        assert!(local.check(&url("http://169.254.169.254/")).is_err());
        let inside = Guard::new(&url("http://localhost:5000/"), Vec::new(), Vec::new());
        assert!(inside.check(&url("http://127.0.0.1:9/")).is_ok());
    }

    #[test]
    fn a_proxy_may_be_connected_to_but_not_asked() {
        let url = |text: &str| Url::parse(text).unwrap();
        let proxies = vec!["proxy.in".to_owned(), "10.0.0.3".to_owned()];
        let guard = Guard::new(&url("https://r.io/"), Vec::new(), proxies);
        let inside = vec![SocketAddr::new("10.0.0.3".parse().unwrap(), 0)];
        assert!(guard.judge("proxy.in", inside).is_ok());
        assert!(guard.check(&url("https://proxy.in:9200/")).is_err());
        assert!(guard.check(&url("https://10.0.0.3:9200/")).is_err());
    }

    #[test]
    fn names_are_judged_by_what_they_resolve_to() {
        let guard = Guard::new(
            &Url::parse("https://r.io/").unwrap(),
            Vec::new(),
            Vec::new(),
        );
        let addresses = |list: &[&str]| -> Vec<SocketAddr> {
            list.iter()
                .map(|a| SocketAddr::new(a.parse().unwrap(), 0))
                .collect()
        };
        assert!(guard.judge("evil.io", addresses(&["10.0.0.1"])).is_err());
        let mixed = guard
            .judge("evil.io", addresses(&["10.0.0.1", "8.8.8.8"]))
            .unwrap();
        assert_eq!(mixed, addresses(&["8.8.8.8"]));
        // The registry turns out to be inside: then so may its storage be.
        assert!(guard.judge("r.io", addresses(&["10.0.0.7"])).is_ok());
        assert!(
            guard
                .judge("storage.r.io", addresses(&["10.0.0.1"]))
                .is_ok()
        );
        assert!(
            guard
                .judge("storage.r.io", addresses(&["127.0.0.1"]))
                .is_err()
        );
        // ... but not if it is inside and outside at once.
        assert!(
            guard
                .judge("r.io", addresses(&["10.0.0.7", "8.8.8.8"]))
                .is_ok()
        );
        assert!(
            guard
                .judge("storage.r.io", addresses(&["10.0.0.1"]))
                .is_err()
        );
    }
}
