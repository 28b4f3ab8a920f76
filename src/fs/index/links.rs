//! Hard links to what comes later in the TOC, or to links that do.
//!
//! Most links name a file that was there before and never come here. The others are followed when
//! everything has been read: each chain is walked once, however long, without recursion, and one
//! that leads back to itself or nowhere refuses the layer.

use crate::fs::index::error::{Error, TreeError};
use crate::fs::index::slots::PENDING;
use crate::fs::index::tree::Tree;

/// A link whose target was not known when it came.
struct Link {
    name: Box<[u8]>,
    target: Box<[u8]>,
}

/// All links of which the target is not known yet.
#[derive(Default)]
pub struct Links(Vec<Link>);

/// What is known of a link while they are followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    Nothing,
    OnTheWay,
    Node(u32),
}

impl Links {
    /// Remembers the link and returns its number.
    ///
    /// # Errors
    /// [`TreeError::TooMany`].
    pub fn add(&mut self, name: &[u8], target: &[u8]) -> Result<u32, TreeError> {
        let number = u32::try_from(self.0.len()).ok();
        let number = number.filter(|number| *number < PENDING);
        self.0.push(Link {
            name: name.into(),
            target: target.into(),
        });
        number.ok_or(TreeError::TooMany(PENDING))
    }

    /// Points every slot that waits for a link at the node it leads to.
    ///
    /// # Errors
    /// [`TreeError::LinkMissing`], [`TreeError::LinkLoop`], [`TreeError::LinkFolder`], with the
    /// link's name. A link that was replaced later is not followed.
    pub fn resolve(&self, tree: &mut Tree) -> Result<(), Error> {
        if self.0.is_empty() {
            return Ok(());
        }
        let mut seen = vec![Seen::Nothing; self.0.len()];
        for number in 0..tree.slots.len() {
            let target = tree.slots.target(number).unwrap_or_default();
            if target & PENDING != 0 {
                let node = self.follow(tree, &mut seen, target & !PENDING)?;
                tree.slots.point(number, node);
            }
        }
        Ok(())
    }

    fn follow(&self, tree: &Tree, seen: &mut [Seen], from: u32) -> Result<u32, Error> {
        let mut way = Vec::new();
        let mut at = from;
        let node = loop {
            match seen.get(at as usize).copied() {
                Some(Seen::Node(node)) => break node,
                Some(Seen::Nothing) => {}
                Some(Seen::OnTheWay) | None => return Err(self.refuse(at, TreeError::LinkLoop)),
            }
            if let Some(state) = seen.get_mut(at as usize) {
                *state = Seen::OnTheWay;
            }
            way.push(at);
            let link = self.0.get(at as usize);
            let target = link
                .and_then(|link| tree.find(&link.target))
                .and_then(|slot| tree.slots.target(slot))
                .ok_or_else(|| self.refuse(at, TreeError::LinkMissing))?;
            if target & PENDING == 0 {
                break target;
            }
            at = target & !PENDING;
        };
        if tree.is_folder(node) {
            return Err(self.refuse(from, TreeError::LinkFolder));
        }
        for passed in way {
            if let Some(state) = seen.get_mut(passed as usize) {
                *state = Seen::Node(node);
            }
        }
        Ok(node)
    }

    fn refuse(&self, link: u32, why: TreeError) -> Error {
        let name = self.0.get(link as usize).map(|link| &*link.name);
        why.of(name.unwrap_or_default())
    }
}
