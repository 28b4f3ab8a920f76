//! What the kernel says of this process, under the names that every Prometheus client uses.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Numbers of this process; zeros where the kernel does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Process {
    /// Resident memory, in bytes.
    pub resident: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// CPU time used, user and system.
    pub cpu: Duration,
    /// When it began to serve, in seconds since 1970.
    pub started: f64,
}

impl Process {
    /// Of this process, which began to serve `uptime` ago.
    #[must_use]
    pub fn of_this(uptime: Duration) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let started = now.unwrap_or_default().saturating_sub(uptime);
        let entries = std::fs::read_dir("/proc/self/fd");
        let times = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Self {
            resident: resident().unwrap_or(0),
            descriptors: entries.map_or(0, |entries| entries.count() as u64),
            cpu: times.try_into().unwrap_or_default(),
            started: started.as_secs_f64(),
        }
    }
}

fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_descriptors_and_a_past() {
        let process = Process::of_this(Duration::from_secs(60));
        assert!(process.resident > 1 << 20, "{process:?}");
        assert!(process.descriptors >= 3, "{process:?}");
        assert!(process.cpu > Duration::ZERO, "{process:?}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let ago = now.as_secs_f64() - process.started;
        assert!((59.0..62.0).contains(&ago), "{ago}");
    }
}
