//! One layer as a read-only tree: a core that knows no FUSE, and a thin adapter.

pub mod adopt;
pub mod kept;
