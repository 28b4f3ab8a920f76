//! `crfs layers`: what the lazy layers hold, and when they were last read.

use std::process::ExitCode;

use crate::cli::Outcome;
use crate::cli::ask::{Which, json};
use crate::cli::out;
use crate::cli::table::{Table, bytes, short, span};
use crate::report::api;

/// List the lazy layers: bytes held and fetched, who uses them, when they were last read
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crfs layers
  crfs layers --json | jq '.layers[] | select(.users == 0) | .layer'

HELD is content in the cache, of FILES in all; what layers share counts for each of them. FETCHED and reads
count from the start of the daemon. OPEN counts files of 1 MiB and more; where the kernel opens files without
asking it is not known. LAST READ is of the last read that the kernel did not answer from its own memory.")]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> Outcome {
    let reply = args
        .which
        .ask(|mut client| async move { client.layers().await })?;
    match (args.json, reply.layers.is_empty()) {
        (true, _) => out::print(format_args!("{}", json(&reply)?))?,
        (false, true) => out::line(format_args!("no lazy layer is on this node"))?,
        (false, false) => out::print(format_args!("{}", text(&reply)))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn text(reply: &api::LayersReply) -> String {
    let mut table = Table::new(&[
        "LAYER",
        " SIZE",
        " FILES",
        " HELD",
        " FETCHED",
        " CACHED READS",
        " FETCHING",
        " FAILED",
        " OPEN",
        " USERS",
        "LAST READ",
        "IMAGE",
        "STATE",
    ]);
    for layer in &reply.layers {
        let also = match layer.also.len() {
            0 => layer.image.clone(),
            more => format!("{} +{more}", layer.image),
        };
        table.row(vec![
            short(&layer.layer),
            bytes(layer.size),
            bytes(layer.content),
            bytes(layer.held),
            bytes(layer.fetched),
            layer.hits.to_string(),
            layer.misses.to_string(),
            layer.failures.to_string(),
            layer
                .open
                .map_or_else(|| "-".to_owned(), |open| open.to_string()),
            layer.users.to_string(),
            last_read(layer),
            also,
            state(layer),
        ]);
    }
    table.text()
}

fn last_read(layer: &api::Layer) -> String {
    let ago = |seconds: f64| span(seconds as u64) + " ago";
    layer.last_read_seconds.map_or_else(|| "-".to_owned(), ago)
}

pub(super) fn state(layer: &api::Layer) -> String {
    match (layer.degraded.is_empty(), layer.background_left) {
        (false, _) => format!("not mounted: {}", layer.degraded),
        (true, 0) => "mounted".to_owned(),
        (true, left) => format!("mounted, {left} pieces to fetch"),
    }
}
