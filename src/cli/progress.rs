//! Progress on standard error: a bar for each layer on a terminal, lines elsewhere.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use parking_lot::Mutex;

use crate::oci::Digest;
use crate::registry::Client;

/// Digits of a digest that people compare.
const SHORT: usize = 12;
/// What holds a command up is told this often, at most.
const REMIND: Duration = Duration::from_secs(5);

/// Where rows of progress are shown.
pub(super) enum Board {
    /// A terminal.
    Bars(MultiProgress),
    /// Logs and pipes.
    Lines,
}

/// One row: a layer, or another blob.
pub(super) struct Row {
    title: String,
    bar: Option<ProgressBar>,
}

impl Board {
    /// What suits standard error. It also says what `client` waits for while a registry does not answer.
    pub(super) fn for_stderr(client: &Client) -> Arc<Self> {
        let board = Arc::new(match std::io::stderr().is_terminal() {
            true => Self::Bars(MultiProgress::new()),
            false => Self::Lines,
        });
        let (told, last) = (Arc::clone(&board), Mutex::new(None::<Instant>));
        client.traffic().on_trouble(move |error| {
            let mut last = last.lock();
            if last.is_none_or(|last| last.elapsed() >= REMIND) {
                *last = Some(Instant::now());
                told.note(&format!("{error}; trying again"));
            }
        });
        board
    }

    /// Begins a row for something of `size` bytes. A row that is no bar says nothing until it is done,
    /// unless `announced`.
    pub(super) fn row(&self, title: String, size: u64, announced: bool) -> Arc<Row> {
        let bar = match self {
            Self::Bars(bars) => {
                let bar = bars.add(ProgressBar::new(size));
                let form =
                    "{prefix} {msg:<10} [{bar:30}] {bytes:>10}/{total_bytes:10} {elapsed:>4}";
                // The template is a constant; were it wrong, the default style would do.
                if let Ok(style) = ProgressStyle::with_template(form) {
                    bar.set_style(style.progress_chars("=> "));
                }
                bar.set_prefix(title.clone());
                Some(bar)
            }
            Self::Lines => {
                if announced {
                    eprintln!("{title}: {}", HumanBytes(size));
                }
                None
            }
        };
        Arc::new(Row { title, bar })
    }

    /// A line of its own.
    pub(super) fn note(&self, line: &str) {
        match self {
            // A line that cannot be drawn is no reason to stop.
            Self::Bars(bars) => drop(bars.println(line)),
            Self::Lines => eprintln!("{line}"),
        }
    }
}

impl Row {
    /// A stage of `total` bytes begins.
    pub(super) fn stage(&self, name: &'static str, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_message(name);
            bar.set_length(total);
            bar.set_position(0);
        }
    }

    /// So many bytes of the stage are done.
    pub(super) fn at(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }

    /// It is done; `outcome` is what is left to read of it.
    pub(super) fn done(&self, outcome: &str) {
        let line = format!("{}: {outcome}", self.title);
        let Some(bar) = &self.bar else {
            eprintln!("{line}");
            return;
        };
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            bar.set_style(style);
        }
        bar.finish_with_message(line);
    }
}

/// A digest as people compare it.
pub(super) fn short(digest: Digest) -> String {
    digest.start(SHORT)
}
