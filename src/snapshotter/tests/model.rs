//! Random calls against a naive model, with restarts and failing steps in between.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Bed, key, target};
use crate::layer::NotLazy;
use crate::snapshotter::{Error, Kind};
use crate::store::{Faults, Step};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

#[derive(Debug, Clone)]
enum Op {
    Prepare(usize, usize),
    View(usize, usize),
    Commit(usize, usize),
    Remove(usize),
    RemoveLazy(usize),
    Pull(char, usize),
    Cleanup,
    Restart,
    /// The next pass of this step fails, after a restart.
    Fault(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let name = 0..NAMES.len();
    // One more stands for none, and then for lazy snapshots.
    let parent = 0..NAMES.len() + 3;
    prop_oneof![
        4 => (name.clone(), parent.clone()).prop_map(|(name, parent)| Op::Prepare(name, parent)),
        2 => (name.clone(), parent.clone()).prop_map(|(name, parent)| Op::View(name, parent)),
        4 => (name.clone(), name.clone()).prop_map(|(name, from)| Op::Commit(name, from)),
        3 => name.prop_map(Op::Remove),
        1 => (0..2_usize).prop_map(Op::RemoveLazy),
        3 => (prop_oneof![Just('k'), Just('l'), Just('z')], parent)
            .prop_map(|(layer, parent)| Op::Pull(layer, parent)),
        1 => Just(Op::Cleanup),
        1 => Just(Op::Restart),
        1 => (0..Step::ALL.len()).prop_map(Op::Fault),
    ]
}

/// Name to kind and parent.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Model(BTreeMap<String, (Kind2, String)>);

/// [`Kind`], in an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind2 {
    View,
    Active,
    Committed,
    Lazy,
}

impl Model {
    fn may_be_parent(&self, name: &str) -> bool {
        let kind = self.0.get(name).map(|(kind, _)| *kind);
        name.is_empty() || matches!(kind, Some(Kind2::Committed | Kind2::Lazy))
    }

    fn create(&mut self, kind: Kind2, name: &str, parent: &str) -> bool {
        let fits = !self.0.contains_key(name) && self.may_be_parent(parent);
        if fits {
            self.0.insert(name.to_owned(), (kind, parent.to_owned()));
        }
        fits
    }

    fn commit(&mut self, name: &str, from: &str) -> bool {
        let parent = match self.0.get(from) {
            Some((Kind2::Active, parent)) if !self.0.contains_key(name) => parent.clone(),
            _ => return false,
        };
        self.0.remove(from);
        self.0.insert(name.to_owned(), (Kind2::Committed, parent));
        true
    }

    fn remove(&mut self, name: &str) -> bool {
        let is_parent = self.0.values().any(|(_, parent)| parent == name);
        !is_parent && self.0.remove(name).is_some()
    }

    fn lazy(&self) -> Vec<String> {
        let lazy = self.0.iter().filter(|(_, (kind, _))| *kind == Kind2::Lazy);
        lazy.map(|(name, _)| name.clone()).collect()
    }

    fn parent(&self, number: usize) -> String {
        let lazy = || {
            self.lazy()
                .get(number - NAMES.len())
                .cloned()
                .unwrap_or_default()
        };
        NAMES
            .get(number)
            .map_or_else(lazy, |name| (*name).to_owned())
    }
}

/// What the snapshotter says there is.
fn seen(bed: &Bed) -> Model {
    let mut model = Model::default();
    for name in bed.names(&[]) {
        let record = bed.s().stat(&key(&name)).unwrap();
        let kind = match record.kind {
            Kind::View => Kind2::View,
            Kind::Active => Kind2::Active,
            Kind::Committed if record.lazy.is_some() => Kind2::Lazy,
            Kind::Committed => Kind2::Committed,
        };
        let parent = record.parent.as_ref().map_or("", |parent| parent.as_str());
        model.0.insert(name, (kind, parent.to_owned()));
    }
    model
}

/// Does one call on both. `None` if the snapshotter failed for no fault of the call.
async fn call(bed: &mut Bed, model: &mut Model, op: &Op) -> Option<(bool, bool)> {
    let expected;
    let result: Result<bool, Error> = match op {
        Op::Prepare(name, parent) => {
            let (name, parent) = (NAMES[*name], model.parent(*parent));
            expected = model.create(Kind2::Active, name, &parent);
            bed.prepare(name, &parent).await.map(|_| true)
        }
        Op::View(name, parent) => {
            let (name, parent) = (NAMES[*name], model.parent(*parent));
            expected = model.create(Kind2::View, name, &parent);
            bed.view(name, &parent).await.map(|_| true)
        }
        Op::Commit(name, from) => {
            expected = model.commit(NAMES[*name], NAMES[*from]);
            bed.commit(NAMES[*name], NAMES[*from]).await.map(|()| true)
        }
        Op::Remove(name) => {
            expected = model.remove(NAMES[*name]);
            bed.s().remove(key(NAMES[*name])).await.map(|()| true)
        }
        Op::RemoveLazy(number) => {
            let name = model.lazy().get(*number).cloned()?;
            expected = model.remove(&name);
            bed.s().remove(key(&name)).await.map(|()| true)
        }
        Op::Pull(layer, parent) => {
            let parent = model.parent(*parent);
            expected = model.may_be_parent(&parent) && *layer != 'z';
            let pulled = bed.pull("pull", *layer, &parent).await;
            if pulled.as_ref().is_ok_and(|lazy| !*lazy) {
                bed.s().remove(key("pull")).await.unwrap();
            }
            for name in bed.find(*layer, &parent) {
                model.0.insert(name, (Kind2::Lazy, parent.clone()));
            }
            pulled
        }
        Op::Cleanup => {
            expected = true;
            bed.s().cleanup().await.map(|()| true)
        }
        Op::Restart => {
            expected = true;
            bed.reopen().await;
            Ok(true)
        }
        Op::Fault(step) => {
            expected = true;
            bed.close().await;
            let step = Step::ALL[*step];
            let at_start = step.name().starts_with("recover.");
            let faults = if at_start {
                Faults::none()
            } else {
                Faults::failing(step, 1)
            };
            bed.open(faults).await;
            Ok(true)
        }
    };
    match result {
        Err(Error::Io { .. } | Error::Store(_)) => None,
        result => Some((result.unwrap_or(false), expected)),
    }
}

async fn run(ops: Vec<Op>) {
    let mut bed = Bed::new().await;
    bed.layers.refuse('z', NotLazy::PlainGzip);
    let mut model = Model::default();
    let mut armed = false;
    for op in &ops {
        armed = armed || matches!(op, Op::Fault(_));
        let before = model.clone();
        match call(&mut bed, &mut model, op).await {
            Some((worked, expected)) if worked == expected => {}
            // A step failed: the call as a whole must not have happened, unless it was a lazy one,
            // which then went the ordinary way.
            _ => {
                assert!(
                    armed || matches!(op, Op::RemoveLazy(_)),
                    "{op:?} after {before:?}"
                );
                model = before;
                if let Op::Pull(layer, parent) = op {
                    let parent = model.parent(*parent);
                    assert!(bed.find(*layer, &parent).len() <= 1, "{}", target(*layer));
                }
            }
        }
        assert_eq!(seen(&bed), model, "after {op:?}");
    }
    bed.reopen().await;
    assert_eq!(seen(&bed), model, "after a last restart");
    bed.s().cleanup().await.unwrap();
    assert_eq!(bed.folders(), model.0.len());
    for _ in 0..200 {
        // Layers are mounted again in the background.
        if bed.layers.mounted() == model.lazy().len() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{} mounts for {:?}", bed.layers.mounted(), model.lazy());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_snapshotter_does_what_the_model_does(ops in prop::collection::vec(op(), 1..40)) {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
            .block_on(run(ops));
    }
}
