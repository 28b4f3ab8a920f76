//! `crfs pull`: an image into containerd, lazily, also where containerd has no command for it.

mod progress;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use indicatif::HumanBytes;
use serde::Serialize;

use crate::cli::Outcome;
use crate::cli::ask::json;
use crate::cli::out;
use crate::cli::progress::Board;
use crate::cli::registries::Registries;
use crate::config;
use crate::containerd::Containerd;
use crate::oci::{Platform, Reference};
use crate::pull::{self, Pulled, Puller};
use crate::registry::Client;

/// Pull an image into containerd so that its layers are read lazily; works with containerd 1.7 too
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crfs pull registry.example/python:3.12-lazy
  crfs pull --namespace k8s.io registry.example/app:1       where Kubernetes looks for images
  crfs pull --platform linux/arm64 registry.example/app:1   another platform than this machine's
  ctr run --rm --snapshotter crfs registry.example/app:1 demo

containerd 2.1 and newer do the same by `ctr image pull --snapshotter crfs`; the ctr of older ones cannot.
A layer that cannot be lazy is fetched and unpacked; crfs why IMAGE says why. A pull that broke off is gone on
with by the next one. Credentials come from docker's config.json, mirrors from hosts.toml files.")]
pub(super) struct Args {
    /// The image: HOST/NAME:TAG or HOST/NAME@DIGEST
    #[arg(value_name = "IMAGE")]
    image: Reference,
    #[command(flatten)]
    node: Node,
    /// The platform, as linux/arm64/v8 [default: this machine's]
    #[arg(long, value_name = "OS/PROCESSOR")]
    platform: Option<Platform>,
    /// The snapshotter that is offered the layers, by its name in containerd's configuration
    #[arg(long, value_name = "NAME", default_value = "crfs")]
    snapshotter: String,
    /// Print what was done as JSON on standard output
    #[arg(long)]
    json: bool,
}

/// Which containerd, and how registries are spoken to.
#[derive(Debug, clap::Args)]
pub(super) struct Node {
    /// containerd's socket [default: the configuration's [containerd] address]
    #[arg(long, short, value_name = "SOCKET")]
    address: Option<PathBuf>,
    /// containerd's namespace; that of Kubernetes is k8s.io
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    pub(super) namespace: String,
    #[command(flatten)]
    registries: Registries,
}

impl Node {
    /// A client of registries, and containerd's socket.
    pub(super) fn open(&self) -> Result<(Client, PathBuf), config::Error> {
        let (client, config) = self.registries.open()?;
        let socket = self.address.clone().unwrap_or(config.containerd.address);
        Ok((client, socket))
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    pulled: Pulled,
    /// Layers by what became of them.
    lazy: usize,
    present: usize,
    unpacked: usize,
    seconds: f64,
}

pub(super) fn run(args: Args) -> Outcome {
    let start = Instant::now();
    let (client, socket) = args.node.open()?;
    let pulled = tokio::runtime::Runtime::new()?.block_on(async {
        let puller = Puller {
            containerd: Containerd::connect(&socket, &args.node.namespace).await?,
            progress: Board::for_stderr(&client),
            client,
            snapshotter: args.snapshotter,
            platform: args.platform.unwrap_or_else(Platform::this_machine),
        };
        puller.pull(&args.image).await
    })?;
    let count = |outcome| {
        let layers = pulled.layers.iter();
        layers.filter(|layer| layer.outcome == outcome).count()
    };
    let report = Report {
        lazy: count(pull::Outcome::Lazy),
        present: count(pull::Outcome::Present),
        unpacked: count(pull::Outcome::Unpacked),
        seconds: start.elapsed().as_secs_f64(),
        pulled,
    };
    let line = match args.json {
        true => json(&report)?,
        false => said(&report),
    };
    out::print(format_args!("{line}"))?;
    Ok(ExitCode::SUCCESS)
}

fn said(report: &Report) -> String {
    let Pulled { image, digest, .. } = &report.pulled;
    let counts = [
        (report.lazy, "lazy"),
        (report.present, "here already"),
        (report.unpacked, "unpacked"),
    ];
    let counts = counts.iter().filter(|(count, _)| *count > 0);
    let counts: Vec<_> = counts
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    let fetched = HumanBytes(report.pulled.fetched);
    let counts = counts.join(", ");
    format!(
        "{image} {digest}: layers: {counts}; {fetched} fetched in {:.1} s\n",
        report.seconds
    )
}
