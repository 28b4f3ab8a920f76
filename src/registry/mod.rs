//! OCI distribution client: hosts, auth, ranges, redirects, retry, deadlines.
//!
//! A read goes [`Client`] -> `hosts` (mirrors in order, as containerd's `hosts.toml` names them) ->
//! `blob` (where a blob is; resumes broken ranges) -> `endpoint` (one host: tokens, health) ->
//! `transport` (one request: redirects, egress guard, progress).
//! Nothing that comes out of a [`RangeSource`] has been verified; manifests, [`Client::blob_bytes`]
//! and [`Client::blob_stream`] are.
//!
//! Specification: OCI distribution spec 1.1, and distribution's token authentication.

mod auth;
mod blob;
mod body;
mod challenge;
mod client;
mod config;
mod connect;
mod credentials;
mod egress;
mod endpoint;
mod error;
mod host;
mod hosts;
mod lookup;
mod payload;
mod push;
mod retry;
mod search;
mod served;
mod source;
mod sources;
mod tls;
mod token;
mod traffic;
mod transport;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod testing_pki;
#[cfg(test)]
mod tests;

pub use client::{Client, Fetched};
pub use config::Config;
pub use credentials::{
    Anonymous, Chain, Config as CredentialsConfig, Credential, Credentials, DockerConfig, Finding,
    Found, Learned, Providers, PullSecrets, Pulled, Secret,
};
pub use error::{Error, Trouble};
pub use payload::Payload;
pub use push::Pushed;
pub use search::{Content, Documents, FindError, FoundImage, MAX_DEPTH, Unfound, find};
pub use source::{ByteStream, RangeSource};
pub use sources::Sources;
pub use traffic::Traffic;
