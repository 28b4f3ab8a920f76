//! Arguments, progress, exit codes: what a person types and what they see.
//!
//! Each subcommand has a file with its arguments and one `run`. Exit codes: 0 done, 1 failed, 2
//! the command line is wrong, 3 the answer is no (no daemon runs, a layer is not lazy).

mod ask;
mod complete;
mod config;
mod convert;
#[cfg(test)]
mod docs_tests;
mod doctor;
mod fsck;
mod layers;
mod mount;
mod out;
mod place;
mod profile;
mod progress;
mod pull;
mod registries;
mod serve;
mod setup;
mod status;
mod stop;
mod table;
mod top;
mod upgrade;
mod why;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Starts containers before their image is downloaded: a containerd snapshotter for eStargz images.
#[derive(Debug, Parser)]
#[command(name = "crfs", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  crfs serve                                              run the snapshotter with its defaults
  crfs convert docker://docker.io/library/python:3.12 docker://registry.example/python:3.12-lazy
  crfs pull registry.example/python:3.12-lazy             into containerd, lazily; with containerd 1.7 too
  crfs mount registry.example/python:3.12-lazy /mnt       look into an image without pulling it
  crfs why registry.example/python:3.12-lazy              which layers are lazy, and why others are not
  crfs profile registry.example/python:3.12-lazy          list the files its containers read first

Configuration of containerd and of crfs is described in the README.";

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    Pull(pull::Args),
    Complete(complete::Args),
    Status(status::Args),
    Why(why::Args),
    Layers(layers::Args),
    Top(top::Args),
    Stop(stop::Args),
    Upgrade(upgrade::Args),
    Convert(convert::Args),
    Mount(mount::Args),
    Profile(profile::Args),
    Fsck(fsck::Args),
    Config(config::Args),
    Doctor(doctor::Args),
    Setup(setup::Args),
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Pull(args) => pull::run(args),
        Command::Complete(args) => complete::run(args),
        Command::Status(args) => status::run(args),
        Command::Why(args) => why::run(args),
        Command::Layers(args) => layers::run(args),
        Command::Top(args) => top::run(args),
        Command::Stop(args) => stop::run(args),
        Command::Upgrade(args) => upgrade::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Mount(args) => mount::run(args),
        Command::Profile(args) => profile::run(args),
        Command::Fsck(args) => fsck::run(args),
        Command::Config(args) => config::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Setup(args) => setup::run(args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("crfs: {}", chain(error.as_ref()));
        ExitCode::FAILURE
    })
}

/// What every subcommand ends with: an exit code, or an error for people.
type Outcome = Result<ExitCode, Box<dyn std::error::Error>>;

/// An error and its causes in one line, without saying the same twice.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line
}
