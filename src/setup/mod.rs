//! A node made ready: `crfs doctor` says what is wrong with it and what to do.
//!
//! Promise: looking changes nothing on the node, and each look ends within seconds.

pub mod containerd;
pub mod doctor;
