//! Which process a lease belongs to, told apart from every other, so that one that has ended is known.

use std::fmt;
use std::fs;
use std::str::FromStr;

/// A process. It is written as the boot of the machine, the namespace of its number, that number and
/// when it began, in clock ticks since the boot: the number alone may be another's later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    boot: String,
    namespace: String,
    pid: u32,
    began: u64,
}

impl Owner {
    /// This process; `None` without `/proc`.
    pub(super) fn this() -> Option<Self> {
        let stat = Stat::of("self")?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
        Some(Self {
            boot: boot.trim().to_owned(),
            namespace: namespace.to_str()?.to_owned(),
            pid: stat.pid,
            began: stat.began,
        })
    }

    /// Whether it has certainly ended, as `this` process sees it. Of one in another namespace that is
    /// not known.
    pub(super) fn has_ended(&self, this: &Self) -> bool {
        if self.boot != this.boot {
            return true;
        }
        let stat = || Stat::of(&self.pid.to_string());
        self.namespace == this.namespace
            && stat().is_none_or(|stat| stat.has_ended || stat.began != self.began)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            boot,
            namespace,
            pid,
            began,
        } = self;
        write!(f, "{boot}/{namespace}/{pid}/{began}")
    }
}

/// It is nothing that [`Owner`] has written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoOwner;

impl FromStr for Owner {
    type Err = NoOwner;

    fn from_str(text: &str) -> Result<Self, NoOwner> {
        let parts: Vec<&str> = text.split('/').collect();
        let [boot, namespace, pid, began] = parts[..] else {
            return Err(NoOwner);
        };
        Ok(Self {
            boot: boot.to_owned(),
            namespace: namespace.to_owned(),
            pid: pid.parse().map_err(|_| NoOwner)?,
            began: began.parse().map_err(|_| NoOwner)?,
        })
    }
}

/// What is read of `/proc/PID/stat` (`proc_pid_stat(5)`).
struct Stat {
    pid: u32,
    has_ended: bool,
    began: u64,
}

impl Stat {
    fn of(process: &str) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        let (pid, _) = text.split_once(' ')?;
        // The name of the program may have spaces and brackets.
        let mut fields = text.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?;
        // The state is the third field, the time the twenty-second.
        let began = fields.nth(18)?;
        Some(Self {
            pid: pid.parse().ok()?,
            has_ended: matches!(state, "Z" | "X"),
            began: began.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_told_apart_from_those_that_have_ended() {
        let this = Owner::this().unwrap();
        assert_eq!(this.to_string().parse(), Ok(this.clone()));
        assert!(!this.has_ended(&this));

        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let stat = Stat::of(&child.id().to_string()).unwrap();
        let other = Owner {
            pid: stat.pid,
            began: stat.began,
            ..this.clone()
        };
        assert!(!other.has_ended(&this));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(other.has_ended(&this));

        let earlier = Owner {
            began: this.began - 1,
            ..this.clone()
        };
        assert!(earlier.has_ended(&this), "its number is another's now");
        let before = Owner {
            boot: "before".to_owned(),
            ..this.clone()
        };
        assert!(before.has_ended(&this));
        let elsewhere = Owner {
            namespace: "pid:[1]".to_owned(),
            began: 0,
            ..this.clone()
        };
        assert!(!elsewhere.has_ended(&this), "nobody here can say so");
    }

    #[test]
    fn what_is_no_owner_is_not_taken_for_one() {
        for text in ["", "a/b/c", "a/b/1/x", "a/b/x/1", "a/b/1/2/3"] {
            assert_eq!(text.parse::<Owner>(), Err(NoOwner), "{text}");
        }
    }
}
