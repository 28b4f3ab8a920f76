//! `crfs serve`: the daemon, and the front that stands for it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::cli::{Outcome, chain};
use crate::config::{self, Config};
use crate::{daemon, keeper, telemetry};

/// How long a failed start lasts at least under systemd, which starts the next one after 20 ms, and before its
/// version 254 not later and later.
const FAILED: Duration = Duration::from_millis(500);

/// Run the snapshotter that containerd talks to
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crfs serve
  crfs serve --config /etc/crfs/config.toml --log-level debug
  crfs serve --root /tmp/crfs --address /tmp/crfs/crfs.sock

SIGTERM and SIGINT end it in order; nothing is deleted or unmounted, and the next crfs serve goes on
where this one stopped (crfs stop --force unmounts). The daemon runs in a process of its own (its number
is in server.pid of the root folder) and is started again when it dies, with containers running. What a
flag says wins over the file. SIGHUP reads the file again: what can be changed at once is, what cannot is
named in the log and by crfs status.")]
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
    /// Run in this one process: nothing survives its death
    #[arg(long)]
    no_keeper: bool,
}

pub(super) fn run(args: Args) -> Outcome {
    serve(args).inspect_err(|error| {
        if keeper::is_server() {
            keeper::tell_failure(&chain(error.as_ref()));
            if std::env::var_os(keeper::ROOT_VARIABLE).is_none() {
                std::thread::sleep(FAILED);
            }
        }
    })
}

fn serve(args: Args) -> Outcome {
    let config = args.config()?;
    telemetry::init(&config.log)?;
    if args.no_keeper || keeper::is_server() {
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "starting");
        daemon::run(config, move || args.config().map_err(|error| chain(&error)))?;
        return Ok(ExitCode::SUCCESS);
    }
    let code = daemon::front(&config)?;
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

impl Args {
    /// What the file says, and the flags over it.
    fn config(&self) -> Result<Config, config::Error> {
        let mut config = Config::load(self.config.as_deref())?;
        config.root = self.root.clone().unwrap_or(config.root);
        config.address = self.address.clone().unwrap_or(config.address);
        config.log.level = self.log_level.clone().unwrap_or(config.log.level);
        config.check()?;
        Ok(config)
    }
}
