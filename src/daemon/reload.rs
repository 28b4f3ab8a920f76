//! SIGHUP: the configuration is read again, and what can be changed at once is.

use std::sync::Arc;
use std::time::Instant;

use tokio::signal::unix::Signal;

use crate::config::Config;
use crate::layer::LiveLayers;
use crate::report::{Node, Reloaded};
use crate::telemetry;

/// Reads the configuration that the daemon was started with again.
pub(super) type Reread = Box<dyn Fn() -> Result<Config, String> + Send>;

/// What a reload works on.
pub(super) struct Reloader {
    /// What holds now.
    pub(super) config: Config,
    pub(super) reread: Reread,
    pub(super) layers: Arc<LiveLayers>,
    pub(super) node: Node,
}

impl Reloader {
    /// Reloads at each signal, for ever. The end of the daemon ends it.
    pub(super) async fn run(mut self, mut hangups: Signal) {
        while hangups.recv().await.is_some() {
            // A file of a few lines.
            let outcome = self.reload();
            self.node.reloaded(outcome);
        }
    }

    fn reload(&mut self) -> Reloaded {
        let mut outcome = Reloaded {
            at: Instant::now(),
            applied: Vec::new(),
            refused: Vec::new(),
            error: None,
        };
        let new = match (self.reread)() {
            Ok(new) => new,
            Err(error) => {
                tracing::error!(%error, "the configuration is not reloaded, the old one holds");
                outcome.error = Some(error);
                return outcome;
            }
        };
        let changes = self.config.changes(&new);
        if let Err(error) = telemetry::set_level(&new.log.level) {
            tracing::error!(%error, "the configuration is not reloaded, the old one holds");
            outcome.error = Some(error.to_string());
            return outcome;
        }
        self.layers.set_rate_limit(new.fetch.rate_limit.0);
        self.config.take_reloadable(&new);
        tracing::info!(changed = ?changes.reloadable, "configuration reloaded");
        if !changes.others.is_empty() {
            tracing::warn!(keys = ?changes.others, "these keys have changed and need a restart of crfs");
        }
        outcome.applied = changes.reloadable;
        outcome.refused = changes.others;
        outcome
    }
}
