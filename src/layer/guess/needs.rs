//! What a program's own file says that its start needs: a script its interpreter, an ELF file its libraries, and what the
//! dynamic loader itself reads of it.
//!
//! The loader goes through these one after the other, and each is a round trip where nobody foresees it: it maps a
//! library, reads its dynamic section and relocations, applies those to the writable segments, and only then opens the
//! next. Sources: elf(5), ld.so(8), execve(2).

use std::ops::Range;

use elf::abi;
use elf::dynamic::{Dyn, DynamicTable};
use elf::endian::AnyEndian;
use elf::file::{FileHeader, parse_ident};
use elf::parse::ParseError;
use elf::segment::{ProgramHeader, SegmentTable};

/// Bytes of a file that the kernel looks at to tell what it is (`BINPRM_BUF_SIZE`); an ELF file's header is shorter.
const HEAD: u64 = 256;
/// Longest table that is read: program headers and dynamic section have a few dozen entries.
const TABLE: u64 = 64 << 10;
/// Longest path or name (`PATH_MAX`).
const NAME: u64 = 4096;
/// Bytes at the start of a file's code that are taken for its constructors, and what they call first.
const CONSTRUCTORS: u64 = 64 << 10;
/// Most libraries of one file that are looked for, and most folders that it names for them.
const LIBRARIES: usize = 512;
const FOLDERS: usize = 32;

/// Another file that is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The one at this path.
    Path(Vec<u8>),
    /// A program of this name, looked for in `PATH`.
    Program(Vec<u8>),
    /// A library, by the name that the loader looks for.
    Library(Vec<u8>),
}

/// What one file needs; nothing if it is no program.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// Other files, in the order in which they are opened.
    pub wanted: Vec<Wanted>,
    /// Where its libraries are looked for first (`DT_RUNPATH`), as it says it: with `$ORIGIN`.
    pub folders: Vec<Vec<u8>>,
    /// Bytes of the file itself that are read before anything of it runs.
    pub read: Vec<Range<u64>>,
}

/// Bytes of the file that are not here, and without which it cannot be told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lacks(pub Range<u64>);

/// Reads bytes of the file from an offset on; false if they are not here.
pub(super) type Look<'a> = &'a dyn Fn(u64, &mut [u8]) -> bool;

/// What the file of `size` bytes needs, as far as `look` gives them. What is malformed needs nothing: whoever runs it
/// will say so.
pub(super) fn needs(size: u64, look: Look<'_>) -> Result<Needs, Lacks> {
    let content = Content { size, look };
    let found = content.get(0, size.min(HEAD)).and_then(|head| {
        if let Some(line) = head.strip_prefix(b"#!") {
            return Ok(script(line));
        }
        linked(&content, &head)
    });
    match found {
        Err(Stop::Lacks(range)) => Err(Lacks(range)),
        Err(Stop::Other) => Ok(Needs::default()),
        Ok(needs) => Ok(needs),
    }
}

enum Stop {
    Lacks(Range<u64>),
    /// It is something else, or malformed.
    Other,
}

impl From<ParseError> for Stop {
    fn from(_: ParseError) -> Self {
        Self::Other
    }
}

struct Content<'a> {
    size: u64,
    look: Look<'a>,
}

impl Content<'_> {
    fn get(&self, from: u64, len: u64) -> Result<Vec<u8>, Stop> {
        let end = from.checked_add(len).filter(|end| *end <= self.size);
        let end = end.filter(|_| len <= TABLE).ok_or(Stop::Other)?;
        // Fits: it is at most `TABLE`.
        let mut bytes = vec![0; len as usize];
        match (self.look)(from, &mut bytes) {
            true => Ok(bytes),
            false => Err(Stop::Lacks(from..end)),
        }
    }

    /// The text that ends with a zero byte, of at most `most` bytes.
    fn text(&self, from: u64, most: u64) -> Result<Vec<u8>, Stop> {
        let mut text = self.get(from, most.min(NAME))?;
        let end = text.iter().position(|byte| *byte == 0);
        text.truncate(end.unwrap_or(text.len()));
        Ok(text)
    }
}

/// A script's interpreter, from its first line behind the `#!`; of `env` the program too that it looks for.
fn script(line: &[u8]) -> Needs {
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut words = line
        .split(|byte| byte.is_ascii_whitespace())
        .filter(|word| !word.is_empty());
    let Some(interpreter) = words.next() else {
        return Needs::default();
    };
    let mut wanted = vec![Wanted::Path(interpreter.to_vec())];
    if interpreter.ends_with(b"/env") {
        let mut named = words.filter(|word| !word.starts_with(b"-") && !word.contains(&b'='));
        wanted.extend(named.next().map(|name| Wanted::Program(name.to_vec())));
    }
    Needs {
        wanted,
        ..Needs::default()
    }
}

fn linked(content: &Content<'_>, head: &[u8]) -> Result<Needs, Stop> {
    let (ident, tail) = head.split_at_checked(abi::EI_NIDENT).ok_or(Stop::Other)?;
    let header = FileHeader::parse_tail(parse_ident::<AnyEndian>(ident)?, tail)?;
    let table = u64::from(header.e_phnum) * u64::from(header.e_phentsize);
    let table = content.get(header.e_phoff, table)?;
    let segments = SegmentTable::new(header.endianness, header.class, &table);
    let segments: Vec<_> = segments.iter().collect();
    let first = |kind| segments.iter().find(|segment| segment.p_type == kind);

    let mut needs = Needs::default();
    if let Some(loader) = first(abi::PT_INTERP) {
        let path = content.text(loader.p_offset, loader.p_filesz)?;
        needs.wanted.push(Wanted::Path(path));
    }
    let Some(dynamic) = first(abi::PT_DYNAMIC) else {
        return Ok(needs);
    };
    let table = content.get(dynamic.p_offset, dynamic.p_filesz)?;
    let entries = DynamicTable::new(header.endianness, header.class, &table);
    let entries: Vec<_> = entries.iter().collect();
    let dynamic = Dynamic {
        segments: &segments,
        entries: &entries,
    };
    let (strings, len) = dynamic
        .table(abi::DT_STRTAB, abi::DT_STRSZ)
        .ok_or(Stop::Other)?;
    let text = |at: u64| match len.checked_sub(at) {
        Some(left) => content.text(strings.saturating_add(at), left),
        None => Err(Stop::Other),
    };
    for name in dynamic.all(abi::DT_NEEDED).take(LIBRARIES) {
        needs.wanted.push(Wanted::Library(text(name)?));
    }
    let folders = dynamic.all(abi::DT_RUNPATH).next();
    if let Some(folders) = folders.or_else(|| dynamic.all(abi::DT_RPATH).next()) {
        let folders = text(folders)?;
        let folders = folders.split(|byte| *byte == b':');
        needs.folders = folders.take(FOLDERS).map(<[u8]>::to_vec).collect();
    }
    needs.read = dynamic.read();
    Ok(needs)
}

/// What the dynamic section says, with addresses told as offsets in the file.
struct Dynamic<'a> {
    segments: &'a [ProgramHeader],
    entries: &'a [Dyn],
}

impl Dynamic<'_> {
    /// The values of a tag.
    fn all(&self, tag: i64) -> impl Iterator<Item = u64> {
        let entries = self.entries.iter();
        let entries = entries.take_while(|entry| entry.d_tag != abi::DT_NULL);
        let entries = entries.filter(move |entry| entry.d_tag == tag);
        entries.map(|entry| entry.d_val())
    }

    /// Where an address lies in the file.
    fn offset(&self, address: u64) -> Option<u64> {
        let holds = |segment: &ProgramHeader| {
            let at = address.checked_sub(segment.p_vaddr)?;
            (at < segment.p_filesz).then(|| segment.p_offset.checked_add(at))?
        };
        self.loaded().find_map(holds)
    }

    /// The segments that are mapped.
    fn loaded(&self) -> impl Iterator<Item = &ProgramHeader> {
        let segments = self.segments.iter();
        segments.filter(|segment| segment.p_type == abi::PT_LOAD)
    }

    /// Where a table lies, and its length.
    fn table(&self, address: i64, len: i64) -> Option<(u64, u64)> {
        let offset = self.offset(self.all(address).next()?)?;
        Some((offset, self.all(len).next()?))
    }

    /// Symbols, their names and the relocations lie together, behind the header; what is written to is relocated. Then the
    /// constructors run, which linkers put at the start of the code, and in the end the destructors.
    fn read(&self) -> Vec<Range<u64>> {
        const TABLES: [(i64, i64); 4] = [
            (abi::DT_STRTAB, abi::DT_STRSZ),
            (abi::DT_RELA, abi::DT_RELASZ),
            (abi::DT_REL, abi::DT_RELSZ),
            (abi::DT_JMPREL, abi::DT_PLTRELSZ),
        ];
        let tables = TABLES.iter();
        let tables = tables.filter_map(|(address, len)| self.table(*address, *len));
        let end = tables.map(|(offset, len)| offset.saturating_add(len)).max();
        let parts = |flag: u32, most: u64| {
            let flagged = self.loaded().filter(move |one| one.p_flags & flag != 0);
            flagged
                .map(move |one| one.p_offset..one.p_offset.saturating_add(one.p_filesz.min(most)))
        };
        let writable = parts(abi::PF_W, u64::MAX);
        let first = parts(abi::PF_X, CONSTRUCTORS);
        let last = self.all(abi::DT_FINI).filter_map(|at| self.offset(at));
        let last = last.map(|offset| offset..offset.saturating_add(1));
        let tables = std::iter::once(0..end.unwrap_or(0));
        tables.chain(writable).chain(first).chain(last).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layer::testing::Elf;

    fn of(file: &[u8]) -> Needs {
        let all = |at: u64, out: &mut [u8]| {
            out.copy_from_slice(&file[at as usize..at as usize + out.len()]);
            true
        };
        needs(file.len() as u64, &all).unwrap()
    }

    fn library(name: &str) -> Wanted {
        Wanted::Library(name.as_bytes().to_vec())
    }

    #[test]
    fn an_elf_file_needs_its_loader_its_libraries_and_what_is_relocated() {
        let elf = Elf {
            interpreter: Some("/lib/ld.so"),
            needed: &["liba.so.1", "libb.so"],
            runpath: Some("$ORIGIN/../lib:/opt/lib"),
            between: 10_000,
        };
        let file = elf.build();
        let found = of(&file);
        let loader = Wanted::Path(b"/lib/ld.so".to_vec());
        assert_eq!(
            found.wanted,
            [loader, library("liba.so.1"), library("libb.so")]
        );
        assert_eq!(found.folders, [&b"$ORIGIN/../lib"[..], b"/opt/lib"]);
        let [tables, data] = found.read.as_slice() else {
            panic!("{:?}", found.read);
        };
        assert_eq!((tables.start, data.end), (0, file.len() as u64));
        assert_eq!(data.start - tables.end, 10_000, "the code is left out");
        let fixed = Elf {
            interpreter: None,
            needed: &[],
            runpath: None,
            between: 0,
        };
        assert!(of(&fixed.build()).wanted.is_empty());
    }

    #[test]
    fn what_the_linker_makes_is_understood() {
        let found = of(&std::fs::read(std::env::current_exe().unwrap()).unwrap());
        assert!(
            found.wanted.contains(&library("libc.so.6")),
            "{:?}",
            found.wanted
        );
        let loader = |wanted: &Wanted| match wanted {
            Wanted::Path(path) => std::fs::metadata(str::from_utf8(path).unwrap()).is_ok(),
            _ => false,
        };
        assert_eq!(
            found.wanted.iter().filter(|wanted| loader(wanted)).count(),
            1
        );
        assert!(found.read.len() >= 2);
    }

    #[test]
    fn a_script_needs_its_interpreter_and_what_env_looks_for() {
        let path = |path: &str| Wanted::Path(path.as_bytes().to_vec());
        assert_eq!(of(b"#!/bin/sh\nexit").wanted, [path("/bin/sh")]);
        assert_eq!(of(b"#! /usr/bin/perl -w").wanted, [path("/usr/bin/perl")]);
        let node = Wanted::Program(b"node".to_vec());
        let found = of(b"#!/usr/bin/env -S A=b node --x\n").wanted;
        assert_eq!(found, [path("/usr/bin/env"), node]);
        for nothing in [&b"#!"[..], b"#!\n/bin/sh", b"", b"text", b"\x7fELF"] {
            assert_eq!(of(nothing), Needs::default(), "{nothing:?}");
        }
    }

    #[test]
    fn what_is_lacking_is_named_until_nothing_is() {
        let elf = Elf {
            interpreter: None,
            needed: &["liba.so"],
            runpath: None,
            between: 5000,
        };
        let file = elf.build();
        let mut here = vec![false; file.len()];
        let mut asked = Vec::new();
        let found = loop {
            let look = |at: u64, out: &mut [u8]| {
                let range = at as usize..at as usize + out.len();
                out.copy_from_slice(&file[range.clone()]);
                here[range].iter().all(|here| *here)
            };
            match needs(file.len() as u64, &look) {
                Ok(found) => break found,
                Err(Lacks(range)) => {
                    here[range.start as usize..range.end as usize].fill(true);
                    asked.push(range);
                }
            }
            assert!(asked.len() < 10, "{asked:?}");
        };
        assert_eq!(found.wanted, [library("liba.so")]);
        assert_eq!(asked[0].start, 0);
        assert!(
            asked
                .iter()
                .map(|range| range.end - range.start)
                .sum::<u64>()
                < 1000
        );
    }

    proptest! {
        #[test]
        fn no_bytes_lead_astray(
            noise in proptest::collection::vec(any::<(u16, u8)>(), 0..40),
            len in 0_usize..1000,
        ) {
            let elf = Elf {
                interpreter: Some("/lib/ld.so"),
                needed: &["liba.so.1", "libb.so"],
                runpath: Some("/opt/lib"),
                between: 100,
            };
            let mut file = elf.build();
            for (at, byte) in noise {
                let at = usize::from(at) % file.len();
                file[at] = byte;
            }
            file.truncate(file.len().saturating_sub(len % 300));
            let found = of(&file);
            prop_assert!(found.wanted.len() <= 40, "{}", found.wanted.len());
        }
    }
}
