//! `crfs status`: whether the daemon runs, and how its mounts fare.

use std::process::ExitCode;

use crate::cli::Outcome;
use crate::cli::place::Place;
use crate::daemon;

/// Say whether the daemon runs, and how its mounts fare
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crfs status
  crfs status --root /var/lib/crfs

The exit status is 3 if no daemon runs. `lost` layers had no server left and no descriptor: containers that
use them have to be restarted.")]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(args: Args) -> Outcome {
    let root = args.place.root()?;
    let status = daemon::status(&root)?;
    for line in status.lines() {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        println!("{:<15} {}", key.replace('_', " "), value);
    }
    if status
        .lines()
        .any(|line| line.starts_with("pid ") && line != "pid 0")
    {
        return Ok(ExitCode::SUCCESS);
    }
    println!("no daemon runs for {}", root.display());
    Ok(ExitCode::from(3))
}
