//! How the mounts do: whether they move, what became of them, how they come to rest.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::fs::Turns;
use crate::layer::devices::Health;
use crate::layer::live::LiveLayers;
use crate::overlay::DeviceId;

impl LiveLayers {
    /// What became of mounts since this process started, and of reads on those it serves now.
    pub fn health(&self) -> Health {
        let mut health = self.devices.health();
        let (mounts, detached) = (self.mounts.lock(), self.detached.lock());
        health.mounts = mounts.values().map(|_| 1).sum();
        for mount in mounts.values().chain(detached.values()) {
            let counts = mount.served.counts();
            health.failures += counts.failures;
            health.deadlines += counts.deadlines;
            health.panics += counts.panics;
        }
        health
    }

    /// For the end on a kernel that does not repeat requests: answers what was read, reads no more, and
    /// leaves the rest to the next server. Says how many requests and threads
    /// were not done with at the limit.
    pub async fn settle(&self, limit: Duration) -> u64 {
        let until = Instant::now() + limit;
        for (target, mount) in self.mounts.lock().iter() {
            mount.served.part(target);
        }
        loop {
            let left: u64 = {
                let mounts = self.mounts.lock();
                mounts.values().map(|mount| mount.served.unsettled()).sum()
            };
            if left == 0 || Instant::now() > until {
                return left;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Whether every mount's queue has moved since the last call, or is empty. No FUSE thread waits for the
    /// network: one that is at the same request still is stuck, and so is a mount whose requests nobody reads.
    pub fn are_moving(&self) -> bool {
        let now: HashMap<_, _> = self
            .mounts
            .lock()
            .values()
            .chain(self.detached.lock().values())
            .map(|mount| (mount.served.device(), mount.served.turns()))
            .collect();
        let mut looked = self.looked.lock();
        let is_stuck =
            |(device, turns): (&DeviceId, &Turns)| turns.is_stuck_since(looked.get(device));
        let moving = !now.iter().any(is_stuck);
        *looked = now;
        moving
    }
}
