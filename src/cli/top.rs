//! `crfs top`: what happens now, once a second.

use std::collections::HashMap;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cli::Outcome;
use crate::cli::ask::Which;
use crate::cli::layers::state;
use crate::cli::status::progress;
use crate::cli::table::{Table, bytes, short};
use crate::report::api;
use crate::service::control::{Client, Error};

/// Show live what is read and fetched, by the second and by layer
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crfs top                        until Ctrl-C
  crfs top --interval 5
  crfs top --count 1 --json       one line, over one interval

With --json a line of JSON is printed for each interval.")]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    interval: f64,
    /// End after so many
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Print a line of JSON for each interval
    #[arg(long)]
    json: bool,
}

/// Most layers that are shown.
const SHOWN: usize = 20;

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    match (0.1..=3600.0).contains(&seconds) {
        true => Ok(seconds),
        false => Err("from 0.1 to 3600 seconds".to_owned()),
    }
}

/// What there was at one moment.
struct Look {
    at: Instant,
    status: api::StatusReply,
    layers: Vec<api::Layer>,
}

/// What happened between two looks, per second; the rest is of the later moment.
#[derive(Serialize)]
struct Rates {
    seconds: f64,
    cached_reads: f64,
    cached_bytes: f64,
    fetched_reads: f64,
    fetched_bytes: f64,
    failed: f64,
    waiting: u64,
    received_bytes: f64,
    requests: f64,
    requests_now: u64,
    cache_held: u64,
    cache_max: u64,
    background: String,
    mounts: u64,
    degraded: usize,
    layers: Vec<LayerRates>,
}

#[derive(Serialize)]
struct LayerRates {
    layer: String,
    image: String,
    cached_reads: f64,
    fetching_reads: f64,
    fetched_bytes: f64,
    held: u64,
    content: u64,
    users: u32,
    state: String,
}

pub(super) fn run(args: Args) -> Outcome {
    let interval = Duration::from_secs_f64(args.interval);
    args.which.ask(|mut client| async move {
        let mut before = look(&mut client).await?;
        let mut left = args.count.unwrap_or(u64::MAX);
        while left > 0 {
            left -= 1;
            tokio::time::sleep(interval).await;
            let now = look(&mut client).await?;
            let rates = Rates::between(&before, &now);
            // Who reads has gone away: an end like any other.
            if show(&rates, args.json).is_err() {
                break;
            }
            before = now;
        }
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn look(client: &mut Client) -> Result<Look, Error> {
    Ok(Look {
        status: client.status().await?,
        layers: client.layers().await?.layers,
        at: Instant::now(),
    })
}

fn show(rates: &Rates, json: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    if json {
        let line = serde_json::to_string(rates).map_err(std::io::Error::other)?;
        return writeln!(out, "{line}").and_then(|()| out.flush());
    }
    if out.is_terminal() {
        // To the first cell, and nothing below.
        write!(out, "\x1b[H\x1b[J")?;
    }
    write!(out, "{}", rates.text()).and_then(|()| out.flush())
}

impl Rates {
    fn between(before: &Look, now: &Look) -> Self {
        let seconds = (now.at - before.at).as_secs_f64().max(0.001);
        // A daemon that was replaced meanwhile counts from zero.
        let rate = |before: u64, now: u64| now.saturating_sub(before) as f64 / seconds;
        let (old, new) = (requests(&before.status), requests(&now.status));
        let (link, later) = (link(&before.status), link(&now.status));
        let failed = |requests: &api::Requests| requests.failed.iter().map(|f| f.count).sum();
        let cache = now.status.cache.clone().unwrap_or_default();
        let background = now.status.background.clone().unwrap_or_default();
        Self {
            seconds,
            cached_reads: rate(old.hits, new.hits),
            cached_bytes: rate(old.hit_bytes, new.hit_bytes),
            fetched_reads: rate(old.fetched, new.fetched),
            fetched_bytes: rate(old.fetched_bytes, new.fetched_bytes),
            failed: rate(failed(&old), failed(&new)),
            waiting: new.waiting,
            received_bytes: rate(link.http_received, later.http_received),
            requests: rate(link.http_requests, later.http_requests),
            requests_now: later.requests_now + later.background_now,
            cache_held: cache.held,
            cache_max: cache.max_size,
            background: progress(&background),
            mounts: now.status.mounts.as_ref().map_or(0, |mounts| mounts.served),
            degraded: now.status.degraded.len(),
            layers: layers(&before.layers, &now.layers, &rate),
        }
    }

    fn text(&self) -> String {
        let per = |amount: f64| bytes(amount as u64) + "/s";
        let mut text = format!(
            "reads   {:.0}/s cached ({}), {:.0}/s fetched ({}), {} waiting, {:.0}/s failed\n",
            self.cached_reads,
            per(self.cached_bytes),
            self.fetched_reads,
            per(self.fetched_bytes),
            self.waiting,
            self.failed
        );
        let (received, requests, now) =
            (per(self.received_bytes), self.requests, self.requests_now);
        text += &format!(
            "link    {received}, {requests:.0} requests/s, {now} under way; background: {}\n",
            self.background
        );
        let (held, max) = (bytes(self.cache_held), bytes(self.cache_max));
        let (mounts, degraded) = (self.mounts, self.degraded);
        text += &format!("node    {mounts} mounts, {degraded} degraded; cache {held} of {max}\n\n");
        let mut table = Table::new(&[
            "LAYER",
            " CACHED/s",
            " FETCHING/s",
            " LINK",
            " HELD",
            " FILES",
            " USERS",
            "IMAGE",
            "STATE",
        ]);
        for layer in self.layers.iter().take(SHOWN) {
            table.row(vec![
                short(&layer.layer),
                format!("{:.0}", layer.cached_reads),
                format!("{:.0}", layer.fetching_reads),
                per(layer.fetched_bytes),
                bytes(layer.held),
                bytes(layer.content),
                layer.users.to_string(),
                layer.image.clone(),
                layer.state.clone(),
            ]);
        }
        text + &table.text()
    }
}

/// The busiest first.
fn layers(
    before: &[api::Layer],
    now: &[api::Layer],
    rate: &dyn Fn(u64, u64) -> f64,
) -> Vec<LayerRates> {
    let key = |layer: &api::Layer| (layer.image.clone(), layer.layer.clone());
    let before: HashMap<_, _> = before.iter().map(|layer| (key(layer), layer)).collect();
    let rates = now.iter().map(|layer| {
        let old = before
            .get(&key(layer))
            .map_or_else(api::Layer::default, |old| (*old).clone());
        LayerRates {
            layer: layer.layer.clone(),
            image: layer.image.clone(),
            cached_reads: rate(old.hits, layer.hits),
            fetching_reads: rate(old.misses, layer.misses),
            fetched_bytes: rate(old.fetched, layer.fetched),
            held: layer.held,
            content: layer.content,
            users: layer.users,
            state: state(layer),
        }
    });
    let mut rates: Vec<_> = rates.collect();
    let busy = |layer: &LayerRates| {
        let reads = layer.cached_reads + layer.fetching_reads;
        layer.fetched_bytes + 4096.0 * reads
    };
    rates.sort_by(|one, other| busy(other).total_cmp(&busy(one)));
    rates
}

fn requests(status: &api::StatusReply) -> api::Requests {
    status.requests.clone().unwrap_or_default()
}

fn link(status: &api::StatusReply) -> api::Link {
    status.link.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_what_was_added_by_the_second_and_the_busiest_layer_is_first() {
        let start = Instant::now();
        let look = |seconds: u64, reads: u64| Look {
            at: start + Duration::from_secs(seconds),
            status: api::StatusReply {
                requests: Some(api::Requests {
                    hits: reads,
                    ..api::Requests::default()
                }),
                ..api::StatusReply::default()
            },
            layers: ["idle", "busy"]
                .map(|name| api::Layer {
                    layer: name.to_owned(),
                    hits: if name == "busy" { reads } else { 7 },
                    ..api::Layer::default()
                })
                .to_vec(),
        };
        let rates = Rates::between(&look(0, 100), &look(2, 300));
        assert_eq!((rates.seconds, rates.cached_reads), (2.0, 100.0));
        assert_eq!(rates.layers[0].layer, "busy");
        assert_eq!(
            (rates.layers[0].cached_reads, rates.layers[1].cached_reads),
            (100.0, 0.0)
        );
        assert_eq!(
            Rates::between(&look(0, 100), &look(1, 5)).cached_reads,
            0.0,
            "a new daemon"
        );
    }
}
