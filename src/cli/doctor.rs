//! `crfs doctor`: what is wrong with a node, and what to do.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::Outcome;
use crate::cli::ask::{Which, json};
use crate::cli::out;
use crate::oci::Reference;
use crate::setup::containerd::FILE;
use crate::setup::doctor::{Finding, Subject, Verdict, examine};

/// Look at everything that a node needs, and say what is wrong and what to do
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crfs doctor                                  kernel, FUSE, overlay, limits, disk, clock, daemon, containerd
  crfs doctor registry.example/app:1           also whether its registry can be read from here
  crfs doctor --json | jq '.[] | select(.verdict == \"failure\")'

Nothing is changed. The exit status is 1 if something is wrong that keeps crfs from working.")]
pub(super) struct Args {
    /// Images whose registries are asked
    #[arg(value_name = "IMAGE")]
    images: Vec<Reference>,
    #[command(flatten)]
    which: Which,
    /// containerd's configuration
    #[arg(long, value_name = "FILE", default_value = FILE)]
    containerd_config: PathBuf,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> Outcome {
    let config = match args.which.load() {
        Ok(config) => config,
        Err(error) => {
            // The rest cannot be told without it.
            let error = error.to_string();
            eprintln!("crfs: {error}\n      -> mend what crfs config check says");
            return Ok(ExitCode::FAILURE);
        }
    };
    let (_, socket) = args.which.find()?;
    let subject = Subject {
        config,
        socket,
        containerd: args.containerd_config,
        images: args.images,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let findings = runtime.block_on(examine(&subject));
    match args.json {
        true => out::print(format_args!("{}", json(&findings)?))?,
        false => {
            for finding in &findings {
                out::print(format_args!("{}", text(finding)))?;
            }
        }
    }
    let failed = findings
        .iter()
        .any(|finding| finding.verdict == Verdict::Failure);
    Ok(ExitCode::from(u8::from(failed)))
}

fn text(finding: &Finding) -> String {
    let verdict = match finding.verdict {
        Verdict::Ok => "ok",
        Verdict::Warning => "warning",
        Verdict::Failure => "FAILURE",
    };
    let found = finding.found.replace(char::is_control, "?");
    let mut text = format!("{verdict:<8} {}: {found}\n", finding.check);
    if !finding.remedy.is_empty() {
        text = text + "         -> " + &finding.remedy + "\n";
    }
    text
}
