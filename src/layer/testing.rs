//! Layers for the tests of this folder.

use std::path::Path;

use crate::fs::index;
use crate::oci::Digest;
use crate::stargz::{Limits, Toc};

/// Writes the index of a layer of these entries, each as JSON, and gives its TOC.
pub(super) fn build_index(entries: &[String], path: &Path) -> Digest {
    let json = format!(r#"{{"version":1,"entries":[{}]}}"#, entries.join(","));
    let toc = Toc::verify(json.clone().into_bytes(), &Digest::of(json.as_bytes())).unwrap();
    index::build(&toc, &Limits::default(), 1 << 20, Digest::of(b"blob"), path).unwrap();
    *toc.digest()
}

/// The JSON of a file of five bytes with this digest.
pub(super) fn five_bytes(name: &str, mode: u32, offset: u32, digest: &Digest) -> String {
    format!(
        r#"{{"name":"{name}","type":"reg","mode":{mode},"size":5,"offset":{offset},"chunkSize":5,"chunkDigest":"{digest}"}}"#
    )
}
