//! `crfs mount`: look into an image without containerd.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::Outcome;
use crate::config::Config;
use crate::oci::Reference;
use crate::{daemon, telemetry};

/// Mount an image read-only, reading only what is looked at, until Ctrl-C
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crfs mount registry.example/python:3.12-lazy /mnt
  crfs mount 127.0.0.1:5000/python:lazy /mnt --layer 0      only the lowest layer
  crfs mount registry.example/app:1 /mnt --cache /var/cache/crfs-mount

Ctrl-C or SIGTERM unmounts. Without --cache what was read is forgotten at the end.")]
pub(super) struct Args {
    /// The image, as in `ctr image pull`
    #[arg(value_name = "REF")]
    image: Reference,
    /// An existing empty folder
    #[arg(value_name = "DIR")]
    target: PathBuf,
    /// Mount this one layer instead of the whole image (0 is the lowest)
    #[arg(long, value_name = "N")]
    layer: Option<usize>,
    /// Keep what was read in this folder, for the next time
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Configuration file [default: /etc/crfs/config.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// error, warn, info, debug, trace, or a filter such as info,crfs::registry=debug
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    log_level: String,
}

pub(super) fn run(args: Args) -> Outcome {
    let mut config = Config::load(args.config.as_deref())?;
    config.log.level = args.log_level;
    telemetry::init(&config.log)?;
    let request = daemon::look::Request {
        image: args.image,
        target: args.target,
        layer: args.layer,
        keep: args.cache,
    };
    let mounted = |summary: &daemon::look::Summary| {
        eprintln!("mounted {summary}; press Ctrl-C to unmount");
    };
    daemon::look::run(config, request, mounted)?;
    Ok(ExitCode::SUCCESS)
}
