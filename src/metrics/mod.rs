//! Metrics in Prometheus' text format, on an address or a unix socket of their own.
//!
//! Nothing is counted here: each module counts for itself with plain atomics, [`crate::report`] adds
//! them up when somebody asks, [`families`] gives them names. `deploy/METRICS.md` lists every name,
//! and a test holds it to the code. No label names a layer, an image or a container, so that the
//! number of series is the same on every node.

mod families;
mod process;
mod serve;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use families::{Family, Kind, Sample, Value, all, encode};
pub use process::Process;
pub use serve::{Listener, serve};

/// Section `[metrics]` of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where they are served: `"127.0.0.1:9253"` or `"unix:/run/crfs/metrics.sock"`. Default: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
}

/// Where metrics are served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// An absolute path.
    Unix(PathBuf),
}

/// Why a text is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("use an IP address and a port, as in 127.0.0.1:9253, or unix: and an absolute path")]
pub struct AddressError;

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(_) => Err(AddressError),
            None => text.parse().map(Self::Tcp).map_err(|_| AddressError),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod address_tests {
    use super::*;

    #[test]
    fn an_address_is_an_ip_with_a_port_or_a_path() {
        for (text, ok) in [
            ("127.0.0.1:9253", true),
            ("[::1]:9253", true),
            ("unix:/run/crfs/metrics.sock", true),
            ("unix:metrics.sock", false),
            ("127.0.0.1", false),
            ("localhost:9253", false),
            ("", false),
        ] {
            let parsed = text.parse::<Address>();
            assert_eq!(parsed.is_ok(), ok, "{text}");
            if let Ok(address) = parsed {
                assert_eq!(address.to_string(), text);
            }
        }
    }
}
