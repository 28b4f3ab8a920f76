//! `crfs config`: looks at a configuration without starting anything.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::Outcome;
use crate::cli::out;
use crate::config::Config;

/// Check the configuration, or print all of it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crfs config check                           /etc/crfs/config.toml
  crfs config check ./config.toml             everything that is wrong, with its line
  crfs config show                            every key, as a daemon would take it

The exit status is 1 if something is wrong.")]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Say everything that is wrong with a file
    Check(File),
    /// Print every key with its value, the file's or the default
    Show(File),
}

#[derive(Debug, clap::Args)]
struct File {
    /// The file [default: /etc/crfs/config.toml if it exists]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> Outcome {
    match args.what {
        What::Check(File { file }) => {
            Config::load(file.as_deref())?.check()?;
            let file = file.as_deref().unwrap_or(Config::default_file());
            match file.exists() {
                true => out::line(format_args!("{} is all right", file.display()))?,
                false => out::line(format_args!(
                    "there is no {}, every key has its default",
                    file.display()
                ))?,
            }
        }
        What::Show(File { file }) => {
            out::print(format_args!("{}", Config::load(file.as_deref())?.text()))?
        }
    }
    Ok(ExitCode::SUCCESS)
}
