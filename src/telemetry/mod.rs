//! Tracing set-up: one subscriber for the whole process, on standard error.
//!
//! systemd and container runtimes add the time and the unit themselves when they read standard
//! error, but an operator who starts crfs by hand needs the time too, so it is always there.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One readable line an event.
    #[default]
    Text,
    /// One JSON object an event.
    Json,
}

/// Section `[log]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Least severe level that is written: `error`, `warn`, `info`, `debug` or `trace`; or a filter
    /// by module, as in `info,crfs::registry=debug`.
    pub level: String,
    /// `text` or `json`.
    pub format: Format,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: Format::Text,
        }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The level is neither a level nor a filter.
    #[error("log level {level:?} is not understood: {why} (use error, warn, info, debug, trace)")]
    Level {
        /// What was given.
        level: String,
        /// What the parser says.
        why: String,
    },
    /// A subscriber is there already.
    #[error("logging was set up twice")]
    Twice,
}

/// Puts another filter into the subscriber that was set up.
type Reload = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;
static RELOAD: OnceLock<Reload> = OnceLock::new();

/// Sets the process's subscriber up. To be called once.
///
/// # Errors
/// The level is malformed, or a subscriber was there before.
pub fn init(config: &Config) -> Result<(), Error> {
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter(&config.level)?)
        .with_writer(std::io::stderr)
        // A line that cannot be written is lost: to say so on the same output would be a panic.
        .log_internal_errors(false)
        .with_ansi(false);
    let (set, reload): (_, Reload) = match config.format {
        Format::Text => {
            let lines = lines.with_filter_reloading();
            let handle = lines.reload_handle();
            let reload = move |new| handle.reload(new).map_err(|error| error.to_string());
            (lines.try_init(), Box::new(reload))
        }
        Format::Json => {
            let lines = lines.json().flatten_event(true).with_filter_reloading();
            let handle = lines.reload_handle();
            let reload = move |new| handle.reload(new).map_err(|error| error.to_string());
            (lines.try_init(), Box::new(reload))
        }
    };
    set.map_err(|_| Error::Twice)?;
    RELOAD.set(reload).map_err(|_| Error::Twice)
}

/// From now on another level, of the subscriber that [`init`] has set up.
///
/// # Errors
/// The level is malformed, or there is no subscriber.
pub fn set_level(level: &str) -> Result<(), Error> {
    let why = |why: String| Error::Level {
        level: level.to_owned(),
        why,
    };
    let new = filter(level)?;
    let reload = RELOAD.get().ok_or_else(|| why("nothing logs".to_owned()))?;
    reload(new).map_err(why)
}

/// Whether a level is one.
///
/// # Errors
/// It is malformed.
pub fn check_level(level: &str) -> Result<(), Error> {
    filter(level).map(drop)
}

fn filter(level: &str) -> Result<EnvFilter, Error> {
    let why = |why: String| Error::Level {
        level: level.to_owned(),
        why,
    };
    if let Some(word) = unknown_level(level) {
        return Err(why(format!("{word:?} is no level")));
    }
    let filter = EnvFilter::builder().parse(level);
    filter.map_err(|error| why(error.to_string()))
}

/// A bare word of a filter that is no level. The filter's own parser takes it for the name of a module,
/// so a mistyped level would silence everything.
fn unknown_level(filter: &str) -> Option<&str> {
    let mut words = filter.split(',').map(str::trim);
    words.find(|word| {
        let is_module = word.contains(['=', ':', '[']) || *word == env!("CARGO_PKG_NAME");
        !is_module && (word.is_empty() || word.parse::<LevelFilter>().is_err())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_level_is_not_taken_for_a_module() {
        for (filter, unknown) in [
            ("info", None),
            ("WARN,crfs::registry=debug", None),
            ("crfs", None),
            ("off", None),
            ("verbose", Some("verbose")),
            ("crfs::fs=debug, inof", Some("inof")),
            ("", Some("")),
        ] {
            assert_eq!(unknown_level(filter), unknown, "{filter}");
        }
    }
}
