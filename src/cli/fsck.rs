//! `crfs fsck`: look after a root folder while no daemon works on it.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::Outcome;
use crate::config::Config;
use crate::snapshotter::{self, Severity};

/// Check what is recorded of the snapshots on disk, and repair it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crfs fsck                       report what is wrong with /var/lib/crfs; changes nothing
  crfs fsck --repair              repair it
  crfs fsck --root /data/crfs

No daemon may be running on the folder. Exit code: 0 all is well (or was repaired), 1 it is not.")]
pub(super) struct Args {
    /// Repair what can be repaired, and give up what nobody can make sense of
    #[arg(long)]
    repair: bool,
    /// The daemon's root folder [default: that of the configuration]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Configuration file [default: /etc/crfs/config.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> Outcome {
    let root = match args.root {
        Some(root) => root,
        None => Config::load(args.config.as_deref())?.root,
    };
    let report = snapshotter::fsck(&root, args.repair)?;
    for finding in &report.findings {
        let place = finding.id.map_or_else(String::new, |id| format!("snapshots/{id}: "));
        println!("{}: {place}{}", severity(finding.severity), finding.what);
    }
    let (count, wrong) = (report.snapshots, report.findings.len());
    let done = if report.repaired { ", repaired" } else { "" };
    println!("{}: {count} snapshots, {wrong} findings{done}", root.display());
    match wrong == 0 || report.repaired {
        true => Ok(ExitCode::SUCCESS),
        false => Ok(ExitCode::FAILURE),
    }
}

const fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Note => "note",
        Severity::Damage => "damage",
        Severity::Loss => "loss",
    }
}
