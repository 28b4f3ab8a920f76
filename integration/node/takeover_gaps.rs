//! How long readers wait for the next server: from the death of one to the first answers of the next,
//! by the number of mounts, and where that time goes.
//!
//! Up to 200 mounts, and more rounds: `integration/run.sh --long takeover_gaps`

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crfs::keeper::{self, Folder};
use rustix::process::{Pid, Signal, kill_process};

use crate::bed::{self, Bed, CRFS};
use crate::many_layers;
use crate::serve::{self, Image, Serve};
use crate::snapshots_client::Client;
use crate::takeover_rig::kernel_repeats_requests;

/// All mounts together are asked so often: enough to see a gap, too little to make one.
const PAUSE: Duration = Duration::from_micros(200);
/// The longest gap that is borne, in the median of the rounds.
const MEDIAN: Duration = Duration::from_millis(200);

/// One thread a mount that asks it again and again for what the kernel never remembers.
struct Askers {
    stop: Arc<AtomicBool>,
    /// Longest call of each since the last round began, in microseconds.
    longest: Vec<Arc<AtomicU64>>,
    threads: Vec<JoinHandle<()>>,
}

impl Askers {
    fn start(mounts: Vec<PathBuf>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let pause = PAUSE * u32::try_from(mounts.len()).unwrap();
        let mut askers = Self {
            stop: Arc::clone(&stop),
            longest: Vec::new(),
            threads: Vec::new(),
        };
        for mount in mounts {
            let (stop, longest) = (Arc::clone(&stop), Arc::<AtomicU64>::default());
            askers.longest.push(Arc::clone(&longest));
            askers.threads.push(thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let from = Instant::now();
                    rustix::fs::statvfs(&mount).unwrap();
                    let took = u64::try_from(from.elapsed().as_micros()).unwrap();
                    longest.fetch_max(took, Ordering::Relaxed);
                    thread::sleep(pause);
                }
            }));
        }
        askers
    }

    /// The longest call on any mount since this was last asked. Each answers once more before.
    fn gap(&self) -> Duration {
        thread::sleep(Duration::from_millis(50));
        let longest = self
            .longest
            .iter()
            .map(|own| own.swap(0, Ordering::Relaxed));
        Duration::from_micros(longest.max().unwrap())
    }

    /// None may have failed.
    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

/// When the last line with these words was logged, since midnight.
fn logged(log: &str, words: &str) -> Duration {
    let line = log.lines().rfind(|line| line.contains(words)).unwrap();
    let clock = line.split_once('T').unwrap().1;
    let mut parts = clock.split([':', 'Z']).map(|part| part.parse::<f64>());
    let mut next = || parts.next().unwrap().unwrap();
    Duration::from_secs_f64(next() * 3600.0 + next() * 60.0 + next())
}

fn since_midnight() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now - Duration::from_secs(now.as_secs() / 86_400 * 86_400)
}

/// Of the rounds: the least, the median, the greatest.
fn spread(mut times: Vec<Duration>) -> (Duration, String) {
    times.sort();
    let median = times[times.len() / 2];
    let (least, greatest) = (times[0], times[times.len() - 1]);
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let text = format!("{:.0} ({:.0}-{:.0})", ms(median), ms(least), ms(greatest));
    (median, text)
}

/// Waits until another server than `before` serves everything.
fn until_served(daemon: &Serve, before: u32, layers: usize) {
    let folder = Folder::new(&daemon.root()).unwrap();
    let old = format!("\npid {before}\n");
    let served = format!("\nstatus {layers} layers served");
    bed::wait_for("another server", 30, || {
        let state = keeper::state(&folder).unwrap_or_default();
        state.contains("phase ready") && !state.contains(&old) && state.contains(&served)
    });
}

/// Kills the server again and again; the median of the gaps.
fn kills(daemon: &Serve, askers: &Askers, layers: usize, rounds: usize) -> Duration {
    let (mut begun, mut taken, mut gaps, mut ready) = (vec![], vec![], vec![], vec![]);
    for _ in 0..rounds {
        askers.gap();
        let before = daemon.pid();
        let killed = since_midnight();
        kill_process(
            Pid::from_raw(before.try_into().unwrap()).unwrap(),
            Signal::KILL,
        )
        .unwrap();
        until_served(daemon, before, layers);
        gaps.push(askers.gap());
        let log = daemon.log();
        let after = |words| logged(&log, words).saturating_sub(killed);
        begun.push(after("starting"));
        taken.push(after("layers taken over"));
        ready.push(after("serving"));
    }
    let (median, gap) = spread(gaps);
    let [begun, taken, ready] = [begun, taken, ready].map(|times| spread(times).1);
    println!("| {layers} | kill -9 | {begun} | {taken} | {gap} | {ready} |");
    median
}

/// The same for upgrades.
fn upgrades(daemon: &Serve, askers: &Askers, layers: usize, rounds: usize) -> Duration {
    let root = daemon.root().display().to_string();
    let mut gaps = Vec::new();
    for _ in 0..rounds {
        askers.gap();
        let before = daemon.pid();
        bed::crfs(&["upgrade", CRFS, "--root", &root]);
        until_served(daemon, before, layers);
        gaps.push(askers.gap());
    }
    let (median, gap) = spread(gaps);
    println!("| {layers} | `crfs upgrade` | | | {gap} | |");
    median
}

async fn pull(client: &Client, image: &Image, names: &mut Vec<String>, count: usize) {
    while names.len() < count {
        let parent = names.last().cloned().unwrap_or_default();
        let name = serve::pull_layer(client, image, names.len(), &parent, "ns").await;
        names.push(name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_wait_a_moment_for_the_next_server() {
    if !kernel_repeats_requests() {
        return;
    }
    let bed = Bed::up("", &["--only", "registry"]);
    let (counts, rounds): (&[usize], _) = if bed::long() {
        (&[1, 50, 200], 30)
    } else {
        (&[1, 50], 5)
    };
    let image = many_layers::image(&bed, counts.last().copied().unwrap());
    let folder = bed.folder().join("node");
    let daemon = Serve::start(&folder, "[fetch]\nbackground = false\n", &[]);
    let client = daemon.client().await;
    let mut names = Vec::new();
    println!("{rounds} rounds each; milliseconds: median (least-greatest)");
    println!(
        "| mounts | end | process runs | all taken over | longest wait of a reader | calls taken |"
    );
    for count in counts {
        pull(&client, &image, &mut names, *count).await;
        let askers = Askers::start(serve::lazy_mounts(&daemon.root()));
        let killed = kills(&daemon, &askers, *count, rounds);
        let upgraded = upgrades(&daemon, &askers, *count, rounds);
        askers.end();
        for gap in [killed, upgraded] {
            assert!(gap < MEDIAN, "{count} mounts: {gap:?}");
        }
    }
}
