//! `crfs mount`: an image's layers mounted without containerd.
//!
//! Everything lies in one folder that is either temporary or kept for the next time. What was
//! mounted is unmounted at the end, in reverse order, also when something fails half-way.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::Config;
use crate::daemon::{LEFT_OVERS, Signals, client, layers, runtime};
use crate::keeper::Held;
use crate::layer::{Layers as _, LiveLayers, NotLazy};
use crate::oci::{LayerLabels, Manifest, Platform, Reference};
use crate::overlay::{Mounter as _, System};
use crate::registry::{self, FindError, Unfound};

/// What is to be mounted where.
#[derive(Debug, Clone)]
pub struct Request {
    /// The image.
    pub image: Reference,
    /// An existing folder.
    pub target: PathBuf,
    /// One layer, counted from the lowest; otherwise all of them, stacked.
    pub layer: Option<usize>,
    /// Where what is read is kept; otherwise it is forgotten at the end.
    pub keep: Option<PathBuf>,
}

/// What was mounted, in a sentence.
#[derive(Debug)]
pub struct Summary {
    layers: usize,
    bytes: u64,
    target: PathBuf,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (layers, bytes, target) = (self.layers, self.bytes, self.target.display());
        let s = if layers == 1 { "" } else { "s" };
        write!(
            f,
            "{layers} layer{s} of {:.1} MB, compressed, at {target}",
            bytes as f64 / 1e6
        )
    }
}

/// Why an image could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What every subcommand needs could not be set up.
    #[error(transparent)]
    Setup(#[from] crate::daemon::Error),
    /// The registry could not be read.
    #[error("reading image {image}: {source}")]
    Registry {
        /// The image.
        image: Reference,
        /// What the registry said.
        source: registry::Error,
    },
    /// It has nothing for this machine, or is malformed.
    #[error("image {image}: {source}")]
    Unfound {
        /// The image.
        image: Reference,
        /// What is wrong.
        source: Unfound,
    },
    /// There is nothing to mount.
    #[error("image {0} has no layers")]
    NoLayers(Reference),
    /// There is nowhere to mount it.
    #[error("{} cannot be mounted on: {why}", path.display())]
    Target {
        /// The path.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// It was told to end before the image was mounted.
    #[error("ended by {0} before image {1} was mounted")]
    Ended(&'static str, Reference),
    /// There is no such layer.
    #[error("image {image} has {count} layers, numbered from 0; there is no layer {asked}")]
    NoSuchLayer {
        /// The image.
        image: Reference,
        /// How many it has.
        count: usize,
        /// The one asked for.
        asked: usize,
    },
    /// A layer cannot be read lazily.
    #[error("layer {number} ({labels}) cannot be mounted: {source}", labels = .layer)]
    NotLazy {
        /// Its number, from 0.
        number: usize,
        /// Its digest.
        layer: crate::oci::Digest,
        /// Why.
        source: NotLazy,
    },
    /// A mount is still there.
    #[error("{} is still mounted: {source}; unmount it by umount -l", path.display())]
    Left {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A folder or mount call failed.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Mounts, calls `mounted`, and unmounts at SIGINT or SIGTERM.
///
/// # Errors
/// [`Error`]; nothing stays mounted then.
pub fn run(config: Config, mut request: Request, mounted: impl Fn(&Summary)) -> Result<(), Error> {
    request.target = check_target(&request.target)?;
    let folder = Folder::make(request.keep.as_deref())?;
    let runtime = runtime()?;
    let mut look = runtime.block_on(async { Look::new(&config, folder.path(), request) })?;
    let outcome = runtime.block_on(async {
        let outcome = look.run(&config, folder.path(), mounted).await;
        outcome.and(look.unmount().await)
    });
    // A mount call that was under way when the signal came has ended after this.
    runtime.shutdown_timeout(LEFT_OVERS);
    let outcome = outcome.and(look.unmount_late());
    if matches!(outcome, Err(Error::Left { .. })) {
        folder.leave();
    }
    outcome
}

/// The folder as the kernel will name it, so that its mounts are found again.
fn check_target(path: &Path) -> Result<PathBuf, Error> {
    let why = match std::fs::canonicalize(path) {
        Ok(found) if found.is_dir() => return Ok(found),
        Ok(_) => "it is not a folder".to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            "there is no such folder; make it first".to_owned()
        }
        Err(error) => error.to_string(),
    };
    let path = path.to_owned();
    Err(Error::Target { path, why })
}

/// The manifest for this machine, and its own digest.
async fn manifest(
    client: &registry::Client,
    image: &Reference,
) -> Result<(crate::oci::Digest, Manifest), Error> {
    let found = client.find(image, &Platform::this_machine()).await;
    let found = found.map_err(|error| {
        let image = image.clone();
        match error {
            FindError::Registry(source) => Error::Registry { image, source },
            FindError::Unfound(source) => Error::Unfound { image, source },
        }
    })?;
    Ok((found.document.digest, found.manifest))
}

/// An image being looked at.
struct Look {
    layers: Arc<LiveLayers>,
    /// Folders that layers are or were to be mounted at, lowest first.
    mounted: Vec<PathBuf>,
    stacked: bool,
    request: Request,
}

impl Look {
    fn new(config: &Config, folder: &Path, request: Request) -> Result<Self, Error> {
        Ok(Self {
            layers: layers(
                config,
                folder,
                client(config, None),
                Arc::new(Held::without_store()),
            )?,
            mounted: Vec::new(),
            stacked: false,
            request,
        })
    }

    /// Mounts and waits for the signal to end, which may come at any time.
    async fn run(
        &mut self,
        config: &Config,
        folder: &Path,
        mounted: impl Fn(&Summary),
    ) -> Result<(), Error> {
        let mut end = Signals::new().map_err(crate::daemon::Error::Setup)?;
        let client = client(config, None);
        let image = self.request.image.clone();
        let summary = tokio::select! {
            outcome = self.find_and_mount(&client, folder) => outcome?,
            signal = end.next() => return Err(Error::Ended(signal, image)),
        };
        mounted(&summary);
        end.next().await;
        Ok(())
    }

    async fn find_and_mount(
        &mut self,
        client: &registry::Client,
        folder: &Path,
    ) -> Result<Summary, Error> {
        let manifest = manifest(client, &self.request.image).await?;
        self.mount(&manifest, folder).await
    }

    async fn mount(
        &mut self,
        (digest, manifest): &(crate::oci::Digest, Manifest),
        folder: &Path,
    ) -> Result<Summary, Error> {
        let all: Vec<_> = manifest.layers.iter().enumerate().collect();
        let asked = match self.request.layer {
            None => all,
            Some(asked) => {
                let count = all.len();
                let image = self.request.image.clone();
                let one = all.get(asked).copied();
                vec![one.ok_or(Error::NoSuchLayer {
                    image,
                    count,
                    asked,
                })?]
            }
        };
        if asked.is_empty() {
            return Err(Error::NoLayers(self.request.image.clone()));
        }
        let stacked = asked.len() > 1;
        for (number, layer) in &asked {
            let labels = LayerLabels {
                image: self.request.image.clone(),
                manifest: *digest,
                layer: layer.digest,
                namespace: None,
            };
            let target = match stacked {
                true => make_folder(&folder.join("mounts").join(number.to_string()))?,
                false => self.request.target.clone(),
            };
            let below: Vec<_> = self.mounted.iter().rev().cloned().collect();
            self.mounted.push(target.clone());
            let (number, digest) = (*number, layer.digest);
            let not_lazy = |source| Error::NotLazy {
                number,
                layer: digest,
                source,
            };
            let record = self.layers.mount(&labels, &target).await;
            record.map_err(not_lazy)?;
            let inherited = self.layers.inherit(&target, &below).await;
            inherited.map_err(not_lazy)?;
        }
        if stacked {
            self.stack().await?;
        }
        let bytes = asked.iter().map(|(_, layer)| layer.size).sum();
        Ok(Summary {
            layers: asked.len(),
            bytes,
            target: self.request.target.clone(),
        })
    }

    /// The kernel looks into the layers while it mounts, and this process answers: so not here,
    /// but on a thread that may wait.
    async fn stack(&mut self) -> Result<(), Error> {
        let lower: Vec<_> = self.mounted.iter().rev().cloned().collect();
        let target = self.request.target.clone();
        let stacked = tokio::task::spawn_blocking(move || System.mount_overlay(&lower, &target));
        let stacked = stacked
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)));
        stacked.map_err(io("mount an overlay at", &self.request.target))?;
        self.stacked = true;
        Ok(())
    }

    /// Takes everything down, the top first, and goes on where something cannot be.
    async fn unmount(&mut self) -> Result<(), Error> {
        let mut outcome = Ok(());
        if self.stacked {
            let path = self.request.target.clone();
            let unmounted = System.unmount(&path, true);
            outcome = unmounted.map_err(|source| Error::Left { path, source });
        }
        for path in self.mounted.iter().rev() {
            let unmounted = self.layers.unmount(path).await;
            let path = path.clone();
            outcome = outcome.and(unmounted.map_err(|source| Error::Left { path, source }));
        }
        outcome
    }

    /// Takes down what was mounted after all, when nothing else runs any more.
    fn unmount_late(&self) -> Result<(), Error> {
        for path in &self.mounted {
            let left = |source| Error::Left {
                path: path.clone(),
                source,
            };
            for mount in System.mounts_below(path).map_err(left)? {
                if mount.target == *path && mount.fs_type == "fuse.crfs" {
                    System.unmount(path, true).map_err(left)?;
                }
            }
        }
        Ok(())
    }
}

/// Where indexes, cache and mounts lie meanwhile.
enum Folder {
    Kept(PathBuf),
    Temporary(tempfile::TempDir),
}

impl Folder {
    fn make(keep: Option<&Path>) -> Result<Self, Error> {
        match keep {
            Some(path) => Ok(Self::Kept(make_folder(path)?)),
            None => {
                let made = tempfile::TempDir::with_prefix("crfs-mount-");
                made.map(Self::Temporary)
                    .map_err(io("make a folder in", &std::env::temp_dir()))
            }
        }
    }

    /// Deletes nothing at the end: something is still mounted in it.
    fn leave(self) {
        if let Self::Temporary(folder) = self {
            let path = folder.keep();
            tracing::warn!(path = %path.display(), "folder left behind");
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(folder) => folder.path(),
        }
    }
}

fn make_folder(path: &Path) -> Result<PathBuf, Error> {
    std::fs::create_dir_all(path).map_err(io("make", path))?;
    std::fs::canonicalize(path).map_err(io("find", path))
}

fn io<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + use<'a> {
    move |source| Error::Io {
        what,
        path: path.to_owned(),
        source,
    }
}
