//! The shape of `src`, held by a test: arrows between modules point down, a crate is named only in
//! its one module, files stay small and say what they are for.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]

use std::fs;
use std::path::{Path, PathBuf};

/// Modules by rank, lowest first. A module names only modules of lower rank.
const RANKS: [&[&str]; 12] = [
    &["oci"],
    &[
        "containerd",
        "keeper",
        "overlay",
        "registry",
        "stargz",
        "store",
    ],
    &["blob"],
    &["fs"],
    &["layer"],
    &["snapshotter"],
    &["report"],
    &["convert", "cri", "metrics", "pull", "service", "telemetry"],
    &["config"],
    &["daemon"],
    &["setup"],
    &["cli"],
];

/// Crates that only certain modules may name.
const CONFINED: [(&str, &[&str]); 20] = [
    ("clap", &["cli"]),
    ("containerd_snapshots", &["service"]),
    ("elf", &["layer"]),
    ("flate2", &["stargz"]),
    ("fuser", &["fs"]),
    ("hyper", &["cri", "metrics", "setup"]),
    ("indicatif", &["cli"]),
    ("prometheus_client", &["metrics"]),
    ("reqwest", &["registry"]),
    ("ring", &["registry"]),
    ("serde_saphyr", &["registry"]),
    ("sha2", &["oci"]),
    ("similar", &["setup"]),
    ("sled", &["store"]),
    ("strsim", &["config"]),
    ("tar", &["stargz"]),
    ("toml", &["config", "registry", "setup"]),
    ("toml_edit", &["setup"]),
    ("tonic", &["containerd", "service"]),
    ("tracing_subscriber", &["telemetry"]),
];

const MAX_LINES: usize = 500;

struct Source {
    path: PathBuf,
    module: String,
    text: String,
}

impl Source {
    /// Lines of code, without comments, so that a doc link may point anywhere.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate();
        lines
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
            .map(|(n, l)| (n + 1, l))
    }
}

#[test]
fn arrows_point_down() {
    let mut upward = Vec::new();
    for source in sources() {
        let Some(own) = rank(&source.module) else {
            continue;
        };
        for (number, line) in source.code() {
            for target in modules_named(line) {
                let down = rank(target).is_some_and(|rank| rank < own);
                if target != source.module && !down {
                    let place = source.path.display();
                    upward.push(format!("{place}:{number}: {} -> {target}", source.module));
                }
            }
        }
    }
    assert!(
        upward.is_empty(),
        "a module names one of no lower rank:\n{}",
        upward.join("\n")
    );
}

#[test]
fn every_folder_has_a_rank() {
    for source in sources() {
        let top = matches!(source.module.as_str(), "lib" | "main");
        assert!(
            top || rank(&source.module).is_some(),
            "{} has no rank",
            source.path.display()
        );
    }
}

#[test]
fn a_crate_is_named_in_its_one_module() {
    let mut strays = Vec::new();
    for source in sources() {
        for (number, line) in source.code() {
            for (name, homes) in CONFINED {
                if names_crate(line, name) && !homes.contains(&source.module.as_str()) {
                    strays.push(format!("{}:{number}: {name}", source.path.display()));
                }
            }
        }
    }
    assert!(
        strays.is_empty(),
        "a crate is named outside its module:\n{}",
        strays.join("\n")
    );
}

#[test]
fn mount_calls_are_in_overlay() {
    for source in sources().iter().filter(|source| source.module != "overlay") {
        for (number, line) in source.code() {
            let stray = line.contains("rustix::mount") || line.contains("libc::mount");
            assert!(
                !stray,
                "{}:{number}: mounting belongs in overlay",
                source.path.display()
            );
        }
    }
}

#[test]
fn files_are_small_and_open_with_a_header() {
    for source in sources() {
        let lines = source.text.lines().count();
        let place = source.path.display();
        assert!(
            lines <= MAX_LINES,
            "{place} has {lines} lines (limit {MAX_LINES})"
        );
        assert!(
            source.text.starts_with("//! "),
            "{place} does not say what it is for"
        );
    }
}

#[test]
fn nothing_is_left_unfinished() {
    // Put together here, so that this file does not find itself.
    let marks = ["TO", "FIX", "XX"].map(|mark| match mark {
        "TO" => "TODO".to_owned(),
        "FIX" => "FIXME".to_owned(),
        other => format!("{other}X"),
    });
    for source in sources() {
        for (number, line) in source.text.lines().enumerate() {
            let found = marks.iter().find(|mark| line.contains(mark.as_str()));
            assert!(
                found.is_none(),
                "{}:{}: {found:?}",
                source.path.display(),
                number + 1
            );
        }
    }
}

fn rank(module: &str) -> Option<usize> {
    RANKS.iter().position(|modules| modules.contains(&module))
}

/// Modules named as `crate::module` or in `use crate::{module::…, …}` of one line.
fn modules_named(line: &str) -> Vec<&str> {
    let mut named = Vec::new();
    for after in line.split("crate::").skip(1) {
        let word = |text: &'_ str| {
            text.find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(text.len())
        };
        match after.strip_prefix('{') {
            Some(list) => named.extend(list.split(',').map(|part| {
                let part = part.trim_start();
                &part[..word(part)]
            })),
            None => named.push(&after[..word(after)]),
        }
    }
    named.retain(|name| rank(name).is_some());
    named
}

/// Whether the line has `name::` or `use name` as a word of its own (not `crate::name`, `self::name`).
fn names_crate(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = &line[at + name.len()..];
        let own_word = before.is_none_or(|c| !c.is_alphanumeric() && !"_:.\"".contains(c));
        let path = after.starts_with("::");
        let import = line.trim_start().starts_with("use ") && after.starts_with(';');
        own_word && (path || import)
    })
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let first = path
                    .strip_prefix(&root)
                    .unwrap()
                    .components()
                    .next()
                    .unwrap();
                let module = first.as_os_str().to_str().unwrap().trim_end_matches(".rs");
                let text = fs::read_to_string(&path).unwrap();
                found.push(Source {
                    module: module.to_owned(),
                    text,
                    path,
                });
            }
        }
    }
    assert!(found.len() > 10, "the sources were not found");
    found
}

#[test]
fn the_finders_find() {
    assert_eq!(modules_named("use crate::blob::Cache;"), ["blob"]);
    assert_eq!(
        modules_named("use crate::{oci::Digest, fs::Index};"),
        ["oci", "fs"]
    );
    assert!(names_crate("let x = sled::open(path);", "sled"));
    assert!(names_crate("use tar::Archive;", "tar"));
    assert!(!names_crate("let x = self.tar::<u8>();", "tar"));
    assert!(!names_crate("crate::toml::x", "toml"));
}
