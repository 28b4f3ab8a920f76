//! `crfs convert`: an image that can be read lazily, from one that cannot.

mod progress;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use serde::Serialize;

use crate::cli::out;
use crate::cli::progress::Board;
use crate::cli::registries::Registries;
use crate::convert::{Converter, Location, Summary};
use crate::stargz::write::{Options, Prefetch};

/// Write an image again so that it can be read lazily (eStargz)
#[derive(Debug, clap::Args)]
#[command(after_help = "\
SRC and DST are each docker://HOST/NAME:TAG, a bare HOST/NAME:TAG, or oci:DIR:TAG (an OCI layout).

Examples:
  crfs convert docker://docker.io/library/python:3.12 docker://registry.example/python:3.12-lazy
  crfs convert oci:./build:app docker://127.0.0.1:5000/app:lazy
  crfs convert registry.example/app:1 oci:/tmp/app:lazy --prefetch start-files.txt

All platforms of an image are converted. The result is an ordinary image to every runtime, and the
same input gives the same bytes. A layer that eStargz cannot carry is left as it is, and a line
says why. Credentials come from docker's config.json.")]
pub(super) struct Args {
    /// The image to read
    #[arg(value_name = "SRC")]
    source: Location,
    /// Where to write the converted image
    #[arg(value_name = "DST")]
    destination: Location,
    /// Put the files listed in FILE (one path a line, or what `crfs profile` prints) where a node fetches them at once
    #[arg(long, value_name = "FILE")]
    prefetch: Option<PathBuf>,
    /// Threads that compress [default: one a core]; the result does not depend on it
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Print what was done as JSON on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registries: Registries,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    source: String,
    destination: String,
    #[serde(flatten)]
    summary: Summary,
    seconds: f64,
}

pub(super) fn run(args: Args) -> super::Outcome {
    let start = Instant::now();
    let (client, _) = args.registries.open()?;
    let mut options = Options::default();
    options.threads = args.threads.unwrap_or(options.threads).max(1);
    if let Some(path) = &args.prefetch {
        let list = std::fs::read(path);
        let list = list.map_err(|e| format!("prefetch list {}: {e}", path.display()))?;
        options.prefetch = Prefetch::parse(&list);
    }
    let source = args.source.source(&client)?;
    let sink = args.destination.sink(&client)?;
    let converter = Converter::new(source, sink, options, Board::for_stderr(&client));
    let summary = tokio::runtime::Runtime::new()?.block_on(converter.run())?;
    let report = Report {
        source: args.source.to_string(),
        destination: args.destination.to_string(),
        summary,
        seconds: start.elapsed().as_secs_f64(),
    };
    let line = match args.json {
        true => serde_json::to_string_pretty(&report)?,
        false => format!("{} {}", report.destination, report.summary.digest),
    };
    out::line(format_args!("{line}"))?;
    Ok(ExitCode::SUCCESS)
}
