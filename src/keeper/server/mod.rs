//! The server's side of the keeper: what it holds, and what it notes for its successor.
//!
//! * [`held`]: the descriptors that are also in the store, and the watch over the keeper;
//! * [`state`]: the memfd with what a successor cannot derive.

mod held;
mod state;

pub use held::{Held, is_server, tell_failure};
pub use state::{Mount, Open, OpenFile, Opened, Phase, State};
