//! `crfs status`: whether the daemon runs, and how it fares.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::Outcome;
use crate::cli::ask::{Which, json};
use crate::cli::out;
use crate::cli::table::{bytes, short, span};
use crate::daemon;
use crate::report::api;
use crate::service::control;

/// Say whether the daemon runs, and how it fares: mounts, images, cache, link, health, take-overs
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crfs status
  crfs status --root /var/lib/crfs
  crfs status --address /run/crfs/crfs.sock
  crfs status --json | jq .status.mounts

A socket given by --address is asked whichever root folder its daemon has; what the keeper says is told only
of a root folder: the default one, or that of --root. The exit status is 3 if no daemon runs. `lost` layers
had no server left and no descriptor: containers that use them have to be restarted. Numbers count from the
start of the daemon that serves now.")]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    /// Whether a daemon runs.
    running: bool,
    /// What its keeper, or systemd, says.
    keeper: BTreeMap<String, String>,
    /// What the daemon says; missing while it starts.
    status: Option<api::StatusReply>,
    /// Why it says nothing.
    error: Option<String>,
}

pub(super) fn run(args: Args) -> Outcome {
    let root = args.which.named_root()?;
    let kept = match &root {
        Some(root) => daemon::status(root)?,
        None => String::new(),
    };
    let pairs = kept
        .lines()
        .map(|line| line.split_once(' ').unwrap_or((line, "")));
    let keeper: Vec<(&str, &str)> = pairs.collect();
    let has_process = keeper
        .iter()
        .any(|(key, value)| *key == "pid" && *value != "0");
    let answer = match has_process || args.which.names_socket() {
        true => {
            let answer = args
                .which
                .ask(|mut client| async move { client.status().await });
            Some(answer)
        }
        false => None,
    };
    let running = has_process || answer.as_ref().is_some_and(somebody_answers);
    let (status, error) = match answer.transpose() {
        Ok(status) => (status, None),
        Err(error) => (None, Some(error.to_string())),
    };
    if args.json {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let keeper = keeper.iter().map(owned).collect();
        let report = Report {
            running,
            keeper,
            status,
            error,
        };
        out::print(format_args!("{}", json(&report)?))?;
    } else {
        for (key, value) in keeper {
            out::print(format_args!("{}", line(&key.replace('_', " "), value)))?;
        }
        if let Some(error) = error {
            out::print(format_args!("{}", line("daemon", &error)))?;
        }
        if let Some(status) = &status {
            out::print(format_args!("{}", text(status)))?;
        }
        if let Some(root) = root.filter(|_| !running) {
            out::line(format_args!("no daemon runs for {}", root.display()))?;
        }
    }
    Ok(if running {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    })
}

/// Whether there is a daemon at the socket, even if it does not say how it fares.
fn somebody_answers<T>(answer: &Result<T, Box<dyn std::error::Error>>) -> bool {
    let error = answer
        .as_ref()
        .err()
        .map(|error| error.downcast_ref::<control::Error>());
    match error {
        None | Some(Some(control::Error::Older(_) | control::Error::Refused(_))) => true,
        Some(_) => false,
    }
}

fn line(key: &str, value: &str) -> String {
    format!("{key:<15} {}\n", value.replace(char::is_control, "?"))
}

/// The status in lines, a key and a sentence each.
pub(super) fn text(status: &api::StatusReply) -> String {
    let mut text = line("version", &status.version);
    let mut say = |key: &str, value: String| text.push_str(&line(key, &value));
    say("serves for", span(status.uptime_seconds));
    if let Some(mounts) = &status.mounts {
        let api::Mounts {
            served,
            taken_over,
            lost,
        } = mounts;
        say(
            "mounts",
            format!("{served} served, {taken_over} taken over, {lost} lost"),
        );
    }
    if let Some(found) = &status.snapshots {
        let api::Snapshots {
            lazy,
            unpacked,
            active,
            views,
            images,
        } = found;
        say(
            "layers",
            format!("{lazy} lazy, of {images} images; {unpacked} unpacked by containerd"),
        );
        say("on top", format!("{active} writable, {views} views"));
    }
    if let Some(answers) = &status.answers {
        let not = counts(&answers.not_lazy);
        say(
            "offered",
            format!("{} answered lazily; not lazy: {not}", answers.lazy),
        );
    }
    match status.degraded.len() {
        0 => say("degraded", "none".to_owned()),
        count => say(
            "degraded",
            format!("{count}, each is tried again by itself"),
        ),
    }
    for degraded in &status.degraded {
        let (layer, tries) = (short(&degraded.layer), degraded.tries);
        say("", format!("{layer}, {tries} tries: {}", degraded.why));
    }
    if let Some(requests) = &status.requests {
        say("reads", reads(requests));
        say("failed", counts(&requests.failed));
    }
    if let Some(cache) = &status.cache {
        say("cache", cached(cache));
    }
    if let Some(link) = &status.link {
        say("fetched", fetched(link));
        say("link", linked(link));
    }
    if let Some(background) = &status.background {
        say("background", progress(background));
    }
    if let Some(reload) = &status.reload {
        say("configuration", reloaded(reload));
    }
    text
}

fn reads(requests: &api::Requests) -> String {
    format!(
        "{} from the cache ({}), {} fetched ({}), {} waiting; {} files opened for the kernel alone",
        requests.hits,
        bytes(requests.hit_bytes),
        requests.fetched,
        bytes(requests.fetched_bytes),
        requests.waiting,
        requests.passed
    )
}

fn cached(cache: &api::Cache) -> String {
    format!(
        "{} of {}, {} contents; {} evicted, {} damaged, {} writes failed; disk: {} of {} free",
        bytes(cache.held),
        bytes(cache.max_size),
        cache.entries,
        bytes(cache.evicted),
        cache.damaged,
        cache.write_errors,
        bytes(cache.disk_free),
        bytes(cache.disk_total)
    )
}

fn fetched(link: &api::Link) -> String {
    let each = link
        .bytes
        .iter()
        .map(|count| format!("{} {}", count.name, bytes(count.count)));
    each.collect::<Vec<_>>().join(", ")
}

fn linked(link: &api::Link) -> String {
    format!(
        "{}/s at best lately; {} requests ({} received), {} now, {} of the background; failed: {}",
        bytes(link.best_rate),
        link.http_requests,
        bytes(link.http_received),
        link.requests_now,
        link.background_now,
        counts(&link.failed)
    )
}

pub(super) fn progress(background: &api::Background) -> String {
    let api::Background { members, left } = background;
    match left {
        0 => "nothing left to do".to_owned(),
        left => {
            let done = 100 * members.saturating_sub(*left) / (*members).max(1);
            format!("{done} % done, {left} pieces left")
        }
    }
}

fn reloaded(reload: &api::Reload) -> String {
    let ago = span(reload.seconds_ago);
    if !reload.error.is_empty() {
        return format!("reload {ago} ago changed nothing: {}", reload.error);
    }
    let list = |keys: &[String]| match keys {
        [] => "nothing".to_owned(),
        keys => keys.join(", "),
    };
    let (applied, refused) = (list(&reload.applied), list(&reload.refused));
    format!("reloaded {ago} ago; changed: {applied}; needs a restart: {refused}")
}

/// Names with their counts, or that there are none.
pub(super) fn counts(counts: &[api::Count]) -> String {
    let each = counts
        .iter()
        .map(|count| format!("{} {}", count.name, count.count));
    match counts {
        [] => "none".to_owned(),
        _ => each.collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    use clap::Parser;

    use super::*;
    use crate::service::control::testing::serve_nothing;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn exits(arguments: &[&Path]) -> String {
        let name = [Path::new("status")];
        let command = Command::parse_from(name.iter().chain(arguments));
        format!("{:?}", run(command.args).unwrap())
    }

    #[test]
    fn a_daemon_runs_if_one_answers_at_the_address_that_was_given() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let [root, none, closes, serves] = ["root", "none", "closes", "serves"].map(at);
        serve_nothing(&serves);
        let closing = UnixListener::bind(&closes).unwrap();
        std::thread::spawn(move || closing.incoming().for_each(drop));
        let [runs, does_not] =
            [ExitCode::SUCCESS, ExitCode::from(3)].map(|code| format!("{code:?}"));
        let (address, of_root) = (Path::new("--address"), Path::new("--root"));
        for (arguments, wanted) in [
            (&[address, &serves][..], &runs),
            (&[address, &serves, of_root, &root], &runs),
            (&[address, &none], &does_not),
            (&[address, &closes], &does_not),
            (&[of_root, &root], &does_not),
        ] {
            assert_eq!(exits(arguments), *wanted, "{arguments:?}");
        }
    }
}
