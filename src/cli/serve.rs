//! `crfs serve`: the daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::Outcome;
use crate::config::Config;
use crate::{daemon, telemetry};

/// Run the snapshotter that containerd talks to
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crfs serve
  crfs serve --config /etc/crfs/config.toml --log-level debug
  crfs serve --root /tmp/crfs --address /tmp/crfs/crfs.sock

SIGTERM and SIGINT end it in order; nothing is deleted. What a flag says wins over the file.")]
pub(super) struct Args {
    /// Configuration file [default: /etc/crfs/config.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder for snapshots, indexes and the cache [default: /var/lib/crfs]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Unix socket to serve on [default: /run/crfs/crfs.sock]
    #[arg(long, value_name = "SOCKET")]
    address: Option<PathBuf>,
    /// error, warn, info, debug, trace, or a filter such as info,crfs::registry=debug
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

pub(super) fn run(args: Args) -> Outcome {
    let mut config = Config::load(args.config.as_deref())?;
    config.root = args.root.unwrap_or(config.root);
    config.address = args.address.unwrap_or(config.address);
    config.log.level = args.log_level.unwrap_or(config.log.level);
    config.check()?;
    telemetry::init(&config.log)?;
    daemon::run(config)?;
    Ok(ExitCode::SUCCESS)
}
