//! `crfs upgrade`: another program takes over from the running daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::Outcome;
use crate::cli::out;
use crate::cli::place::Place;
use crate::daemon;

/// Replace the running daemon by another program, with containers running
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crfs upgrade                            the daemon becomes this very program
  crfs upgrade /usr/local/bin/crfs-0.2
  crfs upgrade ./crfs --root /var/lib/crfs

The program has to run and say that it is crfs, before anything ends. Then the daemon ends and the program
starts with the same arguments; reads wait for a moment. If it does not serve within 20 s, the old program is started again and this command fails with the reason. A changed
configuration is read as well. Where systemd started the daemon, the symlink that the unit names is pointed at
the program and the service restarted, and back if it does not come up.")]
pub(super) struct Args {
    /// The program [default: this one]
    #[arg(value_name = "EXE")]
    program: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(args: Args) -> Outcome {
    let root = args.place.root()?;
    let program = match args.program {
        Some(program) => std::path::absolute(program)?,
        None => std::env::current_exe()?,
    };
    daemon::upgrade(&root, &program)?;
    out::line(format_args!(
        "{} serves {}",
        program.display(),
        root.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}
