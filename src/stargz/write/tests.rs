//! Tests of the writer as a whole.
