//! The image-layer formats as pure functions over bytes: footer, TOC, chunks, verification, writing.

pub mod write;
