//! The progress of a pull, and of completing an image.

use std::sync::Arc;

use indicatif::HumanBytes;

use crate::cli::progress::{Board, Row, short};
use crate::pull::{Info, LayerProgress, Outcome, Progress, Report, Stage};

impl Progress for Board {
    fn layer(&self, layer: &Info) -> Arc<dyn LayerProgress> {
        self.row(title(layer), layer.size, false)
    }
}

impl LayerProgress for Row {
    fn stage(&self, stage: Stage, total: u64) {
        let name = match stage {
            Stage::Offer => "opening",
            Stage::Wait => "waiting",
            Stage::Fetch => "fetching",
            Stage::Unpack => "unpacking",
        };
        Self::stage(self, name, total);
    }

    fn at(&self, done: u64) {
        Self::at(self, done);
    }

    fn done(&self, report: &Report) {
        Self::done(self, &outcome(report));
    }
}

fn title(layer: &Info) -> String {
    match layer.number {
        0 => format!("config {}", short(layer.digest)),
        number => format!("layer {number}/{} {}", layer.of, short(layer.digest)),
    }
}

fn outcome(report: &Report) -> String {
    let (size, fetched) = (HumanBytes(report.size), HumanBytes(report.fetched));
    let seconds = report.seconds;
    match report.outcome {
        Outcome::Lazy => format!("lazy, nothing of its {size} fetched ({seconds:.1} s)"),
        Outcome::Present => "here already".to_owned(),
        Outcome::Unpacked => format!("unpacked, {fetched} fetched ({seconds:.1} s)"),
        Outcome::Fetched => format!("{fetched} fetched ({seconds:.1} s)"),
    }
}
