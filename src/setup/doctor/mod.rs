//! `crfs doctor`: everything a node needs, looked at one by one.

mod machine;
mod services;

use std::path::PathBuf;

use serde::Serialize;

use crate::config::Config;
use crate::oci::Reference;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could.
    Warning,
    /// crfs does not work so, or nothing is lazy.
    Failure,
}

/// What one look found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do; empty if nothing is to be done.
    pub remedy: String,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Ok,
            found: found.into(),
            remedy: String::new(),
        }
    }

    fn warning(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warning,
            remedy: remedy.into(),
            ..Self::ok(check, found)
        }
    }

    fn failure(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Failure,
            remedy: remedy.into(),
            ..Self::ok(check, found)
        }
    }
}

/// What is looked at.
#[derive(Debug)]
pub struct Subject {
    /// crfs's configuration.
    pub config: Config,
    /// The socket of the daemon.
    pub socket: PathBuf,
    /// containerd's configuration.
    pub containerd: PathBuf,
    /// Images whose registries are to be asked.
    pub images: Vec<Reference>,
}

/// Looks at everything, in the order in which things need each other. Needs a tokio runtime.
pub async fn examine(subject: &Subject) -> Vec<Finding> {
    let mut findings = machine::examine(&subject.config);
    findings.extend(services::examine(subject).await);
    findings
}
