//! What the first start of an image will read, as far as that can be told without having seen one.
//!
//! Each start waits for the same few files one after the other: the users and groups that the runtime looks the
//! container's up in, the dynamic loader with its cache, libc, and the program that the image's config names. They are
//! looked up by path over all layers of the image, symlinks followed as in a container.

use std::ops::Range;

use serde::Deserialize;

use crate::fs::Index;
use crate::fs::index::Kind;

/// What nearly every start reads, in that order. The names of loaders and folders of libraries are those of Debian's,
/// Red Hat's and Alpine's families for this machine.
#[cfg(target_arch = "x86_64")]
const EVERY_START: &[&str] = &[
    "etc/passwd",
    "etc/group",
    "lib64/ld-linux-x86-64.so.2",
    "lib/ld-musl-x86_64.so.1",
    "etc/ld.so.cache",
    "lib/x86_64-linux-gnu/libc.so.6",
    "lib64/libc.so.6",
];
#[cfg(not(target_arch = "x86_64"))]
const EVERY_START: &[&str] = &[
    "etc/passwd",
    "etc/group",
    "lib/ld-linux-aarch64.so.1",
    "lib/ld-musl-aarch64.so.1",
    "etc/ld.so.cache",
    "lib/aarch64-linux-gnu/libc.so.6",
    "lib64/libc.so.6",
];
/// Where programs are looked for if the image does not say (as runc does).
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Of a larger file only so much is fetched: a loader maps it, and reads what it needs of it.
const LARGEST: u64 = 16 << 20;
/// Symlinks followed on one path, as the kernel's `MAXSYMLINKS`.
const MOST_LINKS: usize = 40;

/// The program that an image starts, as paths where it may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program(Vec<String>);

/// The parts of an image's config that say what is started (OCI image-spec, config.md).
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    config: Option<Run>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Run {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
}

impl Program {
    /// By an image's config; `None` if that names none or cannot be read, which whoever starts it will say.
    pub(super) fn of_config(json: &[u8]) -> Option<Self> {
        let run = serde_json::from_slice::<Document>(json).ok()?.config?;
        let words = [run.entrypoint, run.cmd].into_iter().flatten().flatten();
        let name = words.into_iter().next()?;
        if name.starts_with('/') {
            return Some(Self(vec![name]));
        }
        if name.contains('/') {
            let from = run.working_dir.unwrap_or_default();
            return Some(Self(vec![format!("{from}/{name}")]));
        }
        let env = run.env.unwrap_or_default();
        let path = env.iter().find_map(|entry| entry.strip_prefix("PATH="));
        let folders = path.unwrap_or(PATH).split(':');
        Some(Self(
            folders.map(|folder| format!("{folder}/{name}")).collect(),
        ))
    }
}

/// A file to be fetched, or the start of it, and the layer it is of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct File {
    /// Its place in the stack that was looked through.
    pub layer: usize,
    /// All of its chunks.
    pub chunks: Range<u32>,
    /// Bytes of it to fetch.
    pub bytes: Range<u64>,
}

/// What will be read of these layers, topmost first, in that order.
pub(super) fn files(stack: &[&Index], program: Option<&Program>) -> Vec<File> {
    let every = EVERY_START.iter().filter_map(|path| find(stack, path));
    let program = program.and_then(|program| program.0.iter().find_map(|path| find(stack, path)));
    every.chain(program).collect()
}

/// The regular file at `path` in a container on these layers, topmost first. Whiteouts do not count, nor does what
/// cannot be read: at worst something is fetched that nobody needs.
fn find(stack: &[&Index], path: &str) -> Option<File> {
    let names = |path: &[u8]| -> Vec<Vec<u8>> {
        let names = path.split(|byte| *byte == b'/').rev();
        names.map(<[u8]>::to_vec).collect()
    };
    // Names still to go, the next one last.
    let mut rest = names(path.as_bytes());
    let mut at: Vec<Vec<u8>> = Vec::new();
    let mut links = 0;
    while let Some(name) = rest.pop() {
        match name.as_slice() {
            b"" | b"." => continue,
            b".." => _ = at.pop(),
            _ => at.push(name),
        }
        let here = |(layer, index): (usize, &&Index)| {
            let kind = index.kind_at(at.iter().map(Vec::as_slice)).ok().flatten();
            Some((layer, kind?))
        };
        let (layer, kind) = stack.iter().enumerate().find_map(here)?;
        match kind {
            Kind::Folder { .. } => {}
            Kind::File { size, chunks } if rest.is_empty() => {
                let bytes = 0..size.min(LARGEST);
                return Some(File {
                    layer,
                    chunks,
                    bytes,
                });
            }
            Kind::Symlink { target, len } if links < MOST_LINKS => {
                links += 1;
                let target = stack.get(layer)?.target(target, len).ok()?;
                match target.starts_with(b"/") {
                    true => at.clear(),
                    false => _ = at.pop(),
                }
                rest.extend(names(target));
            }
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::testing::{build_index, five_bytes};
    use crate::oci::Digest;

    /// An index of folders (`name/`), symlinks (`name -> target`) and files of 5 bytes.
    fn layer(entries: &[&str]) -> Index {
        let digest = Digest::of(b"");
        let entry = |(at, entry): (usize, &&str)| match entry.split_once(" -> ") {
            Some((name, target)) => {
                format!(r#"{{"name":"{name}","type":"symlink","linkName":"{target}"}}"#)
            }
            None if entry.ends_with('/') => {
                format!(r#"{{"name":"{entry}","type":"dir","mode":493}}"#)
            }
            None => five_bytes(entry, 0o755, 100 + 100 * at as u32, &digest),
        };
        let entries: Vec<_> = entries.iter().enumerate().map(entry).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        let toc = build_index(&entries, &path);
        Index::open(&path, &toc).unwrap()
    }

    fn program(config: &str) -> Option<Vec<String>> {
        Program::of_config(format!(r#"{{"config":{config}}}"#).as_bytes()).map(|found| found.0)
    }

    #[test]
    fn the_program_is_the_first_word_and_looked_for_as_a_runtime_does() {
        let both = r#"{"Entrypoint":["/bin/app","-v"],"Cmd":["x"]}"#;
        assert_eq!(program(both), Some(vec!["/bin/app".to_owned()]));
        let by_path = r#"{"Entrypoint":null,"Cmd":["python3"],"Env":["A=b","PATH=/opt/bin:/bin"]}"#;
        let paths = ["/opt/bin/python3", "/bin/python3"];
        assert_eq!(program(by_path).unwrap(), paths);
        assert_eq!(
            program(r#"{"Cmd":["sh"]}"#).unwrap().len(),
            6,
            "runc's own path"
        );
        let beside = r#"{"Cmd":["./run"],"WorkingDir":"/srv"}"#;
        assert_eq!(program(beside).unwrap(), ["/srv/./run"]);
        for none in ["null", "{}", r#"{"Cmd":[]}"#, r#"{"Cmd":3}"#] {
            assert_eq!(program(none), None, "{none}");
        }
        assert_eq!(Program::of_config(b"no json"), None);
    }

    #[test]
    fn files_are_found_through_the_symlinks_of_all_layers() {
        let base = layer(&[
            "bin -> usr/bin",
            "etc/",
            "etc/passwd",
            "usr/",
            "usr/bin/",
            "usr/bin/python3 -> python3.11",
            "usr/bin/python3.11",
            "usr/bin/loop -> loop",
            "usr/bin/up -> ../../../usr/./bin/python3",
        ]);
        let top = layer(&["etc/", "etc/passwd", "opt/", "opt/python -> /bin/python3"]);
        let stack = [&top, &base];
        let place = |path: &str| find(&stack, path).map(|found| (found.layer, found.bytes));
        assert_eq!(place("etc/passwd"), Some((0, 0..5)), "the topmost");
        assert_eq!(place("/opt/python"), Some((1, 0..5)));
        assert_eq!(place("/usr/bin/up"), Some((1, 0..5)));
        for nothing in ["/usr/bin/loop", "/usr", "/none", "/etc/passwd/x", "", "/.."] {
            assert_eq!(place(nothing), None, "{nothing}");
        }
        let program = Program(vec!["/none/app".to_owned(), "/opt/python".to_owned()]);
        let found = files(&stack, Some(&program));
        let layers: Vec<_> = found.iter().map(|file| file.layer).collect();
        assert_eq!(layers, [0, 1], "etc/passwd, the program");
        assert_eq!(files(&stack, None).len(), 1);
    }
}
