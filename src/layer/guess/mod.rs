//! What the first start of an image will read, as far as that can be told without having seen one.
//!
//! Each start waits for the same few files one after the other: the users and groups that the runtime looks the
//! container's up in, the dynamic loader with its cache, libc, the program that the image's config names, and what libc reads
//! for its locale ([`locale`]). They are looked up by path over all layers of the image ([`place`]), symlinks followed as in a
//! container. What those programs and all others need that are executed or loaded later, their files say ([`needs`], [`follow`]).

mod follow;
#[cfg(test)]
mod follow_tests;
mod locale;
mod needs;
mod place;

use serde::Deserialize;

use crate::fs::Index;

pub(super) use follow::{Content, Follow, Layer};
use locale::Locale;
pub(super) use place::Place;
use place::find;

/// Folders in which one name is looked for. An image that has more is not meant well.
const MOST_FOLDERS: usize = 64;

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
pub(super) const LARGEST: u64 = 16 << 20;
/// Where a loader looks for libraries (ld.so(8), and what distributions have it look through besides): where several kinds
/// of machine may have theirs, then where there is one.
#[cfg(target_arch = "x86_64")]
const MULTIARCH: &[&str] = &[
    "lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu",
    "usr/local/lib/x86_64-linux-gnu",
];
#[cfg(not(target_arch = "x86_64"))]
const MULTIARCH: &[&str] = &[
    "lib/aarch64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/local/lib/aarch64-linux-gnu",
];
const LIBRARIES: &[&str] = &[
    "lib64",
    "usr/lib64",
    "lib",
    "usr/lib",
    "usr/local/lib",
    "usr/local/lib64",
];

/// Where an image has programs and libraries looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Search {
    /// Folders of programs: `PATH`.
    programs: Vec<Vec<u8>>,
    /// Folders of libraries that come before the usual ones: `LD_LIBRARY_PATH`.
    libraries: Vec<Vec<u8>>,
}

impl Default for Search {
    fn default() -> Self {
        Self::of(&[])
    }
}

impl Search {
    /// By the environment of an image, each entry `NAME=value`.
    fn of(env: &[String]) -> Self {
        let folders = |name: &str| variable(env, name).map(listed);
        Self {
            programs: folders("PATH=").unwrap_or_else(|| listed(PATH)),
            libraries: folders("LD_LIBRARY_PATH=").unwrap_or_default(),
        }
    }

    fn program(&self, stack: &[&Index], name: &[u8]) -> Option<Place> {
        in_folders(stack, self.programs.iter().map(Vec::as_slice), name)
    }

    /// A library that a file looks for in `first`.
    fn library(&self, stack: &[&Index], first: &[Vec<u8>], name: &[u8]) -> Option<Place> {
        if name.contains(&b'/') {
            return find(stack, name);
        }
        let first = first.iter().chain(&self.libraries).map(Vec::as_slice);
        let usual = MULTIARCH.iter().chain(LIBRARIES);
        let usual = usual.map(|folder| folder.as_bytes());
        in_folders(stack, first.chain(usual), name)
    }
}

/// The value of a variable in an environment, by its name with the `=` behind it.
fn variable<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    env.iter().find_map(|entry| entry.strip_prefix(name))
}

/// The folders of a list with colons in between.
fn listed(folders: &str) -> Vec<Vec<u8>> {
    let folders = folders.split(':');
    folders.map(|folder| folder.as_bytes().to_vec()).collect()
}

fn in_folders<'a>(
    stack: &[&Index],
    folders: impl Iterator<Item = &'a [u8]>,
    name: &[u8],
) -> Option<Place> {
    let mut folders = folders.take(MOST_FOLDERS);
    folders.find_map(|folder| find(stack, &[folder, b"/", name].concat()))
}

/// The program that an image starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    /// As its config has it: a path, or a name to look for.
    word: String,
    /// What a path that is not absolute starts from.
    folder: String,
    /// Where names are looked for.
    pub search: Search,
    locale: Option<Locale>,
}

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
        let word = words.into_iter().next()?;
        let env = run.env.unwrap_or_default();
        Some(Self {
            locale: Locale::of(&word, &env),
            word,
            folder: run.working_dir.unwrap_or_default(),
            search: Search::of(&env),
        })
    }

    /// Its file in a container on these layers.
    fn find(&self, stack: &[&Index]) -> Option<Place> {
        match self.word.contains('/') {
            true if self.word.starts_with('/') => find(stack, self.word.as_bytes()),
            true => find(stack, format!("{}/{}", self.folder, self.word).as_bytes()),
            false => self.search.program(stack, self.word.as_bytes()),
        }
    }
}

/// What will be read of these layers, topmost first, in that order.
pub(super) fn files(stack: &[&Index], program: Option<&Program>) -> Vec<Place> {
    let every = EVERY_START.iter();
    let every = every.filter_map(|path| find(stack, path.as_bytes()));
    let locale = program.and_then(|program| program.locale.as_ref());
    let locale = locale.into_iter().flat_map(|locale| locale.files(stack));
    every
        .chain(program.and_then(|program| program.find(stack)))
        .chain(locale)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::testing::{build_index, five_bytes};
    use crate::oci::Digest;

    /// An index of folders (`name/`), symlinks (`name -> target`) and files of 5 bytes.
    pub(in crate::layer::guess) fn layer(entries: &[&str]) -> Index {
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

    pub(in crate::layer::guess) fn program(config: &str) -> Option<Program> {
        Program::of_config(format!(r#"{{"config":{config}}}"#).as_bytes())
    }

    #[test]
    fn the_program_is_the_first_word_and_looked_for_as_a_runtime_does() {
        let layer = layer(&[
            "bin/",
            "bin/app",
            "bin/python3",
            "opt/",
            "opt/bin/",
            "opt/bin/python3",
            "srv/",
            "srv/run",
        ]);
        let found = |config: &str| {
            let place = program(config)?.find(&[&layer])?;
            Some(String::from_utf8(place.path.unwrap()).unwrap())
        };
        let both = r#"{"Entrypoint":["/bin/app","-v"],"Cmd":["x"]}"#;
        assert_eq!(found(both).unwrap(), "bin/app");
        let by_path = |path| {
            format!(r#"{{"Entrypoint":null,"Cmd":["python3"],"Env":["A=b","PATH={path}"]}}"#)
        };
        assert_eq!(found(&by_path("/opt/bin:/bin")).unwrap(), "opt/bin/python3");
        assert_eq!(found(&by_path("/none:/bin")).unwrap(), "bin/python3");
        assert_eq!(
            found(r#"{"Cmd":["app"]}"#).unwrap(),
            "bin/app",
            "runc's own path"
        );
        let beside = r#"{"Cmd":["./run"],"WorkingDir":"/srv"}"#;
        assert_eq!(found(beside).unwrap(), "srv/run");
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
        let place = |path: &str| {
            let found = find(&stack, path.as_bytes())?;
            assert_eq!(found.size, 5);
            Some((found.layer, String::from_utf8(found.path?).unwrap()))
        };
        let python = "usr/bin/python3.11".to_owned();
        assert_eq!(
            place("etc/passwd"),
            Some((0, "etc/passwd".to_owned())),
            "the topmost"
        );
        assert_eq!(place("/opt/python"), Some((1, python.clone())));
        assert_eq!(place("/usr/bin/up"), Some((1, python)));
        for nothing in ["/usr/bin/loop", "/usr", "/none", "/etc/passwd/x", "", "/.."] {
            assert_eq!(place(nothing), None, "{nothing}");
        }
        let program = program(r#"{"Cmd":["python"],"Env":["PATH=/none:/opt"]}"#);
        let found = files(&stack, program.as_ref());
        let layers: Vec<_> = found.iter().map(|file| file.layer).collect();
        assert_eq!(layers, [0, 1], "etc/passwd, the program");
        assert_eq!(files(&stack, None).len(), 1);
    }

    #[test]
    fn a_name_is_looked_for_in_so_many_folders_and_no_more() {
        let layer = layer(&["opt/", "opt/app"]);
        let found = |before: usize| {
            let path = "/none:".repeat(before);
            let config = format!(r#"{{"Cmd":["app"],"Env":["PATH={path}/opt"]}}"#);
            files(&[&layer], program(&config).as_ref()).len()
        };
        assert_eq!((found(MOST_FOLDERS - 1), found(MOST_FOLDERS)), (1, 0));
    }

    #[test]
    fn what_lies_deep_is_found_and_what_lies_too_deep_is_not_looked_for() {
        let path = |depth: usize| format!("{}app", "a/".repeat(depth));
        let mut entries: Vec<_> = (1..=70).map(|depth| "a/".repeat(depth)).collect();
        entries.extend([path(60), path(70)]);
        let entries: Vec<_> = entries.iter().map(String::as_str).collect();
        let layer = layer(&entries);
        assert!(find(&[&layer], path(60).as_bytes()).is_some());
        assert_eq!(find(&[&layer], path(70).as_bytes()), None);
        let winding = format!("{}app", "a/../".repeat(500) + &"a/".repeat(60));
        assert!(find(&[&layer], winding.as_bytes()).is_some());
    }
}
