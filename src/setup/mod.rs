//! A node made ready: `crfs doctor` says what is wrong with it and what to do, `crfs setup` tells
//! containerd of crfs and tries it.
//!
//! Promise: looking and planning change nothing on the node; what is changed is written down first, and
//! can be taken back.

pub mod apply;
pub mod containerd;
pub mod doctor;
pub mod plan;
#[cfg(test)]
mod plan_tests;
mod sample;
pub mod verify;
