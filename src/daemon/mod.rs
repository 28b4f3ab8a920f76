//! Composition: build bottom-up, restore, bind, serve, drain.
//!
//! [`run`] is `crfs serve` in the end, behind its [`front()`], [`look`] is `crfs mount`: the same layers with and without containerd.
//! Start-up needs no network: what is on disk is served at once, and a layer that cannot be is
//! mounted later, in the background, while everything else works.

mod front;
pub mod look;
mod reload;
mod systemd;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use front::{Stopped, address, front, status, stop, upgrade};
use futures::StreamExt as _;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::blob::cache::Cache;
use crate::blob::fetch::Fetcher;
use crate::config::Config;
use crate::daemon::reload::{Reloader, Reread};
use crate::keeper::protocol::FdName;
use crate::keeper::{self, Held, STATE, State};
use crate::layer::profile::Folder;
use crate::layer::{Layers as _, LiveLayers, Parts};
use crate::metrics::Listener;
use crate::oci::Reference;
use crate::overlay::{self, options::Features};
use crate::registry::{self, Chain, Credentials, DockerConfig, Providers, PullSecrets, Pulled};
use crate::report::Node;
use crate::snapshotter::{self, Snapshotter};
use crate::store::{Faults, Root};
use crate::{blob, cri, metrics, service, store};

/// How long a stopping daemon waits for answers that are being sent.
const GOODBYE: Duration = Duration::from_secs(10);

/// How long the end waits for work that nobody waits for any more, such as unpacking what was read
/// ahead.
const LEFT_OVERS: Duration = Duration::from_millis(500);

/// How long the end waits for reads under way, on a kernel that does not repeat them.
const SETTLE: Duration = Duration::from_secs(5);

/// Mounts taken over side by side.
const AT_ONCE: usize = 16;

/// Pause before an address for metrics is tried again.
const METRICS_RETRY: Duration = Duration::from_secs(5);

/// How often the line about the daemon's health is brought up to date.
const HEALTH: Duration = Duration::from_secs(1);

/// Why the daemon could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runtime or a signal handler could not be set up.
    #[error("setting up: {0}")]
    Setup(#[source] io::Error),
    /// The root folder cannot be used.
    #[error(transparent)]
    Root(#[from] store::Error),
    /// The keeper cannot be used, or said no.
    #[error(transparent)]
    Keeper(#[from] keeper::Error),
    /// The service could not be changed.
    #[error("{0}")]
    Service(String),
    /// A layer could not be unmounted.
    #[error("unmounting layers: {0}")]
    Unmount(#[source] io::Error),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] blob::cache::Error),
    /// The recorded snapshots cannot be read.
    #[error(transparent)]
    Snapshots(#[from] snapshotter::Error),
    /// The socket cannot be served on.
    #[error(transparent)]
    Socket(#[from] service::socket::Error),
    /// The server gave up.
    #[error("serving: {0}")]
    Serve(#[from] service::ServeError),
    /// `CRFS_CRASH_AT` is set and malformed.
    #[error("{0}")]
    Fault(String),
}

/// Runs the snapshotter until SIGTERM or SIGINT, with what a predecessor left in the store's hands.
/// Deletes and unmounts nothing at the end. At SIGHUP `reread` gives the configuration anew.
///
/// # Errors
/// Something that is needed to start is missing, broken, or in another daemon's hands.
pub fn run(
    config: Config,
    reread: impl Fn() -> Result<Config, String> + Send + 'static,
) -> Result<(), Error> {
    crate::fs::settle_memory();
    let root = Root::claim(&config.root)?;
    let held = Arc::new(Held::take_over(&config.root)?);
    held.guard(Path::new("/proc/self/exe"))?;
    let runtime = runtime()?;
    let done = runtime.block_on(serve(config, Box::new(reread), root, &held));
    // One that fails is to be started again. The store need not know, if it is gone.
    if done.is_ok() {
        let _ = held.stopping();
    }
    // Not shut down: that would drop the reads under way, and a reply that is dropped is an error. The
    // process ends, and they wait for the next server.
    std::mem::forget(runtime);
    done
}

async fn serve(config: Config, reread: Reread, root: Root, held: &Arc<Held>) -> Result<(), Error> {
    let mut end = Signals::new().map_err(Error::Setup)?;
    // From now on SIGHUP does not end this process.
    let hangups = signal(SignalKind::hangup()).map_err(Error::Setup)?;
    let pulled = Pulled::open(&config.credentials, root.path());
    let client = client(&config, Some(&pulled));
    let layers = layers(&config, &config.root, client, Arc::clone(held))?;
    take_over(&config.root, &layers).await;
    let faults = Faults::from_env().map_err(Error::Fault)?;
    let parts = snapshotter::Parts {
        root,
        layers: Arc::clone(&layers) as _,
        overlay: Features::detect(),
        faults,
    };
    let snapshotter = Snapshotter::open(parts).await?;
    let listener = listener(held, keeper::LISTEN, &config.address)?;
    front::note_address(&config.root, &config.address);
    let node = Node::new(snapshotter.clone(), Arc::clone(&layers));
    if let Some(address) = config.metrics.address.clone() {
        tokio::spawn(serve_metrics(address, node.clone()));
    }
    let incoming = service::socket::incoming(listener).map_err(Error::Setup)?;
    let proxy = Proxy::start(&config, pulls(pulled, &snapshotter), held)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        root = %config.root.display(),
        address = %config.address.display(),
        "serving"
    );
    if let Err(error) = held.ready() {
        tracing::warn!(%error, "the store was not told that this server is ready");
    }
    tokio::spawn(give_signs_of_life(Arc::clone(held), Arc::clone(&layers)));
    tokio::spawn(tell_health(Arc::clone(held), Arc::clone(&layers)));
    let reloader = Reloader {
        config,
        reread,
        layers: Arc::clone(&layers),
        node: node.clone(),
    };
    tokio::spawn(reloader.run(hangups));

    let (stop, stopped) = tokio::sync::oneshot::channel();
    let server = service::serve(snapshotter.clone(), Some(node), incoming, async {
        // An error means that the sender is gone: an end as well.
        let _ = stopped.await;
    });
    let mut server = tokio::spawn(server);
    tokio::select! {
        signal = end.next() => tracing::info!(signal, "stopping"),
        ended = &mut server => {
            snapshotter.close().await;
            return Ok(ended.map_err(|e| Error::Setup(io::Error::other(e)))??);
        }
    }
    let _ = stop.send(());
    proxy.end().await;
    if tokio::time::timeout(GOODBYE, server).await.is_err() {
        tracing::warn!("connections still open are closed");
    }
    snapshotter.close().await;
    let left = layers.settle(SETTLE).await;
    if left > 0 {
        tracing::warn!(
            left,
            "reads are left unanswered, and this kernel does not repeat them"
        );
    }
    let saved = tokio::task::spawn_blocking(move || layers.save_profiles()).await;
    saved.map_err(|error| Error::Setup(io::Error::other(error)))
}

/// Serves metrics for ever. An address that cannot be had, as after a restart that somebody used to take
/// it, is tried again: containers do not wait for anybody's metrics.
async fn serve_metrics(address: metrics::Address, node: Node) {
    loop {
        match metrics_listener(&address).await {
            Ok(listener) => return metrics::serve(listener, node).await,
            Err(error) => tracing::error!(%address, %error, "metrics cannot be served yet"),
        }
        tokio::time::sleep(METRICS_RETRY).await;
    }
}

async fn metrics_listener(address: &metrics::Address) -> Result<Listener, Error> {
    Ok(match address {
        metrics::Address::Tcp(ip) => {
            Listener::Tcp(TcpListener::bind(ip).await.map_err(Error::Setup)?)
        }
        metrics::Address::Unix(path) => {
            let listener = service::socket::bind(path)?;
            listener.set_nonblocking(true).map_err(Error::Setup)?;
            Listener::Unix(UnixListener::from_std(listener).map_err(Error::Setup)?)
        }
    })
}

/// Serves what a predecessor left, before anything that can be slow: containers wait for it, and where one
/// has asked already first.
async fn take_over(root: &Path, layers: &Arc<LiveLayers>) {
    let (root, here) = (root.to_owned(), Arc::clone(layers));
    let found = tokio::task::spawn_blocking(move || {
        let mut found = snapshotter::lazy_layers(&root, |target| here.is_handed_over(target));
        found.sort_by_cached_key(|(target, _)| !here.is_waited_for(target));
        found
    });
    let found = futures::stream::iter(found.await.unwrap_or_default());
    let taken =
        found.map(|(target, record)| async move { layers.take_over(&record, &target).await });
    let taken = taken
        .buffer_unordered(AT_ONCE)
        .filter(|taken| std::future::ready(*taken));
    let count = taken.count().await;
    if count > 0 {
        tracing::info!(count, "layers taken over from the server before");
    }
    layers.take_over_detached().await;
}

/// Tells the store that this server lives, as long as that is so: the runtime runs this, and every FUSE
/// thread gets on. A server that is silent is killed, and its successor takes over.
async fn give_signs_of_life(held: Arc<Held>, layers: Arc<LiveLayers>) {
    let Some(interval) = Held::watchdog_interval() else {
        return;
    };
    loop {
        tokio::time::sleep(interval / 2).await;
        if !layers.are_moving() {
            tracing::error!("a FUSE thread hangs: this server will be replaced");
        } else if let Err(error) = held.watchdog() {
            tracing::warn!(%error, "no sign of life given to the store");
        }
    }
}

/// Keeps a line for people with the store: `crfs status` and `systemctl status` show it.
async fn tell_health(held: Arc<Held>, layers: Arc<LiveLayers>) {
    let mut told = None;
    loop {
        let health = layers.health();
        if told != Some(health) {
            told = Some(health);
            // A keeper that is just dead gets the next one.
            let _ = held.status(&health.to_string());
        }
        tokio::time::sleep(HEALTH).await;
    }
}

/// What cannot be derived of the mounts, from a predecessor if there was one. A table that cannot be read
/// costs the mounts, not the start.
fn state(held: &Held) -> Result<State, keeper::Error> {
    held.state().or_else(|error| {
        tracing::error!(%error, "mounts of the server before cannot be taken over");
        held.remove(&FdName::new(STATE)?)?;
        held.state()
    })
}

/// A socket that outlives this server, so that who calls while there is none waits.
fn listener(
    held: &Held,
    name: &str,
    path: &Path,
) -> Result<std::os::unix::net::UnixListener, Error> {
    held.listener(name, path, |path| {
        service::socket::bind(path).map_err(Error::from)
    })
}

/// The lazy layers of a node, with what they need, in the folder `root`.
fn layers(
    config: &Config,
    root: &Path,
    client: registry::Client,
    held: Arc<Held>,
) -> Result<Arc<LiveLayers>, Error> {
    let cache = Arc::new(Cache::open(&root.join("cache"), &config.cache)?);
    let parts = Parts {
        indexes: root.join("indexes"),
        detached: root.join("detached"),
        client,
        fetcher: Fetcher::new(cache, config.fetch.clone(), Handle::current()),
        mounter: Arc::new(overlay::System),
        state: Arc::new(state(&held)?),
        held,
        serve: config.fuse.options(Handle::current()),
        config: config.layers.clone(),
        profiles: Folder::new(root),
        profile: config.profile.clone(),
        containerd: config.containerd.clone(),
    };
    LiveLayers::new(parts).map_err(Error::Setup)
}

/// A client with all the credentials of this node: the surest and fastest sources first, as a later
/// one is asked only when what the earlier ones have is refused.
#[must_use]
pub fn client(config: &Config, pulled: Option<&Pulled>) -> registry::Client {
    let mut sources: Vec<Arc<dyn Credentials>> = Vec::new();
    sources.extend(pulled.map(|pulled| Arc::new(pulled.clone()) as _));
    sources.push(Arc::new(DockerConfig::new(&config.registry)));
    sources.extend(Providers::new(&config.credentials).map(|source| Arc::new(source) as _));
    sources.extend(PullSecrets::new(&config.credentials).map(|source| Arc::new(source) as _));
    let (registry, spool) = (config.registry.clone(), Some(config.root.clone()));
    registry::Client::with_spool(registry, Arc::new(Chain(sources)), spool)
}

/// The CRI proxy, if there is one.
struct Proxy {
    tasks: TaskTracker,
    end: CancellationToken,
}

/// What pulls are made with opens the layers, and what they pull is one more place to read them from.
fn pulls(credentials: Pulled, snapshotter: &Snapshotter) -> cri::Pulls {
    let snapshotter = snapshotter.clone();
    let done = move |image: Reference| {
        let snapshotter = snapshotter.clone();
        tokio::spawn(async move { snapshotter.pulled(&image).await });
    };
    cri::Pulls {
        credentials,
        done: Arc::new(done),
    }
}

impl Proxy {
    fn start(config: &Config, pulls: cri::Pulls, held: &Held) -> Result<Self, Error> {
        let (tasks, end) = (TaskTracker::new(), CancellationToken::new());
        if config.cri.listen.is_none() {
            held.close_listener(keeper::LISTEN_CRI)?;
        }
        if let Some(path) = &config.cri.listen {
            let listener = listener(held, keeper::LISTEN_CRI, path)?;
            listener.set_nonblocking(true).map_err(Error::Setup)?;
            let listener = UnixListener::from_std(listener).map_err(Error::Setup)?;
            let containerd = config.containerd.address.clone();
            tracing::info!(listen = %path.display(), containerd = %containerd.display(), "passing the CRI on");
            tasks.spawn(cri::serve(listener, containerd, pulls, end.clone()));
        }
        tasks.close();
        Ok(Self { tasks, end })
    }

    async fn end(self) {
        self.end.cancel();
        self.tasks.wait().await;
    }
}

/// Threads for gRPC and HTTP. Serving cached reads and decoding have threads of their own.
fn runtime() -> Result<Runtime, Error> {
    let mut builder = Builder::new_multi_thread();
    builder
        .worker_threads(2)
        .max_blocking_threads(64)
        .thread_name("crfs")
        .enable_all();
    builder.build().map_err(Error::Setup)
}

/// The signals that end crfs in order.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopping_daemon_is_given_the_time_that_it_takes() {
        let waits = [cri::GOODBYE, GOODBYE, snapshotter::DRAIN, SETTLE];
        let takes: Duration = waits.iter().sum();
        assert!(takes < keeper::END_LIMIT, "{takes:?}");
        let unit = include_str!("../../deploy/crfs.service");
        let limit = format!("\nTimeoutStopSec={}\n", keeper::END_LIMIT.as_secs());
        assert!(unit.contains(&limit), "{limit}");
    }
}
