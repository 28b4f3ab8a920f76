//! A conversion's progress: a bar for each layer on a terminal, lines elsewhere.

use std::io::IsTerminal as _;
use std::sync::Arc;

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

use crate::convert::{LayerInfo, LayerProgress, LayerReport, Progress, Stage};

/// Digits of a digest that people compare.
const SHORT: usize = 12;

/// What suits standard error.
pub(super) fn for_stderr() -> Arc<dyn Progress> {
    match std::io::stderr().is_terminal() {
        true => Arc::new(Bars(MultiProgress::new())),
        false => Arc::new(Lines),
    }
}

/// Bars on a terminal.
struct Bars(MultiProgress);

struct Bar {
    bar: ProgressBar,
    title: String,
}

impl Progress for Bars {
    fn layer(&self, layer: &LayerInfo) -> Arc<dyn LayerProgress> {
        let bar = self.0.add(ProgressBar::new(layer.size));
        let form = "{prefix} {msg:<10} [{bar:30}] {bytes:>10}/{total_bytes:10} {elapsed:>4}";
        // The template is a constant; were it wrong, the default style would do.
        if let Ok(style) = ProgressStyle::with_template(form) {
            bar.set_style(style.progress_chars("=> "));
        }
        let title = title(layer);
        bar.set_prefix(title.clone());
        Arc::new(Bar { bar, title })
    }

    fn note(&self, line: &str) {
        // A bar that cannot be drawn is no reason to stop.
        let _ = self.0.println(line);
    }
}

impl LayerProgress for Bar {
    fn stage(&self, stage: Stage, total: u64) {
        self.bar.set_message(match stage {
            Stage::Fetch => "fetching",
            Stage::Convert => "converting",
            Stage::Push => "pushing",
        });
        self.bar.set_length(total);
        self.bar.set_position(0);
    }

    fn at(&self, done: u64) {
        self.bar.set_position(done);
    }

    fn done(&self, report: &LayerReport) {
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            self.bar.set_style(style);
        }
        self.bar
            .finish_with_message(format!("{}: {}", self.title, outcome(report)));
    }
}

/// Lines, for logs and pipes.
struct Lines;

struct Line(String);

impl Progress for Lines {
    fn layer(&self, layer: &LayerInfo) -> Arc<dyn LayerProgress> {
        let title = title(layer);
        eprintln!("{title}: {}", HumanBytes(layer.size));
        Arc::new(Line(title))
    }

    fn note(&self, line: &str) {
        eprintln!("{line}");
    }
}

impl LayerProgress for Line {
    fn stage(&self, _: Stage, _: u64) {}

    fn at(&self, _: u64) {}

    fn done(&self, report: &LayerReport) {
        eprintln!("{}: {}", self.0, outcome(report));
    }
}

fn title(layer: &LayerInfo) -> String {
    let hex: String = layer.digest.hex().chars().take(SHORT).collect();
    let place = format!("layer {}/{} {hex}", layer.number, layer.of);
    match &layer.platform {
        Some(platform) => format!("{place} ({platform})"),
        None => place,
    }
}

fn outcome(report: &LayerReport) -> String {
    if let Some(why) = &report.left {
        return format!("left as it is, because {why}");
    }
    // Precise enough for people.
    let percent = report.size as f64 * 100.0 / report.source_size.max(1) as f64;
    format!(
        "{} -> {} ({percent:.1} %) in {:.1} s",
        HumanBytes(report.source_size),
        HumanBytes(report.size),
        report.seconds
    )
}
