//! containerd as a client sees it: its content store, images, leases, snapshots and unpacking.
//!
//! The calls that a pull needs ([`crate::pull`]), one method each, over containerd's unix socket. No
//! decision is taken here; what containerd answers comes back as [`Error`], with what was being done.
//! Dropping a call gives it up.

mod content;
mod error;
mod images;
mod lease;
mod owner;
mod snapshots;
mod socket;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

pub use content::{Ingest, Stored};
pub use error::{Error, Kind};
pub use images::Image;
pub use lease::Lease;
pub use snapshots::{Mounts, Prepared};
pub use socket::UnixSocket;

use crate::oci::Descriptor;

/// Where containerd serves if nobody says otherwise.
const SOCKET: &str = "/run/containerd/containerd.sock";

/// Section `[containerd]` of the configuration: the containerd that crfs is a snapshotter of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Its socket. It gets the calls of the CRI that come to crfs, and the manifest and the config of an image that it pulls
    /// are read from its content store: where it cannot be reached, from the registry. Default
    /// `/run/containerd/containerd.sock`.
    pub address: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: PathBuf::from(SOCKET),
        }
    }
}

/// Largest message in either direction, in bytes (containerd's own limit).
const MAX_MESSAGE: usize = 16 << 20;

#[allow(
    missing_docs,
    clippy::allow_attributes_without_reason,
    clippy::excessive_nesting,
    clippy::too_many_lines,
    clippy::unwrap_used,
    reason = "generated; what it means is in proto/containerd"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/containerd/mod.rs"));
}

use generated::containerd::{services, types};

/// The way to one containerd, in one of its namespaces. Cheap to clone.
#[derive(Clone)]
pub struct Containerd {
    socket: PathBuf,
    channel: Channel,
    headers: Headers,
}

/// A channel whose calls carry [`Headers`].
type Calls = InterceptedService<Channel, Headers>;

/// What each call says of itself.
#[derive(Clone)]
struct Headers {
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            metadata.insert("containerd-lease", lease.clone());
        }
        Ok(request)
    }
}

impl Containerd {
    /// Connects to the containerd at `socket` (a path, with or without `unix://`). Needs a tokio runtime.
    ///
    /// # Errors
    /// Nobody serves there, or `namespace` cannot be one.
    pub async fn connect(socket: &Path, namespace: &str) -> Result<Self, Error> {
        let socket = socket::path(socket);
        let is_name = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        let named = namespace.parse::<MetadataValue<Ascii>>().ok();
        let named = named.filter(|_| !namespace.is_empty() && namespace.chars().all(is_name));
        let namespace = named.ok_or_else(|| Error::Namespace(namespace.to_owned()))?;
        let channel = UnixSocket::new(&socket).connect().await;
        let channel = channel.map_err(|why| Error::Unreachable {
            socket: socket.clone(),
            why,
        })?;
        Ok(Self {
            socket,
            channel,
            headers: Headers {
                namespace,
                lease: None,
            },
        })
    }

    fn calls(&self) -> (Channel, Headers) {
        (self.channel.clone(), self.headers.clone())
    }

    /// For `map_err`: containerd refused `doing`.
    fn failed(&self, doing: &str) -> impl FnOnce(Status) -> Error + use<> {
        let (socket, doing) = (self.socket.clone(), doing.to_owned());
        move |status| Error::call(socket, doing, &status)
    }
}

/// A descriptor in containerd's words.
fn descriptor(of: &Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: of.media_type.as_str().to_owned(),
        digest: of.digest.to_string(),
        size: size(of.size),
        annotations: of.annotations.clone().into_iter().collect(),
    }
}

/// A size in containerd's words; nothing is as large as what would be cut off.
fn size(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
