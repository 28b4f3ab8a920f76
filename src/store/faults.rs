//! Named places at which a test makes the process die or a step fail.
//!
//! Durability is a promise about every moment between two steps, so each such moment has a name.
//! With `CRFS_CRASH_AT=name` or `name:n` in its environment the daemon sends itself SIGKILL the
//! first or `n`-th time it passes there: what a crash does, with nothing flushed or cleaned up on
//! the way out. Who can set the environment of a root daemon can kill it anyway; the variable is
//! read once, when the daemon is built, and unset it costs one comparison per step.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The environment variable that [`Faults::from_env`] reads.
const VARIABLE: &str = "CRFS_CRASH_AT";

macro_rules! steps {
    ($($(#[doc = $doc:literal])* $variant:ident => $name:literal,)*) => {
        /// A named place between two effects of a state-changing call.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Step { $($(#[doc = $doc])* $variant,)* }

        impl Step {
            /// All of them, for tests that go through every one.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name used in `CRFS_CRASH_AT`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

steps! {
    /// Prepare and View: nothing done yet.
    PrepareStart => "prepare.start",
    /// The snapshot's folder with `fs` and `work` is there.
    PrepareFolder => "prepare.folder",
    /// Its record is written and fsynced under a temporary name.
    PrepareRecord => "prepare.record",
    /// The database has it.
    PrepareStored => "prepare.stored",
    /// The record has its name; only the answer is missing.
    PrepareDone => "prepare.done",
    /// Lazy Prepare: the folder is there.
    LazyFolder => "lazy.folder",
    /// The layer is mounted.
    LazyMounted => "lazy.mounted",
    /// Its record is written and fsynced under a temporary name.
    LazyRecord => "lazy.record",
    /// The database has it.
    LazyStored => "lazy.stored",
    /// The record has its name; only the answer is missing.
    LazyDone => "lazy.done",
    /// Commit: nothing done yet.
    CommitStart => "commit.start",
    /// The layer's files are on disk and counted.
    CommitSynced => "commit.synced",
    /// The new record is written and fsynced under a temporary name.
    CommitRecord => "commit.record",
    /// The database has it.
    CommitStored => "commit.stored",
    /// The record is replaced; only the answer is missing.
    CommitDone => "commit.done",
    /// Update: the new record is written and fsynced under a temporary name.
    UpdateRecord => "update.record",
    /// The database has it.
    UpdateStored => "update.stored",
    /// The record is replaced; only the answer is missing.
    UpdateDone => "update.done",
    /// Remove: nothing done yet.
    RemoveStart => "remove.start",
    /// The record is marked as removed.
    RemoveMarked => "remove.marked",
    /// The database has forgotten it; only the answer is missing.
    RemoveDone => "remove.done",
    /// Clean-up: the removed layer is unmounted.
    CleanupUnmounted => "cleanup.unmounted",
    /// Its folder is deleted.
    CleanupDone => "cleanup.done",
    /// Store: changes are given to the database, not yet flushed.
    StoreApplied => "store.applied",
    /// Changes are flushed, nobody has been told.
    StoreFlushed => "store.flushed",
    /// Start-up: the two copies are compared, nothing is repaired yet.
    RecoverPlanned => "recover.planned",
    /// Everything is repaired.
    RecoverDone => "recover.done",
}

/// What is to go wrong, and where. Cloned freely; all clones count together.
#[derive(Debug, Clone, Default)]
pub struct Faults(Option<Arc<Fault>>);

#[derive(Debug)]
struct Fault {
    step: Step,
    /// Passes left until it strikes; it strikes once.
    left: AtomicU32,
    effect: Effect,
}

#[derive(Debug, Clone, Copy)]
enum Effect {
    Kill,
    #[cfg(test)]
    Fail,
}

impl Faults {
    /// Nothing goes wrong.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// What `CRFS_CRASH_AT` asks for.
    ///
    /// # Errors
    /// It is set and names no step: a test that would pass without testing anything.
    pub fn from_env() -> Result<Self, String> {
        std::env::var(VARIABLE).map_or_else(|_| Ok(Self::none()), |text| Self::parse(&text))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let (name, count) = text.split_once(':').unwrap_or((text, "1"));
        let step = Step::ALL.iter().copied().find(|step| step.name() == name);
        let count = count.parse().ok().filter(|count| *count > 0);
        match (step, count) {
            (Some(step), Some(count)) => Ok(Self::new(step, count, Effect::Kill)),
            _ => Err(format!(
                "{VARIABLE}={text} names no step (name or name:count)"
            )),
        }
    }

    /// Makes the `nth` pass of `step` fail with an I/O error.
    #[cfg(test)]
    pub fn failing(step: Step, nth: u32) -> Self {
        Self::new(step, nth, Effect::Fail)
    }

    fn new(step: Step, nth: u32, effect: Effect) -> Self {
        Self(Some(Arc::new(Fault {
            step,
            left: AtomicU32::new(nth),
            effect,
        })))
    }

    /// To be called at each step.
    ///
    /// # Errors
    /// Only if a test asked for it.
    pub fn at(&self, step: Step) -> io::Result<()> {
        match &self.0 {
            Some(fault) if fault.step == step => fault.pass(),
            _ => Ok(()),
        }
    }
}

impl Fault {
    fn pass(&self) -> io::Result<()> {
        let before = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        if before != Ok(1) {
            return Ok(());
        }
        match self.effect {
            Effect::Kill => {
                let _ = rustix::process::kill_process(
                    rustix::process::getpid(),
                    rustix::process::Signal::KILL,
                );
                // The signal is on its way; nothing may happen in between.
                loop {
                    std::thread::park();
                }
            }
            #[cfg(test)]
            Effect::Fail => Err(io::Error::other(format!(
                "asked to fail at {}",
                self.step.name()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_at_the_given_pass_and_once() {
        let faults = Faults::failing(Step::CommitStored, 2);
        assert!(faults.at(Step::CommitStored).is_ok());
        assert!(faults.at(Step::CommitRecord).is_ok());
        assert!(faults.clone().at(Step::CommitStored).is_err());
        assert!(faults.at(Step::CommitStored).is_ok());
    }

    #[test]
    fn a_misspelt_step_is_refused() {
        assert!(Faults::parse("commit.stored:3").is_ok());
        assert!(Faults::parse("commit.nowhere").is_err());
        assert!(Faults::parse("commit.stored:0").is_err());
    }
}
