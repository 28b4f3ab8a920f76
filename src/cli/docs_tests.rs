//! The commands in the documentation are commands.

use clap::Parser as _;
use clap::error::ErrorKind;

use super::Cli;

/// The commands of a text: lines of code that begin with `crfs`, and code within a sentence that does.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(code) = line.strip_prefix("    ") {
            found.push(code.trim().to_owned());
        } else {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    found.retain(|command| command.starts_with("crfs "));
    found
}

/// What the shell would pass on: without comments, pipes, and what only stands for something.
fn arguments(command: &str) -> Vec<&str> {
    let ends = [" #", " |", " >", " &"];
    let end = ends.iter().filter_map(|end| command.find(end)).min();
    let words = command
        .get(..end.unwrap_or(command.len()))
        .unwrap_or_default();
    let words = words
        .split_whitespace()
        .filter(|word| !word.starts_with('['));
    let placed = words.map(|word| match word {
        "IMAGE" | "REF" | "SRC" | "DST" => "r.io/app:1",
        word => word,
    });
    placed.collect()
}

#[test]
fn every_command_in_the_documentation_is_one() {
    let texts = [
        ("README.md", include_str!("../../README.md")),
        (
            "TROUBLESHOOTING.md",
            include_str!("../../deploy/TROUBLESHOOTING.md"),
        ),
        ("KUBERNETES.md", include_str!("../../deploy/KUBERNETES.md")),
        ("METRICS.md", include_str!("../../deploy/METRICS.md")),
        ("config.toml", include_str!("../../deploy/config.toml")),
    ];
    let mut count = 0;
    for (name, text) in texts {
        for command in commands(text) {
            count += 1;
            let Err(error) = Cli::try_parse_from(arguments(&command)) else {
                continue;
            };
            // A subcommand, or one of its flags, may be spoken of without what it needs.
            let is_name = match arguments(&command).as_slice() {
                [_, _] => error.kind() == ErrorKind::MissingRequiredArgument,
                [_, _, flag] => flag.starts_with("--") && error.kind() == ErrorKind::InvalidValue,
                _ => false,
            };
            assert!(is_name, "{name}: {command}: {error}");
        }
    }
    assert!(count > 40, "{count} commands");
}
