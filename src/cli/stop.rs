//! `crfs stop`: ends the daemon, with or without its mounts.

use std::process::ExitCode;

use crate::cli::Outcome;
use crate::cli::out;
use crate::cli::place::Place;
use crate::daemon::{self, Stopped};

/// End the daemon; layers stay mounted for the next one, unless forced
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crfs stop
  crfs stop --root /var/lib/crfs
  crfs stop --force               before uninstalling: unmount every layer as well

Containers go on while the daemon is away; what they read and is not in the kernel's memory waits for the
next crfs serve. With --force they lose their files. Where systemd started the daemon, use systemctl stop.")]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
    /// Unmount all layers, in use or not
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: Args) -> Outcome {
    let root = args.place.root()?;
    match daemon::stop(&root, args.force)? {
        Stopped::Now => out::line(format_args!("stopped {}", root.display()))?,
        Stopped::Before => out::line(format_args!("no daemon runs for {}", root.display()))?,
    }
    Ok(ExitCode::SUCCESS)
}
