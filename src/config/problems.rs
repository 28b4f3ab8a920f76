//! Everything that is wrong with a configuration file, all at once: with its line, and the name that
//! was probably meant.

use std::fmt;
use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use crate::config::names::{fields_of, nearest};
use crate::config::{Config, Misfit};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file, from 1; 0 where it is about no line.
    pub line: usize,
    /// What is wrong, and what to write instead.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.what),
            line => write!(f, "line {line}: {}", self.what),
        }
    }
}

/// A section of the file, as the module that it configures declares it.
pub(super) struct Section {
    pub(super) name: &'static str,
    /// Its keys.
    pub(super) keys: fn() -> &'static [&'static str],
    /// Whether a table of some of its keys can be read.
    can_read: fn(Table) -> Result<(), String>,
}

pub(super) const fn section<T: DeserializeOwned>(name: &'static str) -> Section {
    Section {
        name,
        keys: fields_of::<T>,
        can_read: can_read::<T>,
    }
}

fn can_read<T: DeserializeOwned>(table: Table) -> Result<(), String> {
    let read = Value::Table(table).try_into::<T>();
    // Lines after the first say where, which is known better here.
    let first = |text: String| text.lines().next().unwrap_or_default().to_owned();
    read.map(drop).map_err(|error| first(error.to_string()))
}

/// What is wrong with `text`; empty if it can be read as a [`Config`] whose values fit together.
pub(super) fn find(text: &str, sections: &[Section]) -> Vec<Problem> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let lines = Lines(text);
    if !errors.is_empty() {
        let problem = |error: &toml::de::Error| Problem {
            line: error.span().map_or(0, |span| lines.of(&span)),
            what: error.message().replace('\n', ", "),
        };
        let mut problems: Vec<_> = errors.iter().map(problem).collect();
        problems.sort_by_key(|problem| problem.line);
        return problems;
    }
    // It was just parsed: without spans it can be as well.
    let Ok(values) = text.parse::<Table>() else {
        return Vec::new();
    };
    let mut search = Search {
        lines,
        sections,
        problems: Vec::new(),
    };
    search.file(table.get_ref(), &values);
    let mut problems = search.problems;
    if problems.is_empty() {
        problems.extend(misfits(text, table.get_ref(), &lines));
    }
    problems.sort_by_key(|problem| problem.line);
    problems
}

/// What is wrong with values that can be read each by itself.
fn misfits(text: &str, table: &DeTable<'_>, lines: &Lines<'_>) -> Vec<Problem> {
    let config: Config = match toml::from_str(text) {
        Ok(config) => config,
        Err(error) => {
            return vec![Problem {
                line: error.span().map_or(0, |span| lines.of(&span)),
                what: error.message().to_owned(),
            }];
        }
    };
    let problem = |misfit: Misfit| Problem {
        line: place(table, misfit.key).map_or(0, |span| lines.of(&span)),
        what: misfit.to_string(),
    };
    config.misfits().into_iter().map(problem).collect()
}

/// Where a key (`section.key`, or `key`) stands.
fn place(table: &DeTable<'_>, key: &str) -> Option<Range<usize>> {
    let find = |table: &DeTable<'_>, wanted: &str| {
        let found = table.iter().find(|(key, _)| key.get_ref() == wanted);
        found.map(|(key, _)| key.span())
    };
    match key.split_once('.') {
        None => find(table, key),
        Some((section, key)) => {
            let (_, section) = table.iter().find(|(name, _)| name.get_ref() == section)?;
            find(section.get_ref().as_table()?, key)
        }
    }
}

#[derive(Clone, Copy)]
struct Lines<'a>(&'a str);

impl Lines<'_> {
    fn of(&self, span: &Range<usize>) -> usize {
        let before = self.0.as_bytes().get(..span.start).unwrap_or_default();
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }
}

struct Search<'a> {
    lines: Lines<'a>,
    sections: &'a [Section],
    problems: Vec<Problem>,
}

impl Search<'_> {
    fn note(&mut self, span: &Range<usize>, what: String) {
        let line = self.lines.of(span);
        self.problems.push(Problem { line, what });
    }

    fn file(&mut self, table: &DeTable<'_>, values: &Table) {
        let (sections, keys) = (self.sections, fields_of::<Config>());
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let Some(plain) = values.get(name) else {
                continue;
            };
            if let Some(section) = sections.iter().find(|section| section.name == name) {
                self.section(section, key, value, plain);
            } else if keys.contains(&name) {
                self.value("", name, &value.span(), plain, can_read::<Config>);
            } else {
                let what = self.unknown("", name, keys, value.get_ref().is_table());
                self.note(&key.span(), what);
            }
        }
    }

    fn section(
        &mut self,
        section: &Section,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
        plain: &Value,
    ) {
        let (Some(table), Some(values)) = (value.get_ref().as_table(), plain.as_table()) else {
            let name = section.name;
            self.note(
                &key.span(),
                format!("{name} is a section: write [{name}], and its keys below"),
            );
            return;
        };
        let keys = (section.keys)();
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let Some(plain) = values.get(name) else {
                continue;
            };
            if keys.contains(&name) {
                self.value(section.name, name, &value.span(), plain, section.can_read);
            } else {
                let what = self.unknown(section.name, name, keys, false);
                self.note(&key.span(), what);
            }
        }
    }

    /// Reads a key's value alone.
    fn value(
        &mut self,
        section: &str,
        name: &str,
        span: &Range<usize>,
        value: &Value,
        can_read: fn(Table) -> Result<(), String>,
    ) {
        let alone = std::iter::once((name.to_owned(), value.clone())).collect();
        if let Err(why) = can_read(alone) {
            self.note(span, format!("{}: {why}", full(section, name)));
        }
    }

    fn unknown(&self, section: &str, name: &str, keys: &[&'static str], is_table: bool) -> String {
        let elsewhere = self
            .sections
            .iter()
            .filter(|other| (other.keys)().contains(&name));
        let places: Vec<_> = elsewhere.map(|other| format!("[{}]", other.name)).collect();
        let hint = if let Some(near) = nearest(name, keys) {
            match is_table {
                true => format!(" (did you mean [{near}]?)"),
                false => format!(" (did you mean {near}?)"),
            }
        } else if !places.is_empty() {
            format!(" (it belongs below {})", places.join(" or "))
        } else if fields_of::<Config>().contains(&name) {
            " (it belongs above the first section)".to_owned()
        } else {
            format!(" (there are {})", keys.join(", "))
        };
        let kind = if is_table { "section" } else { "key" };
        format!("unknown {kind} {}{hint}", full(section, name))
    }
}

fn full(section: &str, name: &str) -> String {
    match section {
        "" => name.to_owned(),
        section => format!("{section}.{name}"),
    }
}
