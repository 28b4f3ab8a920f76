//! `crfs complete`: what a lazy pull has left out of an image.

use std::process::ExitCode;
use std::time::Instant;

use indicatif::HumanBytes;
use serde::Serialize;

use crate::cli::Outcome;
use crate::cli::ask::json;
use crate::cli::out;
use crate::cli::progress::Board;
use crate::cli::pull::Node;
use crate::containerd::Containerd;
use crate::oci::Platform;
use crate::pull::{Completed, Completer, Which};

/// Fetch what a lazy pull has left out of an image, so that it can be exported, pushed and committed
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crfs complete registry.example/app:1
  crfs complete --all-platforms registry.example/app:1      also the images for other platforms
  ctr image export app.tar registry.example/app:1

Layers that are read lazily are in no content store: what needs their blobs as they were pushed fails. This command
fetches those that are missing, verified; containerd then keeps them as long as the image. Containers notice
nothing, and the layers stay lazy. Where it broke off the next run goes on.")]
pub(super) struct Args {
    /// The image, by its name in containerd
    #[arg(value_name = "IMAGE")]
    image: String,
    #[command(flatten)]
    node: Node,
    /// The platform, as linux/arm64/v8 [default: this machine's]
    #[arg(long, value_name = "OS/PROCESSOR", conflicts_with = "all_platforms")]
    platform: Option<Platform>,
    /// Everything that the image's index names
    #[arg(long)]
    all_platforms: bool,
    /// Print what was done as JSON on standard output
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    completed: Completed,
    seconds: f64,
}

pub(super) fn run(args: Args) -> Outcome {
    let start = Instant::now();
    let (client, socket) = args.node.open()?;
    let which = match (args.all_platforms, args.platform) {
        (true, _) => Which::All,
        (false, platform) => Which::For(platform.unwrap_or_else(Platform::this_machine)),
    };
    let completed = tokio::runtime::Runtime::new()?.block_on(async {
        let completer = Completer {
            containerd: Containerd::connect(&socket, &args.node.namespace).await?,
            namespace: args.node.namespace.clone(),
            progress: Board::for_stderr(&client),
            client,
            which,
        };
        completer.complete(&args.image).await
    })?;
    let report = Report {
        completed,
        seconds: start.elapsed().as_secs_f64(),
    };
    let line = match args.json {
        true => json(&report)?,
        false => said(&report),
    };
    out::print(format_args!("{line}"))?;
    Ok(ExitCode::SUCCESS)
}

fn said(report: &Report) -> String {
    let done = &report.completed;
    let (image, all, new) = (&done.image, done.blobs, done.fetched.len());
    match new {
        0 => format!("{image}: nothing is missing, all {all} blobs are here\n"),
        new => format!(
            "{image}: {new} of {all} blobs were missing and are here now; {} fetched in {:.1} s\n",
            HumanBytes(done.bytes),
            report.seconds
        ),
    }
}
