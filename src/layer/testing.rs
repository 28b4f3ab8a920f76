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

/// An ELF file (64 bits, little-endian) as linkers lay them out: header, names and relocations at the start, `between` bytes
/// of code, and at the end what is written to, with the dynamic section.
pub(super) struct Elf<'a> {
    pub interpreter: Option<&'a str>,
    pub needed: &'a [&'a str],
    pub runpath: Option<&'a str>,
    pub between: usize,
}

impl Elf<'_> {
    /// Its bytes.
    pub(super) fn build(&self) -> Vec<u8> {
        const HEADERS: usize = 64 + 4 * 56;
        /// Addresses of the second segment are off by that, as linkers have them.
        const SHIFT: u64 = 0x1000;
        let mut strings = vec![0];
        let mut string = |text: &str| {
            let at = strings.len() as u64;
            strings.extend_from_slice(text.as_bytes());
            strings.push(0);
            at
        };
        let mut dynamic: Vec<(u64, u64)> =
            self.needed.iter().map(|name| (1, string(name))).collect();
        dynamic.extend(self.runpath.map(|path| (29, string(path))));
        let interpreter = self
            .interpreter
            .map(|path| (string(path), path.len() as u64 + 1));
        let (relocations, data) = (
            HEADERS + strings.len(),
            HEADERS + strings.len() + 24 + self.between,
        );
        dynamic.extend([(5, HEADERS as u64), (10, strings.len() as u64)]);
        dynamic.extend([(7, relocations as u64), (8, 24), (0, 0)]);
        let table: Vec<u8> = dynamic
            .iter()
            .flat_map(|(tag, value)| [tag.to_le_bytes(), value.to_le_bytes()].concat())
            .collect();

        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend([3, 0, 62, 0, 1, 0, 0, 0]);
        file.extend([0_u64, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
        file.extend([0, 0, 0, 0, 64, 0, 56, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
        let (data, len) = (data as u64, table.len() as u64);
        let mut segment = |kind: u32, flags: u32, offset: u64, shift: u64, len: u64| {
            file.extend([kind.to_le_bytes(), flags.to_le_bytes()].concat());
            let words = [offset, offset + shift, offset + shift, len, len, 0x1000];
            file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        };
        segment(1, 4, 0, 0, relocations as u64 + 24);
        segment(1, 6, data, SHIFT, len);
        segment(2, 6, data, SHIFT, len);
        match interpreter {
            Some((at, len)) => segment(3, 4, HEADERS as u64 + at, 0, len),
            None => segment(4, 4, 0, 0, 0),
        }
        file.extend_from_slice(&strings);
        file.resize(data as usize, 0);
        file.extend(table);
        file
    }
}
