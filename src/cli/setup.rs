//! `crfs setup`: containerd told of crfs, tried, and taken back if it does not work.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::cli::Outcome;
use crate::cli::ask::Which;
use crate::cli::out;
use crate::oci::Platform;
use crate::setup::apply::{self, JOURNAL};
use crate::setup::containerd::FILE;
use crate::setup::plan::{self, Wish};
use crate::setup::verify::{self, Trial};

/// Tell containerd of crfs, restart it, and try it by a tiny lazy pull; or take that back
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crfs setup --dry-run                 show what would be changed, as a diff
  crfs setup                           change it, restart containerd, try it; a change that fails is taken back
  crfs setup --cri                     pods get their images by crfs as well
  crfs setup --verify                  only try it: an image of this program's own is pulled lazily and read
  crfs setup --undo                    take back what was changed, and restart containerd

What is new goes into conf.d/crfs.toml beside containerd's configuration; a section that is there already is
completed where it stands. What failed is taken back alone, an earlier crfs setup stays. --undo takes back all, or
nothing if somebody else has changed a file since: it then shows what to remove by hand. crfs has to run (crfs
doctor says whether it does). Containers are not restarted.")]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
    /// Show the changes, make none
    #[arg(long, conflicts_with_all = ["undo", "verify"])]
    dry_run: bool,
    /// Take back what every earlier crfs setup has changed
    #[arg(long, conflicts_with = "verify")]
    undo: bool,
    /// Change nothing, only try it
    #[arg(long)]
    verify: bool,
    /// Let the CRI, and with it pods, use crfs
    #[arg(long)]
    cri: bool,
    /// containerd's configuration
    #[arg(long, value_name = "FILE", default_value = FILE)]
    containerd_config: PathBuf,
    /// containerd, to be asked its version
    #[arg(long, value_name = "PROGRAM", default_value = "containerd")]
    containerd: PathBuf,
    /// containerd's client
    #[arg(long, value_name = "PROGRAM", default_value = "ctr")]
    ctr: PathBuf,
    /// What restarts containerd, for sh
    #[arg(
        long,
        value_name = "COMMAND",
        default_value = "systemctl restart containerd"
    )]
    restart: String,
    /// Do not restart containerd, and so do not try it either
    #[arg(long)]
    no_restart: bool,
    /// Where it is written down what was changed
    #[arg(long, value_name = "FILE", default_value = JOURNAL)]
    journal: PathBuf,
}

pub(super) fn run(args: Args) -> Outcome {
    if args.undo {
        for path in apply::undo(&args.journal)? {
            out::line(format_args!("{} is as it was", path.display()))?;
        }
        args.restart()?;
        return Ok(ExitCode::SUCCESS);
    }
    let trial = args.trial()?;
    if args.verify {
        return args.try_it(&trial);
    }
    let (root, _) = args.which.find()?;
    let wish = Wish {
        file: std::path::absolute(&args.containerd_config)?,
        version: trial.version,
        address: trial.crfs.clone(),
        root,
        cri: args.cri,
        platform: trial.platform.to_string(),
    };
    let edits = plan::plan(&wish)?;
    if edits.is_empty() {
        out::line(format_args!(
            "{} says all that it should",
            wish.file.display()
        ))?;
        return match args.dry_run || args.no_restart {
            true => Ok(ExitCode::SUCCESS),
            false => args.try_it(&trial),
        };
    }
    for edit in &edits {
        out::print(format_args!("{edit}"))?;
    }
    if args.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    let applied = apply::apply(edits, &args.journal)?;
    if args.no_restart {
        out::line(format_args!(
            "written; restart containerd, then crfs setup --verify tries it"
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    let tried = args.restart().and_then(|()| args.try_it(&trial));
    tried.or_else(|error| {
        applied.take_back()?;
        args.restart()?;
        Err(format!("{error}; all changes were taken back").into())
    })
}

impl Args {
    fn trial(&self) -> Result<Trial, Box<dyn std::error::Error>> {
        let (_, crfs) = self.which.find()?;
        Ok(Trial {
            ctr: self.ctr.clone(),
            containerd: self.which.load()?.containerd.address,
            crfs,
            version: version(&self.containerd)?,
            platform: Platform::this_machine(),
        })
    }

    fn try_it(&self, trial: &Trial) -> Outcome {
        let runtime = tokio::runtime::Runtime::new()?;
        out::line(format_args!("{}", runtime.block_on(verify::verify(trial))?))?;
        Ok(ExitCode::SUCCESS)
    }

    fn restart(&self) -> Result<(), Box<dyn std::error::Error>> {
        if self.no_restart {
            out::line(format_args!("restart containerd for it to hold"))?;
            return Ok(());
        }
        let done = Command::new("sh").args(["-c", &self.restart]).status()?;
        match done.success() {
            true => Ok(()),
            false => Err(format!(
                "{:?} fails ({done}); --restart names another way",
                self.restart
            )
            .into()),
        }
    }
}

/// Major and minor of what `containerd --version` says.
fn version(program: &Path) -> Result<(u32, u32), Box<dyn std::error::Error>> {
    let shown = program.display();
    let said = Command::new(program).arg("--version").output();
    let said =
        said.map_err(|error| format!("{shown}: {error} (--containerd names another place)"))?;
    let text = String::from_utf8_lossy(&said.stdout);
    parse_version(&text)
        .ok_or_else(|| format!("{shown} --version says {text:?}, which is no version").into())
}

/// `containerd github.com/containerd/containerd/v2 2.1.9 HASH`: the first word that is a version.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut numbers = word.trim_start_matches('v').split(['.', '-', '~', '+']);
        let major = numbers.next()?.parse().ok()?;
        Some((major, numbers.next()?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerds_version_is_found_in_what_it_says() {
        for (text, version) in [
            (
                "containerd github.com/containerd/containerd/v2 2.1.9 abc",
                Some((2, 1)),
            ),
            (
                "containerd github.com/containerd/containerd v1.7.24~ds1 1.7.24~ds1-4",
                Some((1, 7)),
            ),
            ("containerd containerd.io 2.2.0-rc.1 0a1b", Some((2, 2))),
            ("containerd", None),
        ] {
            assert_eq!(parse_version(text), version, "{text}");
        }
    }
}
