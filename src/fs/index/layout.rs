//! The numbering of nodes, and which names and chunks belong together on disk.
//!
//! Nodes are numbered folder by folder, breadth first, children sorted by name; a file with several
//! names where it is met first. So the numbers follow from the tree alone, and what one `readdir`
//! of a folder needs (entries, names, inode records) lies together.

use crate::fs::index::error::{Error, TreeError};
use crate::fs::index::slots::{Slot, Slots};
use crate::fs::index::tree::{Is, Node, ROOT, Tree};

/// A tree whose nodes have their places.
pub struct Layout {
    /// Nodes in the order of their inode records.
    pub order: Vec<u32>,
    /// Position of each node's inode record; [`NOWHERE`] if nothing leads to it.
    pub position: Vec<u32>,
    /// Number of links of each node.
    pub links: Vec<u32>,
    /// Position of each folder's parent.
    pub parent: Vec<u32>,
    /// Bytes of all names that are reachable.
    pub names_len: u64,
    children: Children,
}

/// The position of a node that was replaced.
pub const NOWHERE: u32 = u32::MAX;

impl Layout {
    /// Numbers the nodes of a finished tree.
    ///
    /// # Errors
    /// [`TreeError::TooLarge`]: the names need more than 32-bit offsets.
    pub fn new(tree: &Tree) -> Result<Self, Error> {
        let nodes = tree.nodes.len();
        let mut layout = Self {
            order: Vec::with_capacity(nodes),
            position: vec![NOWHERE; nodes],
            links: vec![0; nodes],
            parent: vec![0; nodes],
            names_len: 0,
            children: Children::new(tree),
        };
        layout.place(ROOT);
        layout.bump(ROOT, 2);
        let mut at = 0;
        while let Some(&node) = layout.order.get(at) {
            if tree.is_folder(node) {
                layout.enter(tree, node);
            }
            at += 1;
        }
        let names = layout.names_len + tree.targets.len() as u64;
        if names > u64::from(u32::MAX) {
            return Err(TreeError::TooLarge.of(b""));
        }
        Ok(layout)
    }

    /// The entries of a folder, sorted by name.
    pub fn entries<'a>(&'a self, slots: &'a Slots, node: u32) -> impl Iterator<Item = Slot> + 'a {
        let numbers = self.children.of(node).iter();
        numbers.filter_map(|number| slots.all().get(*number as usize).copied())
    }

    /// How many entries a folder has.
    pub fn entry_count(&self, node: u32) -> usize {
        self.children.of(node).len()
    }

    fn enter(&mut self, tree: &Tree, folder: u32) {
        let range = self.children.range(folder);
        for at in range {
            let number = self.children.sorted.get(at).copied().unwrap_or_default();
            let Some(slot) = tree.slots.all().get(number as usize) else {
                continue;
            };
            self.names_len += tree.slots.name(*slot).len() as u64;
            let node = slot.target;
            if self.position.get(node as usize) == Some(&NOWHERE) {
                self.place(node);
            }
            if tree.is_folder(node) {
                self.bump(node, 2);
                self.bump(folder, 1);
                let parent = self.position.get(folder as usize).copied();
                if let Some(place) = self.parent.get_mut(node as usize) {
                    *place = parent.unwrap_or_default();
                }
            } else {
                self.bump(node, 1);
            }
        }
    }

    fn place(&mut self, node: u32) {
        if let Some(position) = self.position.get_mut(node as usize) {
            // Fits: there are at most MAX_NODES nodes.
            *position = u32::try_from(self.order.len()).unwrap_or(NOWHERE);
            self.order.push(node);
        }
    }

    fn bump(&mut self, node: u32, by: u32) {
        if let Some(links) = self.links.get_mut(node as usize) {
            *links = links.saturating_add(by);
        }
    }
}

/// The numbers of all slots, those of one folder together and sorted by name.
struct Children {
    sorted: Vec<u32>,
    /// Where the slots of each node begin; one more than there are nodes.
    starts: Vec<u32>,
}

impl Children {
    /// Counts, then places each slot: two passes, no comparison but within a folder.
    fn new(tree: &Tree) -> Self {
        let mut starts = vec![0_u32; tree.nodes.len() + 1];
        for slot in tree.slots.all() {
            if let Some(count) = starts.get_mut(slot.folder as usize + 1) {
                *count += 1;
            }
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        let mut next = starts.clone();
        let mut sorted = vec![0; tree.slots.len()];
        for (number, slot) in (0..).zip(tree.slots.all()) {
            let Some(at) = next.get_mut(slot.folder as usize) else {
                continue;
            };
            if let Some(place) = sorted.get_mut(*at as usize) {
                *place = number;
            }
            *at += 1;
        }
        let mut children = Self { sorted, starts };
        children.sort(tree);
        children
    }

    fn sort(&mut self, tree: &Tree) {
        let slots = tree.slots.all();
        let name = |number: &u32| {
            slots
                .get(*number as usize)
                .map(|slot| tree.slots.name(*slot))
        };
        for folder in 0..tree.nodes.len() {
            let range = self.range(u32::try_from(folder).unwrap_or(NOWHERE));
            if let Some(part) = self.sorted.get_mut(range).filter(|part| part.len() > 1) {
                part.sort_unstable_by(|a, b| name(a).cmp(&name(b)));
            }
        }
    }

    fn range(&self, node: u32) -> std::ops::Range<usize> {
        let at = |index: usize| self.starts.get(index).map_or(0, |start| *start as usize);
        let start = at(node as usize);
        start..at(node as usize + 1).max(start)
    }

    fn of(&self, node: u32) -> &[u32] {
        self.sorted.get(self.range(node)).unwrap_or_default()
    }
}

/// Sizes and counts for the header.
#[derive(Debug, Default, Clone, Copy)]
pub struct Totals {
    /// Sum of the sizes of all regular files.
    pub content: u64,
    /// Regular files.
    pub files: u32,
    /// Folders.
    pub folders: u32,
    /// Folders that the TOC does not list.
    pub implicit: u32,
    /// Opaque folders.
    pub opaque: u32,
}

impl Totals {
    /// Counts a node that is reachable.
    pub fn add(&mut self, node: &Node) {
        match node.is {
            Is::File { size, .. } => {
                self.files += 1;
                self.content = self.content.saturating_add(size);
            }
            Is::Folder { opaque, implicit } => {
                self.folders += 1;
                self.implicit += u32::from(implicit);
                self.opaque += u32::from(opaque);
            }
            Is::Plain | Is::Symlink { .. } | Is::Device { .. } => {}
        }
    }
}
