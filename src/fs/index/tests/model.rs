//! The index against a naive model: random entries, applied one after the other to a tree of maps.

use std::borrow::Cow;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A file or folder of the model. Hard links share a number in the arena.
#[derive(Debug, Clone)]
struct Node {
    what: String,
    uid: u32,
    children: Option<BTreeMap<String, Target>>,
    opaque: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Target {
    Node(usize),
    Later(String),
}

struct Model {
    nodes: Vec<Node>,
}

#[derive(Debug, Clone)]
struct Op {
    path: String,
    kind: OpKind,
    uid: u32,
}

#[derive(Debug, Clone)]
enum OpKind {
    Dir,
    File,
    Symlink,
    Pipe,
    Link(String),
}

/// The layer cannot be served.
#[derive(Debug, PartialEq)]
struct Refused;

impl Model {
    fn new() -> Self {
        let mut model = Self { nodes: Vec::new() };
        model.push("dir", 0, true);
        model
    }

    fn push(&mut self, what: &str, uid: u32, folder: bool) -> usize {
        self.nodes.push(Node {
            what: what.to_owned(),
            uid,
            children: folder.then(BTreeMap::new),
            opaque: false,
        });
        self.nodes.len() - 1
    }

    fn folder(&mut self, path: &str) -> Result<usize, Refused> {
        let mut at = 0;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let known = self.nodes[at]
                .children
                .as_ref()
                .ok_or(Refused)?
                .get(part)
                .cloned();
            at = match known {
                Some(Target::Node(node)) if self.nodes[node].children.is_some() => node,
                Some(_) => return Err(Refused),
                None => {
                    let new = self.push("dir", 0, true);
                    self.children(at).insert(part.to_owned(), Target::Node(new));
                    new
                }
            };
        }
        Ok(at)
    }

    fn children(&mut self, node: usize) -> &mut BTreeMap<String, Target> {
        self.nodes[node].children.as_mut().unwrap()
    }

    fn find(&self, path: &str) -> Option<Target> {
        let mut at = Target::Node(0);
        for part in path.split('/') {
            let Target::Node(node) = at else { return None };
            at = self.nodes[node].children.as_ref()?.get(part)?.clone();
        }
        Some(at)
    }

    fn apply(&mut self, op: &Op) -> Result<(), Refused> {
        let (folder, name) = op.path.rsplit_once('/').unwrap_or(("", &op.path));
        if folder.split('/').any(|part| part.starts_with(".wh.")) {
            return Err(Refused);
        }
        let folder = self.folder(folder)?;
        if name == ".wh..wh..opq" {
            self.nodes[folder].opaque = true;
            return Ok(());
        }
        if let Some(gone) = name.strip_prefix(".wh.") {
            if !self.children(folder).contains_key(gone) {
                let new = self.push("whiteout", op.uid, false);
                self.children(folder)
                    .insert(gone.to_owned(), Target::Node(new));
            }
            return Ok(());
        }
        let target = match &op.kind {
            OpKind::Link(to) => match self.find(to) {
                Some(Target::Node(node)) if self.nodes[node].children.is_some() => {
                    return Err(Refused);
                }
                Some(Target::Node(node)) => Target::Node(node),
                Some(Target::Later(_)) | None => Target::Later(to.clone()),
            },
            OpKind::Dir => {
                if let Some(Target::Node(old)) = self.children(folder).get(name).cloned()
                    && self.nodes[old].children.is_some()
                {
                    self.nodes[old].uid = op.uid;
                    return Ok(());
                }
                Target::Node(self.push("dir", op.uid, true))
            }
            OpKind::File => Target::Node(self.push("file", op.uid, false)),
            OpKind::Symlink => Target::Node(self.push("symlink", op.uid, false)),
            OpKind::Pipe => Target::Node(self.push("pipe", op.uid, false)),
        };
        self.children(folder).insert(name.to_owned(), target);
        Ok(())
    }

    /// All paths, each with what it is, whose, how many names it has, and the first of them.
    fn listing(&self) -> Result<Vec<Line>, Refused> {
        let mut found = Vec::new();
        let mut open = vec![(String::new(), 0)];
        while let Some((path, node)) = open.pop() {
            found.push((path.clone(), node));
            for (name, target) in self.nodes[node].children.iter().flatten() {
                let node = self.resolve(target)?;
                open.push((format!("{path}/{name}"), node));
            }
        }
        // A link that hangs anywhere, also where nothing leads any more, refuses the layer.
        for node in &self.nodes {
            for target in node.children.iter().flatten().map(|(_, target)| target) {
                self.resolve(target)?;
            }
        }
        found.sort();
        Ok(lines(found.iter().map(|(path, number)| {
            let node = &self.nodes[*number];
            let what = if node.opaque { "opaque" } else { &node.what };
            (path.clone(), what.to_owned(), node.uid, *number as u64)
        })))
    }

    fn resolve(&self, target: &Target) -> Result<usize, Refused> {
        let mut at = target.clone();
        for _ in 0..=self.nodes.len() + 100 {
            match at {
                Target::Node(node) if at != *target && self.nodes[node].children.is_some() => {
                    return Err(Refused);
                }
                Target::Node(node) => return Ok(node),
                Target::Later(path) => at = self.find(&path).ok_or(Refused)?,
            }
        }
        Err(Refused)
    }
}

/// Path, what it is, owner, path of the first name of the same file.
type Line = (String, String, u32, String);

fn lines(all: impl Iterator<Item = (String, String, u32, u64)>) -> Vec<Line> {
    let mut first = BTreeMap::new();
    all.map(|(path, what, uid, number)| {
        let first = first.entry(number).or_insert_with(|| path.clone()).clone();
        (path, what, uid, first)
    })
    .collect()
}

fn listing_of(index: &Index) -> Vec<Line> {
    let nodes = walk(index);
    for (path, node) in &nodes {
        let names = nodes
            .iter()
            .filter(|(_, other)| other.ino == node.ino)
            .count();
        if !matches!(node.kind, Kind::Folder { .. }) {
            assert_eq!(node.nlink as usize, names, "{path}");
        }
    }
    lines(nodes.into_iter().map(|(path, node)| {
        let opaque = index.xattrs(&node).unwrap().iter().count() > 0;
        let what = match node.kind {
            Kind::Folder { .. } if opaque => "opaque",
            Kind::Folder { .. } => "dir",
            Kind::File { .. } => "file",
            Kind::Symlink { .. } => "symlink",
            Kind::Char { .. } => "whiteout",
            Kind::Fifo => "pipe",
            Kind::Block { .. } => "block",
        };
        (path, what.to_owned(), node.uid, node.ino.0)
    }))
}

fn paths_of_a_few() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        6 => "[abc]",
        1 => Just(".wh.a".to_owned()),
        1 => Just(".wh..wh..opq".to_owned()),
    ];
    (proptest::collection::vec("[abc]", 0..3), name).prop_map(|(mut parts, name)| {
        parts.push(name);
        parts.join("/")
    })
}

fn ops() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![
        4 => Just(OpKind::Dir),
        4 => Just(OpKind::File),
        1 => Just(OpKind::Symlink),
        1 => Just(OpKind::Pipe),
        2 => "[abc](/[abc]){0,2}".prop_map(OpKind::Link),
    ];
    (paths_of_a_few(), kind, 1..1000_u32).prop_map(|(path, kind, uid)| Op { path, kind, uid })
}

fn entry_of(op: &Op) -> Entry<'_> {
    let kind = match &op.kind {
        OpKind::Dir => EntryKind::Dir,
        OpKind::File => EntryKind::File {
            size: 0,
            chunks: &[],
        },
        OpKind::Symlink => EntryKind::Symlink {
            target: Cow::Borrowed(b"t"),
        },
        OpKind::Pipe => EntryKind::Fifo,
        OpKind::Link(to) => EntryKind::HardLink {
            target: Cow::Borrowed(to.as_bytes()),
        },
    };
    let mut entry = entry(&op.path, kind);
    entry.uid = op.uid;
    entry
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_entries_make_the_tree_of_the_model(ops in proptest::collection::vec(ops(), 0..12)) {
        let mut model = Model::new();
        let expected = ops.iter().try_for_each(|op| model.apply(op)).and_then(|()| model.listing());
        let entries: Vec<_> = ops.iter().map(entry_of).collect();
        match (built(&entries), expected) {
            (Ok(built), Ok(expected)) => {
                prop_assert_eq!(listing_of(&built.index), expected);
                prop_assert!(built.index.verify().is_ok());
            }
            (Err(Error::Tree { .. }), Err(Refused)) => {}
            (built, expected) => {
                let built = built.map(|built| listing_of(&built.index));
                prop_assert!(false, "{built:?} but expected {expected:?}");
            }
        }
    }
}
