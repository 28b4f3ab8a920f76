//! The test daemon as a process, and a client of its socket that speaks as containerd does.

use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use containerd_snapshots::api::snapshots::v1 as api;
use containerd_snapshots::api::snapshots::v1::snapshots_client::SnapshotsClient;
use containerd_snapshots::api::types::Mount;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixStream;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

use crate::snapshots_daemon::{ROOT, SOCKET};

/// How long a daemon may take until it serves.
const START: Duration = Duration::from_secs(20);

/// A running daemon on a root folder; killed when dropped.
pub struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    /// Starts one, with `crash` as the step at which it is to die.
    pub fn spawn(root: &Path, crash: Option<&str>) -> Self {
        let socket = root.with_extension("sock");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(root.with_extension("log"))
            .unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([
                "--exact",
                "snapshots_daemon::daemon",
                "--ignored",
                "--nocapture",
            ])
            .env(ROOT, root)
            .env(SOCKET, &socket)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if let Some(step) = crash {
            command.env("CRFS_CRASH_AT", step);
        }
        let child = command.spawn().unwrap();
        Self { child, socket }
    }

    /// Connects as soon as it serves; `None` if it dies first.
    pub async fn connect(&mut self) -> Option<Client> {
        let began = Instant::now();
        while began.elapsed() < START {
            if let Ok(client) = Client::new(&self.socket).await {
                return Some(client);
            }
            if self.child.try_wait().unwrap().is_some() {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the daemon does not serve after {START:?}");
    }

    /// One that is meant to live, and a client of it.
    pub async fn start(root: &Path) -> (Self, Client) {
        let mut daemon = Self::spawn(root, None);
        let client = daemon.connect().await.expect("the daemon serves");
        (daemon, client)
    }

    /// Ends it as systemd does, and gives its exit code.
    pub fn terminate(mut self) -> Option<i32> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).unwrap();
        self.child.wait().unwrap().code()
    }

    /// Ends it as the kernel does.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Whether it has ended by itself, perhaps just now.
    pub fn has_ended(&mut self) -> bool {
        for _ in 0..100 {
            if self.child.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }

    /// Waits until it has ended by itself.
    pub fn wait(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only if it has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client; clones share a connection.
#[derive(Clone)]
pub struct Client(SnapshotsClient<Channel>);

impl Client {
    /// Connects to the daemon at `socket`.
    pub async fn new(socket: &Path) -> Result<Self, tonic::transport::Error> {
        let socket = Socket(socket.to_owned());
        let channel = Endpoint::from_static("http://crfs")
            .connect_with_connector(socket)
            .await?;
        let client = SnapshotsClient::new(channel)
            .max_decoding_message_size(16 << 20)
            .max_encoding_message_size(16 << 20);
        Ok(Self(client))
    }

    pub async fn prepare(
        &self,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
    ) -> Result<Vec<Mount>, Status> {
        let request = api::PrepareSnapshotRequest {
            snapshotter: "crfs".to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels,
        };
        let answer = self.0.clone().prepare(request).await?;
        Ok(answer.into_inner().mounts)
    }

    /// Prepare with the labels of a layer; true if the answer is the lazy one.
    pub async fn pull(&self, key: &str, parent: &str, layer: Layer<'_>) -> Result<bool, Status> {
        match self.prepare(key, parent, layer.labels()).await {
            Ok(_) => Ok(false),
            Err(status) if status.code() == Code::AlreadyExists => Ok(true),
            Err(status) => Err(status),
        }
    }

    pub async fn view(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        let request = api::ViewSnapshotRequest {
            key: key.to_owned(),
            parent: parent.to_owned(),
            ..Default::default()
        };
        Ok(self.0.clone().view(request).await?.into_inner().mounts)
    }

    pub async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let key = key.to_owned();
        let request = api::MountsRequest {
            key,
            ..Default::default()
        };
        Ok(self.0.clone().mounts(request).await?.into_inner().mounts)
    }

    pub async fn commit(&self, name: &str, key: &str) -> Result<(), Status> {
        let request = api::CommitSnapshotRequest {
            name: name.to_owned(),
            key: key.to_owned(),
            ..Default::default()
        };
        self.0.clone().commit(request).await.map(drop)
    }

    pub async fn remove(&self, key: &str) -> Result<(), Status> {
        let key = key.to_owned();
        let request = api::RemoveSnapshotRequest {
            key,
            ..Default::default()
        };
        self.0.clone().remove(request).await.map(drop)
    }

    pub async fn update(&self, key: &str, label: &str, value: &str) -> Result<(), Status> {
        let info = api::Info {
            name: key.to_owned(),
            labels: HashMap::from([(label.to_owned(), value.to_owned())]),
            ..Default::default()
        };
        let paths = vec![format!("labels.{label}")];
        let request = api::UpdateSnapshotRequest {
            info: Some(info),
            update_mask: Some(prost_types::FieldMask { paths }),
            ..Default::default()
        };
        self.0.clone().update(request).await.map(drop)
    }

    pub async fn usage(&self, key: &str) -> Result<api::UsageResponse, Status> {
        let key = key.to_owned();
        let request = api::UsageRequest {
            key,
            ..Default::default()
        };
        Ok(self.0.clone().usage(request).await?.into_inner())
    }

    pub async fn cleanup(&self) -> Result<(), Status> {
        let request = api::CleanupRequest::default();
        self.0.clone().cleanup(request).await.map(drop)
    }

    pub async fn list(&self, filters: &[String]) -> Result<Vec<api::Info>, Status> {
        let request = api::ListSnapshotsRequest {
            filters: filters.to_vec(),
            ..Default::default()
        };
        let mut stream = self.0.clone().list(request).await?.into_inner();
        let mut infos = Vec::new();
        while let Some(message) = stream.message().await? {
            infos.extend(message.info);
        }
        Ok(infos)
    }

    /// What containerd asks after a lazy answer.
    pub async fn find(&self, layer: Layer<'_>, parent: &str) -> Result<Vec<api::Info>, Status> {
        let target = layer.target();
        let filter =
            format!("labels.\"containerd.io/snapshot.ref\"=={target},parent==\"{parent}\"");
        let mut found = self.list(&[filter]).await?;
        found.retain(|info| info.kind == api::Kind::Committed as i32);
        Ok(found)
    }
}

/// A layer as a Prepare names it: of which image, and which one.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// Decides what it does ([`crate::snapshots_daemon`]).
    pub image: &'a str,
    pub number: usize,
}

impl Layer<'_> {
    pub fn digest(self) -> String {
        format!("sha256:{:064x}", self.number)
    }

    pub fn target(self) -> String {
        format!("sha256:{:064x}", self.number + (1 << 32))
    }

    pub fn labels(self) -> HashMap<String, String> {
        let digest = self.digest();
        [
            ("containerd.io/snapshot.ref", self.target()),
            (
                "containerd.io/snapshot/cri.image-ref",
                format!("r.io/{}:tag", self.image),
            ),
            ("containerd.io/snapshot/cri.manifest-digest", digest.clone()),
            ("containerd.io/snapshot/cri.layer-digest", digest),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }
}

/// A root folder for daemons, and what must not be left there.
pub struct RootFolder(tempfile::TempDir);

impl RootFolder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> PathBuf {
        self.0.path().join("root")
    }

    pub fn snapshots(&self) -> PathBuf {
        self.path().join("snapshots")
    }

    pub fn folders(&self) -> usize {
        std::fs::read_dir(self.snapshots()).map_or(0, Iterator::count)
    }

    /// Mounts below it.
    pub fn mounts(&self) -> Vec<String> {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let below = self.0.path().to_str().unwrap();
        let targets = text.lines().filter_map(|line| line.split(' ').nth(4));
        targets
            .filter(|target| target.starts_with(below))
            .map(str::to_owned)
            .collect()
    }

    /// What the daemons have said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path().with_extension("log")).unwrap_or_default()
    }
}

impl Drop for RootFolder {
    fn drop(&mut self) {
        let mut mounts = self.mounts();
        mounts.reverse();
        for target in mounts {
            let _ = rustix::mount::unmount(&*target, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// True if the connection broke, and so nobody knows whether the call was done.
pub fn is_lost(status: &Status) -> bool {
    let broken = [
        "transport",
        "broken",
        "closed",
        "reset",
        "h2 protocol",
        "connect",
        "operation",
    ];
    let text = status.to_string();
    matches!(
        status.code(),
        Code::Unknown | Code::Unavailable | Code::Internal | Code::Cancelled
    ) && broken.iter().any(|word| text.contains(word))
}

/// Whether the long version of a loop was asked for.
pub fn is_long() -> bool {
    std::env::var_os("CRFS_LONG").is_some()
}

/// Numbers that are the same in every run.
pub struct Random(pub u64);

impl Random {
    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % end
    }
}

struct Socket(PathBuf);

impl Service<Uri> for Socket {
    type Response = UnixStream;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<UnixStream, std::io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move { UnixStream::connect(path).await })
    }
}
