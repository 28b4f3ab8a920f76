//! Tries a set-up: a tiny image is pulled into containerd through crfs, found lazy, and read.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::process::Command;

use crate::containerd::{self, Containerd};
use crate::convert;
use crate::layer::Reason;
use crate::oci::{Platform, Reference, ReferenceError};
use crate::pull::{self, Puller};
use crate::registry::{self, Anonymous};
use crate::report::api;
use crate::service::control::{self, Client};
use crate::setup::sample::{self, Registry};

/// The namespace of containerd in which it is tried.
const NAMESPACE: &str = "crfs-setup";
/// How long each of containerd's commands may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a containerd that was just started may take to answer.
const START: Duration = Duration::from_secs(30);

/// What is tried.
#[derive(Debug, Clone)]
pub struct Trial {
    /// containerd's client program.
    pub ctr: PathBuf,
    /// containerd's socket.
    pub containerd: PathBuf,
    /// crfs's socket.
    pub crfs: PathBuf,
    /// containerd's version: major and minor.
    pub version: (u32, u32),
    /// The platform of containers here.
    pub platform: Platform,
}

/// Why a set-up does not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The daemon does not answer.
    #[error(transparent)]
    Daemon(#[from] control::Error),
    /// The image could not be made.
    #[error("making an image to try: {0}")]
    Image(#[from] convert::Error),
    /// What it is served with could not be set up.
    #[error("making a registry to try: {0}")]
    Registry(#[source] std::io::Error),
    /// containerd's client fails.
    #[error("{command} fails: {why}")]
    Ctr {
        /// What was run.
        command: String,
        /// What it said.
        why: String,
    },
    /// containerd's socket does not answer.
    #[error(transparent)]
    Containerd(#[from] containerd::Error),
    /// crfs cannot pull into containerd.
    #[error(transparent)]
    Pull(#[from] pull::Error),
    /// It was pulled, but unpacked.
    #[error("the image was pulled but is not lazy ({reason}): {why}. To mend it: {remedy}")]
    NotLazy {
        /// The reason's name.
        reason: String,
        /// The same in a sentence.
        why: String,
        /// What would make it lazy.
        remedy: String,
    },
    /// The file in it is another one.
    #[error("the image's file cannot be read: {0}")]
    Content(String),
}

/// Tries it; says what was found to work. Leaves nothing behind. Needs a tokio runtime.
///
/// # Errors
/// [`Error`]: what does not work.
pub async fn verify(trial: &Trial) -> Result<&'static str, Error> {
    let mut client = Client::connect(&trial.crfs).await?;
    trial.wait().await?;
    trial
        .ctr(&["snapshots", "--snapshotter", "crfs", "ls"])
        .await?;
    let folder = tempfile::TempDir::with_prefix("crfs-setup-").map_err(Error::Registry)?;
    let layout = sample::make(folder.path(), &trial.platform).await?;
    let registry = Registry::start(layout).await.map_err(Error::Registry)?;
    let image = registry.image();
    let tried = try_image(trial, &mut client, &image, folder.path()).await;
    // Also of what failed half-way nothing is to stay.
    let _ = trial.ctr(&["image", "rm", "--sync", &image]).await;
    let _ = trial.ctr(&["namespace", "rm", NAMESPACE]).await;
    tried?;
    Ok(match trial.pulls() {
        true => "an image was pulled lazily and read",
        false => {
            "an image was pulled lazily by crfs pull and read (the ctr of a containerd before 2.1 cannot, pods can)"
        }
    })
}

async fn try_image(
    trial: &Trial,
    client: &mut Client,
    image: &str,
    folder: &Path,
) -> Result<(), Error> {
    let before = client.status().await?;
    trial.pull(image).await?;
    let told = client.why(image.to_owned()).await?;
    let layers = told
        .images
        .into_iter()
        .filter(|image| image.present)
        .flat_map(|image| image.layers);
    let layers: Vec<api::LayerWhy> = layers.collect();
    if let Some(layer) = layers.iter().find(|layer| !layer.lazy) {
        return Err(Error::NotLazy {
            reason: layer.reason.clone(),
            why: layer.why.clone(),
            remedy: layer.remedy.clone(),
        });
    }
    if layers.is_empty() {
        if let Some(reason) = new_reason(&before, &client.status().await?) {
            return Err(Error::NotLazy {
                reason: reason.name().to_owned(),
                why: "containerd did not name the image to crfs".to_owned(),
                remedy: reason.remedy().to_owned(),
            });
        }
        let why =
            "crfs was offered no layer of it: containerd has unpacked it elsewhere".to_owned();
        return Err(Error::Content(why));
    }
    let target = folder.join("mounted");
    std::fs::create_dir(&target).map_err(Error::Registry)?;
    let at = target.display().to_string();
    trial
        .ctr(&["image", "mount", "--snapshotter", "crfs", image, &at])
        .await?;
    let file = target.join(sample::NAME);
    let read = tokio::task::spawn_blocking(move || std::fs::read(file)).await;
    let unmounted = trial
        .ctr(&["image", "unmount", "--rm", "--snapshotter", "crfs", &at])
        .await;
    match read {
        Ok(Ok(bytes)) if bytes == sample::content() => unmounted.map(drop),
        Ok(Ok(bytes)) => Err(Error::Content(format!(
            "its {} bytes are not the right ones",
            bytes.len()
        ))),
        Ok(Err(error)) => Err(Error::Content(error.to_string())),
        Err(error) => Err(Error::Content(error.to_string())),
    }
}

/// Why a layer was refused between two looks.
fn new_reason(before: &api::StatusReply, after: &api::StatusReply) -> Option<Reason> {
    let count = |status: &api::StatusReply, reason: Reason| {
        let answers = status.answers.iter().flat_map(|answers| &answers.not_lazy);
        let mut counts = answers.filter(|count| count.name == reason.name());
        counts.next().map_or(0, |count| count.count)
    };
    let mut all = Reason::ALL.into_iter();
    all.find(|reason| count(after, *reason) > count(before, *reason))
}

impl Trial {
    /// Whether containerd's own client can pull lazily.
    fn pulls(&self) -> bool {
        self.version >= (2, 1)
    }

    async fn pull(&self, image: &str) -> Result<(), Error> {
        if self.pulls() {
            let platform = self.platform.to_string();
            let pull = ["image", "pull", "--plain-http", "--snapshotter", "crfs"];
            let arguments = [&pull[..], &["--platform", &platform, image]].concat();
            return self.ctr(&arguments).await.map(drop);
        }
        let name: Reference = image
            .parse()
            .map_err(|error: ReferenceError| Error::Content(error.to_string()))?;
        let puller = Puller {
            containerd: Containerd::connect(&self.containerd, NAMESPACE).await?,
            client: registry::Client::new(registry::Config::default(), Arc::new(Anonymous)),
            snapshotter: "crfs".to_owned(),
            platform: self.platform.clone(),
            progress: Arc::new(pull::Silent),
        };
        puller.pull(&name).await?;
        Ok(())
    }

    async fn wait(&self) -> Result<(), Error> {
        let began = std::time::Instant::now();
        loop {
            match self.ctr(&["version"]).await {
                Err(_) if began.elapsed() < START => {
                    tokio::time::sleep(Duration::from_millis(300)).await
                }
                outcome => return outcome.map(drop),
            }
        }
    }

    async fn ctr(&self, arguments: &[&str]) -> Result<Output, Error> {
        let failed = |why: String| Error::Ctr {
            command: format!("{} {}", self.ctr.display(), arguments.join(" ")),
            why,
        };
        let mut ctr = Command::new(&self.ctr);
        ctr.arg("--address")
            .arg(&self.containerd)
            .args(["--namespace", NAMESPACE]);
        ctr.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        let done = tokio::time::timeout(PATIENCE, ctr.output()).await;
        let done = done.map_err(|_| failed(format!("it does not end within {PATIENCE:?}")))?;
        let done = done.map_err(|error| failed(error.to_string()))?;
        match done.status.success() {
            true => Ok(done),
            false => {
                let said = String::from_utf8_lossy(&done.stderr);
                Err(failed(said.trim().chars().take(500).collect()))
            }
        }
    }
}
