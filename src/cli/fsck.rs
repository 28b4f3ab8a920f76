//! `crfs fsck`: looks after a root folder while no daemon works on it.

use std::process::ExitCode;

use crate::cli::Outcome;
use crate::cli::out;
use crate::cli::place::Place;
use crate::snapshotter::{Finding, Report, Severity, fsck};

/// Check the metadata of a root folder, and repair it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crfs fsck
  crfs fsck --root /var/lib/crfs --repair

The daemon must not be running. A start of the daemon repairs by itself what can be repaired; with
--repair, what nobody can make sense of is given up as well, and its disk space freed at the next
start. Exit code 1: there is damage that was not repaired.")]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
    /// Repair what is found; without it nothing is changed
    #[arg(long)]
    repair: bool,
}

pub(super) fn run(args: Args) -> Outcome {
    let root = args.place.root()?;
    let report = fsck(&root, args.repair)?;
    for finding in &report.findings {
        out::line(format_args!("{}", line(finding)))?;
    }
    out::line(format_args!("{}", summary(&report)))?;
    let is_bad = |finding: &Finding| finding.severity > Severity::Note;
    let unrepaired = !report.repaired && report.findings.iter().any(is_bad);
    Ok(ExitCode::from(u8::from(unrepaired)))
}

fn line(finding: &Finding) -> String {
    let severity = match finding.severity {
        Severity::Note => "note",
        Severity::Damage => "damage",
        Severity::Loss => "loss",
    };
    match finding.id {
        Some(id) => format!("{severity:<7} folder {id}: {}", finding.what),
        None => format!("{severity:<7} {}", finding.what),
    }
}

fn summary(report: &Report) -> String {
    let count = |severity| {
        let of_kind = report
            .findings
            .iter()
            .filter(|finding| finding.severity == severity);
        of_kind.count()
    };
    let done = match (report.findings.is_empty(), report.repaired) {
        (true, _) => "",
        (false, true) => ", repaired",
        (false, false) => ", nothing changed",
    };
    format!(
        "{} snapshots; {} losses, {} damages, {} notes{done}",
        report.snapshots,
        count(Severity::Loss),
        count(Severity::Damage),
        count(Severity::Note)
    )
}
