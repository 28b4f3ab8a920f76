//! What containerd has of an image: its manifest and its config, which it has just pulled. Read from its content store
//! they cost no round trip, and no request that a registry counts.

use std::path::PathBuf;
use std::time::Duration;

use crate::containerd::{self, Containerd};
use crate::oci::Digest;

/// How long containerd has to answer until the registry is asked: what it takes is a millisecond or two.
const PATIENCE: Duration = Duration::from_millis(500);

/// The content store of the containerd that pulls, if it can be reached.
pub(super) struct ContentStore {
    socket: PathBuf,
}

impl ContentStore {
    pub(super) fn new(config: &containerd::Config) -> Self {
        Self {
            socket: config.address.clone(),
        }
    }

    /// A document of at most `max` bytes of an image in `namespace`, verified by its digest; `None` where it has to be asked for elsewhere.
    pub(super) async fn read(
        &self,
        namespace: Option<&str>,
        digest: Digest,
        max: u64,
    ) -> Option<Vec<u8>> {
        let namespace = namespace?;
        let read = async {
            let containerd = Containerd::connect(&self.socket, namespace).await?;
            containerd.read(digest, max).await
        };
        match tokio::time::timeout(PATIENCE, read).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::debug!(%digest, %error, "containerd's content store cannot be read; asking the registry");
                None
            }
            Err(_) => {
                tracing::debug!(%digest, patience = ?PATIENCE, "containerd does not answer; asking the registry");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Instant;

    use super::*;

    async fn read(address: &Path) -> Option<Vec<u8>> {
        let address = address.to_owned();
        let store = ContentStore::new(&containerd::Config { address });
        let digest = Digest::of(b"manifest");
        store.read(Some("default"), digest, 1 << 20).await
    }

    #[tokio::test]
    async fn a_containerd_that_is_not_there_or_does_not_answer_holds_nothing_up() {
        let folder = tempfile::tempdir().unwrap();
        let silent = folder.path().join("silent.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&silent).unwrap();
        let began = Instant::now();
        assert!(read(&folder.path().join("none.sock")).await.is_none());
        assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
        assert!(read(&silent).await.is_none());
        let took = began.elapsed();
        assert!((PATIENCE..PATIENCE * 3).contains(&took), "{took:?}");
    }
}
