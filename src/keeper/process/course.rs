//! What the keeper decides: when to start, end and restart the server. Pure: time comes in as an
//! argument, deeds go out as values, so every path is a unit test.
//!
//! * A server that dies is started again at once if it had been serving for a while; else after a
//!   pause that doubles. The pause stays short for one that got as far as serving or was killed from
//!   outside, because readers wait for it.
//! * A server that ends because it was told to, or says so, is not started again.
//! * A first start that fails is final when there is nothing to lose: a typing error in the
//!   configuration should be seen, not repeated.
//! * An upgrade is a trial: if the new server does not become ready, the old one is started again.

use std::time::{Duration, Instant};

use crate::keeper::END_LIMIT;

/// Once ready for this long, a server counts as sound and its death as an accident.
const SOUND: Duration = Duration::from_millis(100);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause after a server that had become ready or was killed, and after one that failed.
const PAUSE_KILLED: Duration = Duration::from_millis(200);
const PAUSE_FAILED: Duration = Duration::from_secs(10);
/// How long a server may take to become ready, in a trial and otherwise.
const TRIAL_LIMIT: Duration = Duration::from_secs(20);
const START_LIMIT: Duration = Duration::from_secs(90);

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// With an exit code.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// It was not our child.
    Unknown,
}

/// What the keeper is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    /// Start the server.
    Spawn,
    /// Send it SIGTERM.
    Terminate,
    /// Send it SIGKILL, and say why.
    Kill(&'static str),
    /// The upgrade holds: forget the old program.
    Commit,
    /// The upgrade failed: go back to the old program.
    RollBack,
    /// The server has ended for good, with this exit code.
    Ended(i32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Down {
        start: Option<Instant>,
    },
    Up {
        since: Instant,
        ready: Option<Instant>,
        alive: Instant,
        kill: Option<Instant>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trial {
    None,
    OldEnds,
    NewStarts,
}

/// The state of one server under the keeper.
#[derive(Debug)]
pub(super) struct Course {
    phase: Phase,
    trial: Trial,
    wanted: bool,
    proven: bool,
    stopping: bool,
    deaths: u32,
    silence: Duration,
}

impl Course {
    /// No server runs, none is wanted. `silence`: how long a ready server may go without a sign of
    /// life.
    pub(super) fn new(silence: Duration) -> Self {
        let phase = Phase::Down { start: None };
        let (wanted, proven, stopping) = (false, false, false);
        Self {
            phase,
            trial: Trial::None,
            wanted,
            proven,
            stopping,
            deaths: 0,
            silence,
        }
    }

    /// Whether a server runs or is about to.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Up { .. })
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Up { ready: Some(_), .. }) && self.trial != Trial::OldEnds
    }

    pub(super) fn is_trial(&self) -> bool {
        self.trial != Trial::None
    }

    /// The server is wanted, starting now.
    pub(super) fn start(&mut self, now: Instant) {
        self.wanted = true;
        if let Phase::Down { .. } = self.phase {
            (self.proven, self.deaths) = (false, 0);
            self.phase = Phase::Down { start: Some(now) };
        }
    }

    /// A running server introduced itself.
    pub(super) fn adopt(&mut self, now: Instant) {
        (self.wanted, self.proven, self.stopping) = (true, true, false);
        self.phase = Phase::Up {
            since: now,
            ready: Some(now),
            alive: now,
            kill: None,
        };
    }

    /// Another program is to take the server's place.
    pub(super) fn replace(&mut self, now: Instant) -> Option<Deed> {
        self.wanted = true;
        match &mut self.phase {
            Phase::Up { kill, .. } => {
                self.trial = Trial::OldEnds;
                *kill = Some(now + END_LIMIT);
                Some(Deed::Terminate)
            }
            Phase::Down { start } => {
                self.trial = Trial::NewStarts;
                *start = Some(now);
                None
            }
        }
    }

    /// The server is not wanted any more.
    pub(super) fn stop(&mut self, now: Instant) -> Option<Deed> {
        self.wanted = false;
        match &mut self.phase {
            Phase::Up { kill, .. } => {
                *kill = kill.or(Some(now + END_LIMIT));
                Some(Deed::Terminate)
            }
            Phase::Down { start } => {
                *start = None;
                Some(Deed::Ended(0))
            }
        }
    }

    /// It was started.
    pub(super) fn spawned(&mut self, now: Instant) {
        self.stopping = false;
        self.phase = Phase::Up {
            since: now,
            ready: None,
            alive: now,
            kill: None,
        };
    }

    /// `READY=1`.
    pub(super) fn ready(&mut self, now: Instant) -> Option<Deed> {
        if let Phase::Up { ready, alive, .. } = &mut self.phase {
            *ready = ready.or(Some(now));
            *alive = now;
        }
        if self.trial == Trial::OldEnds {
            return None;
        }
        self.proven = true;
        let held = self.trial == Trial::NewStarts;
        self.trial = Trial::None;
        held.then_some(Deed::Commit)
    }

    /// `WATCHDOG=1`.
    pub(super) fn alive(&mut self, now: Instant) {
        if let Phase::Up { alive, .. } = &mut self.phase {
            *alive = now;
        }
    }

    /// `WATCHDOG_USEC=`.
    pub(super) fn set_silence(&mut self, silence: Duration) {
        self.silence = silence;
    }

    /// `STOPPING=1`: it ends by its own will.
    pub(super) fn stopping(&mut self) {
        self.stopping = true;
    }

    /// It ended. `held`: layers are in the keeper's hands.
    pub(super) fn ended(&mut self, end: End, held: bool, now: Instant) -> Option<Deed> {
        let served = match self.phase {
            Phase::Up {
                ready: Some(ready), ..
            } => Some(now.saturating_duration_since(ready)),
            _ => None,
        };
        self.phase = Phase::Down { start: None };
        let willing = self.stopping || matches!(end, End::Code(0) | End::Signal(2 | 15));
        match self.trial {
            _ if !self.wanted => return Some(self.over(0)),
            Trial::OldEnds => {
                self.trial = Trial::NewStarts;
                self.phase = Phase::Down { start: Some(now) };
                return None;
            }
            Trial::NewStarts => {
                self.trial = Trial::None;
                self.phase = Phase::Down { start: Some(now) };
                return Some(Deed::RollBack);
            }
            Trial::None if willing => return Some(self.over(0)),
            Trial::None => {}
        }
        if let (End::Code(code), false, false) = (end, self.proven, held) {
            return Some(self.over(code));
        }
        let killed = served.is_some() || matches!(end, End::Signal(9) | End::Unknown);
        let pause = self.pause(served, killed);
        self.phase = Phase::Down {
            start: Some(now + pause),
        };
        None
    }

    /// What is due.
    pub(super) fn due(&mut self, now: Instant) -> Option<Deed> {
        if self.deadline()? > now {
            return None;
        }
        match &mut self.phase {
            Phase::Down { start } => {
                *start = None;
                Some(Deed::Spawn)
            }
            Phase::Up { ready, kill, .. } => {
                let why = match (&kill, ready) {
                    (Some(_), _) => "it did not end in time",
                    (None, None) => "it did not become ready in time",
                    (None, Some(_)) => "it gave no sign of life",
                };
                // Not again before it had time to die.
                *kill = Some(now + END_LIMIT);
                Some(Deed::Kill(why))
            }
        }
    }

    /// When something will be due next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Down { start } => start,
            Phase::Up {
                kill: Some(kill), ..
            } => Some(kill),
            Phase::Up {
                ready: None, since, ..
            } => {
                let trial = self.trial == Trial::NewStarts;
                Some(since + if trial { TRIAL_LIMIT } else { START_LIMIT })
            }
            Phase::Up { alive, .. } => Some(alive + self.silence),
        }
    }

    fn over(&mut self, code: i32) -> Deed {
        (self.wanted, self.trial) = (false, Trial::None);
        Deed::Ended(code)
    }

    /// The pause before the next start, `served` being how long the dead one had been ready.
    fn pause(&mut self, served: Option<Duration>, killed: bool) -> Duration {
        if served.is_some_and(|served| served >= SOUND) {
            self.deaths = 0;
            return Duration::ZERO;
        }
        let pause = FIRST_PAUSE * (1 << self.deaths.min(10));
        self.deaths = self.deaths.saturating_add(1);
        pause.min(if killed { PAUSE_KILLED } else { PAUSE_FAILED })
    }
}

#[cfg(test)]
mod tests;
