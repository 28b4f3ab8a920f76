//! A snapshotter daemon for tests of the Snapshots API: the real store, snapshotter and service,
//! over layers that are small tmpfs mounts.
//!
//! It runs as a process of its own, so that it can be killed: this test binary once more, told by
//! its environment what to be. What a layer does is decided by the image's name: `lazy` mounts,
//! `slow` takes a while, `plain` cannot be lazy.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crfs::layer::{LayerRecord, LayerUsage, Layers, NotLazy, Reason};
use crfs::oci::{Digest, LayerLabels};
use crfs::overlay::options::Features;
use crfs::service::{server, socket};
use crfs::snapshotter::{Parts, Snapshotter};
use crfs::store::{Faults, Root};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tokio::signal::unix::{SignalKind, signal};

/// Names the daemon's root folder; set, it makes the test below a daemon.
pub const ROOT: &str = "CRFS_TEST_ROOT";
/// Names its socket.
pub const SOCKET: &str = "CRFS_TEST_SOCKET";
/// How long the layer of a `slow` image takes.
pub const SLOW: Duration = Duration::from_millis(700);

#[test]
#[ignore = "started by the other tests, as their daemon"]
fn daemon() {
    let (Some(root), Some(socket)) = (std::env::var_os(ROOT), std::env::var_os(SOCKET)) else {
        return;
    };
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .with_writer(io::stderr)
        .init();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(serve(PathBuf::from(root), PathBuf::from(socket)));
}

async fn serve(root: PathBuf, socket: PathBuf) {
    let mut term = signal(SignalKind::terminate()).unwrap();
    let root = match Root::claim(&root) {
        Ok(root) => root,
        Err(error) => {
            eprintln!("refused: {error}");
            std::process::exit(3);
        }
    };
    let parts = Parts {
        root,
        layers: Arc::new(Tmpfs::default()),
        overlay: Features::detect(),
        faults: Faults::from_env().unwrap(),
    };
    let snapshotter = Snapshotter::open(parts).await.unwrap();
    let listener = socket::bind(&socket).unwrap();
    tonic::transport::Server::builder()
        .add_service(server(snapshotter.clone()))
        .serve_with_incoming_shutdown(socket::incoming(listener).unwrap(), async move {
            term.recv().await;
        })
        .await
        .unwrap();
    snapshotter.close().await;
}

/// Layers that are tmpfs mounts with one file in them.
#[derive(Default)]
struct Tmpfs {
    /// Where this process has mounted one.
    mounted: Mutex<HashSet<PathBuf>>,
}

impl Tmpfs {
    fn mount_at(&self, target: &Path) -> Result<(), NotLazy> {
        let local = |error: rustix::io::Errno| NotLazy::Local(error.to_string());
        let flags = MountFlags::NODEV;
        mount("crfs-test", target, "tmpfs", flags, c"size=64k,mode=755").map_err(local)?;
        std::fs::write(target.join("file"), "content")
            .map_err(|e| NotLazy::Local(e.to_string()))?;
        self.mounted.lock().insert(target.to_owned());
        Ok(())
    }

    fn unmount_at(target: &Path) -> io::Result<()> {
        use rustix::io::Errno;
        loop {
            match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                Ok(()) => {}
                Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Layers for Tmpfs {
    fn announce(&self, _: &LayerLabels) {}

    fn mount<'a>(
        &'a self,
        labels: &'a LayerLabels,
        target: &'a Path,
    ) -> BoxFuture<'a, Result<LayerRecord, NotLazy>> {
        async move {
            match labels.image.repository() {
                "library/plain" | "plain" => return Err(NotLazy::PlainGzip),
                "library/slow" | "slow" => tokio::time::sleep(SLOW).await,
                _ => {}
            }
            self.mount_at(target)?;
            Ok(LayerRecord {
                also: Vec::new(),
                image: labels.image.to_string(),
                manifest: labels.manifest,
                layer: labels.layer,
                size: 64 << 10,
                toc: Digest::of(b"toc"),
                unlisted: Vec::new(),
            })
        }
        .boxed()
    }

    fn restore<'a>(
        &'a self,
        record: &'a LayerRecord,
        target: &'a Path,
    ) -> BoxFuture<'a, Result<(), NotLazy>> {
        async move {
            if record.image.contains("broken") {
                return Err(NotLazy::Registry {
                    reason: Reason::Unreachable,
                    why: "it is down".to_owned(),
                });
            }
            Self::unmount_at(target).map_err(|error| NotLazy::Local(error.to_string()))?;
            self.mount_at(target)
        }
        .boxed()
    }

    fn is_serving(&self, target: &Path) -> bool {
        self.mounted.lock().contains(target)
    }

    fn unmount<'a>(&'a self, target: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        async move {
            self.mounted.lock().remove(target);
            Self::unmount_at(target)
        }
        .boxed()
    }

    fn usage(&self, _: &Path) -> Option<LayerUsage> {
        Some(LayerUsage {
            bytes: 4096,
            inodes: 2,
        })
    }

    fn sweep<'a>(&'a self, _: &'a [LayerRecord]) -> BoxFuture<'a, io::Result<()>> {
        async { Ok(()) }.boxed()
    }
}
