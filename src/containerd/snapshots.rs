//! Snapshots, and layers unpacked onto them.

use std::collections::HashMap;

use super::services::diff::v1 as diff;
use super::services::diff::v1::diff_client::DiffClient;
use super::services::snapshots::v1 as api;
use super::services::snapshots::v1::snapshots_client::SnapshotsClient;
use super::{Containerd, Error, descriptor, error, types};
use crate::oci::{Descriptor, Digest};

/// Where a snapshot is to be mounted from; of use to containerd alone.
pub struct Mounts(Vec<types::Mount>);

/// What a snapshotter answers when it is offered a layer.
pub enum Prepared {
    /// It has the layer already, or serves it lazily.
    InPlace,
    /// The layer has to be unpacked there.
    Unpack(Mounts),
}

impl Containerd {
    fn snapshots(&self) -> SnapshotsClient<super::Calls> {
        let (channel, headers) = self.calls();
        SnapshotsClient::with_interceptor(channel, headers)
    }

    /// Whether there is a committed snapshot of that name.
    ///
    /// # Errors
    /// The snapshotter is not known or does not answer.
    pub async fn has_snapshot(&self, snapshotter: &str, name: &str) -> Result<bool, Error> {
        let request = api::StatSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: name.to_owned(),
        };
        let failed = self.failed(&format!("looking for snapshot {name} of {snapshotter}"));
        let answer = self.snapshots().stat(request).await.map_err(failed);
        let info = error::if_found(answer)?.and_then(|answer| answer.into_inner().info);
        Ok(info.is_some_and(|info| info.kind() == api::Kind::Committed))
    }

    /// Offers a layer to a snapshotter.
    ///
    /// # Errors
    /// The snapshotter is not known, does not answer, or fails.
    pub async fn prepare(
        &self,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: &HashMap<String, String>,
    ) -> Result<Prepared, Error> {
        let request = api::PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: labels.clone(),
        };
        let failed = self.failed(&format!("preparing a snapshot of {snapshotter}"));
        match self.snapshots().prepare(request).await.map_err(failed) {
            Ok(answer) => Ok(Prepared::Unpack(Mounts(answer.into_inner().mounts))),
            Err(error) if error.is_exists() => Ok(Prepared::InPlace),
            Err(error) => Err(error),
        }
    }

    /// Unpacks a layer of the content store; gives the digest of its tar.
    ///
    /// # Errors
    /// containerd cannot unpack it.
    pub async fn apply(&self, layer: &Descriptor, mounts: Mounts) -> Result<Digest, Error> {
        let request = diff::ApplyRequest {
            diff: Some(descriptor(layer)),
            mounts: mounts.0,
        };
        let (channel, headers) = self.calls();
        let failed = self.failed(&format!("unpacking layer {}", layer.digest));
        let answer = DiffClient::with_interceptor(channel, headers)
            .apply(request)
            .await;
        let applied = answer.map_err(failed)?.into_inner().applied;
        let applied = applied.unwrap_or_default().digest;
        applied.parse().map_err(|_| Error::Content {
            digest: layer.digest,
            why: format!("was unpacked to a tar with digest {applied:?}"),
        })
    }

    /// Makes a prepared snapshot what later ones stand on. One of that name may be there already.
    ///
    /// # Errors
    /// The snapshotter fails.
    pub async fn commit(
        &self,
        snapshotter: &str,
        name: &str,
        key: &str,
        labels: &HashMap<String, String>,
    ) -> Result<(), Error> {
        let request = api::CommitSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels: labels.clone(),
        };
        let failed = self.failed(&format!("committing snapshot {name} of {snapshotter}"));
        match self.snapshots().commit(request).await.map_err(failed) {
            Err(error) if error.is_exists() => self.remove_snapshot(snapshotter, key).await,
            other => other.map(drop),
        }
    }

    /// Removes a snapshot; that it is not there is no error.
    ///
    /// # Errors
    /// The snapshotter fails.
    pub async fn remove_snapshot(&self, snapshotter: &str, key: &str) -> Result<(), Error> {
        let request = api::RemoveSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        };
        let failed = self.failed(&format!("removing snapshot {key} of {snapshotter}"));
        let removed = self.snapshots().remove(request).await.map_err(failed);
        error::if_found(removed).map(drop)
    }
}
