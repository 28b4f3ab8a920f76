//! Leases: what is made under one is kept until it ends or expires.

use std::time::{Duration, SystemTime};

use humantime_serde::re::humantime;

use super::owner::Owner;
use super::services::leases::v1 as api;
use super::services::leases::v1::leases_client::LeasesClient;
use super::{Containerd, Error, error};
use crate::oci::Digest;

/// When containerd may forget a lease, as RFC 3339 (containerd `docs/garbage-collection.md`).
const EXPIRE: &str = "containerd.io/gc.expire";
/// By which leases for the same purpose know each other.
const PURPOSE: &str = "crfs.purpose";
/// Whose lease it is.
const OWNER: &str = "crfs.owner";

/// A lease. It is not ended by being dropped: that takes a call ([`Lease::end`]). One that is left
/// over, as of a program that was killed, expires.
pub struct Lease {
    id: String,
    purpose: String,
    owner: Option<Owner>,
    /// containerd, with every call under this lease.
    pub containerd: Containerd,
}

impl Containerd {
    fn leases(&self) -> LeasesClient<super::Calls> {
        let (channel, headers) = self.calls();
        LeasesClient::with_interceptor(channel, headers)
    }

    /// Takes a lease for a purpose (a word). It expires after `life` if nobody ends it.
    ///
    /// # Errors
    /// containerd refuses.
    pub async fn lease(&self, purpose: &str, life: Duration) -> Result<Lease, Error> {
        let now = SystemTime::now();
        let since = now.duration_since(SystemTime::UNIX_EPOCH);
        let id = format!("{purpose}-{}", since.unwrap_or_default().as_nanos());
        let expire = humantime::format_rfc3339_seconds(now + life).to_string();
        let owner = Owner::this();
        let labels = [(EXPIRE, expire), (PURPOSE, purpose.to_owned())]
            .into_iter()
            .chain(owner.iter().map(|owner| (OWNER, owner.to_string())));
        let request = api::CreateRequest {
            id: id.clone(),
            labels: labels.map(|(key, value)| (key.to_owned(), value)).collect(),
        };
        let failed = self.failed(&format!("taking lease {id}"));
        self.leases().create(request).await.map_err(failed)?;
        let mut containerd = self.clone();
        // An id that containerd has accepted can be sent.
        containerd.headers.lease = id.parse().ok();
        Ok(Lease {
            id,
            purpose: purpose.to_owned(),
            owner,
            containerd,
        })
    }
}

impl Lease {
    /// Keeps a blob that is there already, as if it had been written under this lease.
    ///
    /// # Errors
    /// containerd refuses.
    pub async fn hold(&self, digest: Digest) -> Result<(), Error> {
        let request = api::AddResourceRequest {
            id: self.id.clone(),
            resource: Some(api::Resource {
                id: digest.to_string(),
                r#type: "content".to_owned(),
            }),
        };
        let failed = self.containerd.failed(&format!("keeping {digest}"));
        let held = self.containerd.leases().add_resource(request).await;
        held.map(drop).map_err(failed)
    }

    /// Ends it, and those that processes which are no more have left for the same purpose: what nothing
    /// else keeps may be collected now. Those of others who are still at it stay.
    ///
    /// # Errors
    /// containerd refuses; they then expire by themselves.
    pub async fn end(&self) -> Result<(), Error> {
        let request = api::ListRequest {
            filters: vec![format!("labels.\"{PURPOSE}\"=={}", self.purpose)],
        };
        let failed = self.containerd.failed("listing leases");
        let listed = self.containerd.leases().list(request).await;
        let leases = listed.map_err(failed)?.into_inner().leases.into_iter();
        for lease in leases.filter(|lease| lease.id == self.id || self.is_left_over(lease)) {
            let doing = format!("ending lease {}", lease.id);
            let request = api::DeleteRequest {
                id: lease.id,
                sync: false,
            };
            let ended = self.containerd.leases().delete(request).await;
            error::if_found(ended.map_err(self.containerd.failed(&doing)))?;
        }
        Ok(())
    }

    fn is_left_over(&self, lease: &api::Lease) -> bool {
        let owner = lease.labels.get(OWNER).and_then(|owner| owner.parse().ok());
        let both = owner.zip(self.owner.as_ref());
        both.is_some_and(|(owner, this): (Owner, _)| owner.has_ended(this))
    }
}
