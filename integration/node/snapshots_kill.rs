//! SIGKILL at every named step and at random moments: what was acknowledged is there after the
//! next start, what was removed is not, and no folder or mount is left over.

use std::collections::BTreeMap;
use std::time::Duration;

use containerd_snapshots::api::snapshots::v1::Kind;
use crfs::store::Step;
use tonic::Status;

use crate::snapshots_client::{Client, Daemon, Layer, Random, RootFolder, is_long, is_lost};

const CLIENTS: usize = 3;
const KEYS: usize = 4;

/// What one client knows of its own snapshots: name to (kind, parent, label).
type Model = BTreeMap<String, (i32, String, String)>;

#[derive(Debug, Clone)]
enum Op {
    Prepare(String, String),
    View(String, String),
    Commit(String, String),
    Remove(String),
    Update(String, String),
    Pull(usize, String),
    Cleanup,
}

/// One client: keys of its own, so that its calls can be checked one by one.
struct Actor {
    number: usize,
    random: Random,
    known: Model,
    /// The call during which the daemon died: it happened or it did not.
    open: Option<Op>,
}

impl Actor {
    fn name(&mut self) -> String {
        format!("client-{}/key {}", self.number, self.random.below(KEYS))
    }

    fn parent(&mut self) -> String {
        let committed = self
            .known
            .iter()
            .filter(|(_, (kind, ..))| *kind == Kind::Committed as i32);
        let mut names: Vec<String> = committed.map(|(name, _)| name.clone()).collect();
        names.push(String::new());
        names.swap_remove(self.random.below(names.len()))
    }

    /// Not a lazy one: layers on layers on layers would make every start longer than the last.
    fn plain_parent(&mut self) -> String {
        let parent = self.parent();
        if parent.starts_with("lazy/") {
            String::new()
        } else {
            parent
        }
    }

    fn any(&mut self) -> String {
        let names: Vec<&String> = self.known.keys().collect();
        match names.len() {
            0 => self.name(),
            len => names[self.random.below(len)].clone(),
        }
    }

    fn next(&mut self) -> Op {
        match self.random.below(20) {
            0..5 => Op::Prepare(self.name(), self.parent()),
            5 => Op::View(self.name(), self.parent()),
            6..9 => Op::Commit(self.name(), self.any()),
            9..12 => Op::Remove(self.any()),
            12..14 => Op::Update(self.any(), self.random.below(1000).to_string()),
            14..18 => Op::Pull(10 * self.number + self.random.below(2), self.plain_parent()),
            _ => Op::Cleanup,
        }
    }

    /// Calls until the daemon dies or `calls` are done.
    async fn run(&mut self, client: &Client, calls: usize) {
        for _ in 0..calls {
            let op = self.next();
            match call(client, &op).await {
                Ok(()) => self.known = self.after(client, &op).await,
                Err(status) if is_lost(&status) => {
                    self.open = Some(op);
                    return;
                }
                // Refused: nothing has changed.
                Err(_) => {}
            }
            if self.open.is_some() {
                return;
            }
        }
    }

    /// The model after a call that worked. The name of a lazy snapshot has to be asked for.
    async fn after(&mut self, client: &Client, op: &Op) -> Model {
        let mut model = applied(&self.known, op);
        if let Op::Pull(number, parent) = op {
            let layer = lazy(*number);
            match client.find(layer, parent).await {
                Ok(found) => {
                    assert_eq!(found.len(), 1, "{op:?}");
                    let entry = (Kind::Committed as i32, parent.clone(), String::new());
                    model.entry(found[0].name.clone()).or_insert(entry);
                }
                Err(_) => self.open = Some(op.clone()),
            }
        }
        model
    }

    /// Compares with what there is after a restart; takes the open call as done or not done.
    fn check(&mut self, seen: &Model) {
        let seen: Model = seen
            .iter()
            .filter(|(name, _)| self.owns(name))
            .map(clone)
            .collect();
        let open = self.open.take();
        let done = open.as_ref().map(|op| applied(&self.known, op));
        let lazily = matches!(open, Some(Op::Pull(..))) && self.differs_by_one_lazy(&seen);
        assert!(
            seen == self.known || done.is_some_and(|done| seen == done) || lazily,
            "client {}: known {:?}\nopen {open:?}\nseen {seen:?}",
            self.number,
            self.known
        );
        self.known = seen;
    }

    fn owns(&self, name: &str) -> bool {
        let lazy_names = (0..2).map(|n| lazy(10 * self.number + n).target());
        name.starts_with(&format!("client-{}/", self.number))
            || lazy_names.into_iter().any(|target| name.contains(&target))
    }

    fn differs_by_one_lazy(&self, seen: &Model) -> bool {
        let known_is_seen = self
            .known
            .iter()
            .all(|(name, entry)| seen.get(name) == Some(entry));
        known_is_seen && seen.len() == self.known.len() + 1
    }
}

fn clone((name, entry): (&String, &(i32, String, String))) -> (String, (i32, String, String)) {
    (name.clone(), entry.clone())
}

fn lazy(number: usize) -> Layer<'static> {
    let image = "lazy";
    Layer { image, number }
}

fn applied(model: &Model, op: &Op) -> Model {
    let mut model = model.clone();
    match op {
        Op::Prepare(name, parent) => {
            let entry = (Kind::Active as i32, parent.clone(), String::new());
            model.insert(name.clone(), entry);
        }
        Op::View(name, parent) => {
            let entry = (Kind::View as i32, parent.clone(), String::new());
            model.insert(name.clone(), entry);
        }
        Op::Commit(name, from) => {
            if let Some((_, parent, _)) = model.remove(from) {
                model.insert(
                    name.clone(),
                    (Kind::Committed as i32, parent, String::new()),
                );
            }
        }
        Op::Remove(name) => {
            model.remove(name);
        }
        Op::Update(name, value) => {
            if let Some(entry) = model.get_mut(name) {
                entry.2.clone_from(value);
            }
        }
        Op::Pull(..) | Op::Cleanup => {}
    }
    model
}

async fn call(client: &Client, op: &Op) -> Result<(), Status> {
    match op {
        Op::Prepare(name, parent) => client.prepare(name, parent, [].into()).await.map(drop),
        Op::View(name, parent) => client.view(name, parent).await.map(drop),
        Op::Commit(name, from) => client.commit(name, from).await,
        Op::Remove(name) => client.remove(name).await,
        Op::Update(name, value) => client.update(name, "value", value).await,
        Op::Pull(number, parent) => {
            let lazily = client.pull("pull", parent, lazy(*number)).await?;
            assert!(lazily, "{op:?}");
            Ok(())
        }
        Op::Cleanup => client.cleanup().await,
    }
}

async fn seen(client: &Client) -> Model {
    let infos = client.list(&[]).await.unwrap();
    let entry = |info: containerd_snapshots::api::snapshots::v1::Info| {
        let value = info.labels.get("value").cloned().unwrap_or_default();
        (info.name, (info.kind, info.parent, value))
    };
    infos.into_iter().map(entry).collect()
}

/// What must hold after each start.
async fn check(root: &RootFolder, client: &Client, actors: &mut [Actor]) {
    let seen = seen(client).await;
    for actor in &mut *actors {
        actor.check(&seen);
    }
    for (name, (kind, ..)) in &seen {
        if *kind != Kind::Committed as i32 {
            client.mounts(name).await.unwrap();
        }
    }
    client.cleanup().await.unwrap();
    assert_eq!(root.folders(), seen.len(), "no folder is left over");
    let is_lazy = |name: &&String| name.starts_with("lazy/");
    let parent = |name: &String| seen.get(name).map(|(_, parent, _)| parent.clone());
    let views = seen
        .iter()
        .filter(|(_, (kind, ..))| *kind == Kind::View as i32);
    // A view has mounts of its own of the lazy layers below it.
    let below = views.flat_map(|(view, _)| std::iter::successors(parent(view), parent));
    let own = below.filter(|name| is_lazy(&name)).count();
    let lazy = seen.keys().filter(is_lazy).count() + own;
    // The API serves before all layers are mounted again, over what the dead daemon has left.
    for _ in 0..500 {
        if root.mounts().len() == lazy {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mounts = root.mounts().len();
    assert_eq!(mounts, lazy, "no mount is left over or missing");
}

/// Calls until the daemon kills itself at `crash`; true if it did.
async fn run_until(root: &RootFolder, actors: &mut [Actor], crash: &str) -> bool {
    let mut daemon = Daemon::spawn(&root.path(), Some(crash));
    if let Some(client) = daemon.connect().await {
        let calls = actors.iter_mut().map(|actor| actor.run(&client, 500));
        futures::future::join_all(calls).await;
    }
    let has_died = daemon.has_ended();
    daemon.kill();
    has_died
}

#[test]
fn killed_at_every_step_nothing_is_lost() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let rounds = if is_long() { 12 } else { 1 };
        let root = RootFolder::new();
        let mut actors: Vec<Actor> = actors(1);
        for pass in 1..=rounds {
            for step in Step::ALL {
                let crash = format!("{}:{pass}", step.name());
                let has_died = run_until(&root, &mut actors, &crash).await;
                assert!(has_died || pass > 1, "{crash} was never reached");
                let (daemon, client) = Daemon::start(&root.path()).await;
                check(&root, &client, &mut actors).await;
                daemon.kill();
            }
        }
    });
}

#[test]
fn killed_at_random_moments_nothing_is_lost() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let rounds = if is_long() { 700 } else { 25 };
        let root = RootFolder::new();
        let mut actors = actors(2);
        let mut random = Random(3);
        for _ in 0..rounds {
            let mut daemon = Daemon::spawn(&root.path(), None);
            let client = daemon.connect().await.expect("the daemon serves");
            let after = Duration::from_millis(random.below(120) as u64);
            let kill = tokio::task::spawn_blocking(move || {
                std::thread::sleep(after);
                daemon.kill();
            });
            let calls = actors.iter_mut().map(|actor| actor.run(&client, 10_000));
            futures::future::join_all(calls).await;
            kill.await.unwrap();
            let (daemon, client) = Daemon::start(&root.path()).await;
            check(&root, &client, &mut actors).await;
            daemon.kill();
        }
    });
}

fn actors(seed: u64) -> Vec<Actor> {
    let actor = |number: usize| Actor {
        number,
        random: Random(seed * 1000 + number as u64),
        known: Model::new(),
        open: None,
    };
    (1..=CLIENTS).map(actor).collect()
}
