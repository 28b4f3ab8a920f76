//! A conversion's progress.

use std::sync::Arc;

use indicatif::HumanBytes;

use crate::cli::progress::{Board, Row, short};
use crate::convert::{LayerInfo, LayerProgress, LayerReport, Progress, Stage};

impl Progress for Board {
    fn layer(&self, layer: &LayerInfo) -> Arc<dyn LayerProgress> {
        self.row(title(layer), layer.size, true)
    }

    fn note(&self, line: &str) {
        Self::note(self, line);
    }
}

impl LayerProgress for Row {
    fn stage(&self, stage: Stage, total: u64) {
        let name = match stage {
            Stage::Fetch => "fetching",
            Stage::Convert => "converting",
            Stage::Push => "pushing",
        };
        Self::stage(self, name, total);
    }

    fn at(&self, done: u64) {
        Self::at(self, done);
    }

    fn done(&self, report: &LayerReport) {
        Self::done(self, &outcome(report));
    }
}

fn title(layer: &LayerInfo) -> String {
    let place = format!(
        "layer {}/{} {}",
        layer.number,
        layer.of,
        short(layer.digest)
    );
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
