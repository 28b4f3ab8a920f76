//! The shape of `src`, held by a test.
