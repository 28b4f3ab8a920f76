//! `crfs profile`: what the starts of an image read, as a list for `crfs convert --prefetch`.
//!
//! A line is a path, a tab, and the first and last byte of what is read of it, as in an HTTP `Range`.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::cli::Outcome;
use crate::cli::out;
use crate::cli::place::Place;
use crate::layer::profile::{Folder, Image, Profile};
use crate::oci::{Asked, Digest};

/// Print which files an image's containers read first, in that order
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crfs profile                                            list the images there is a profile of
  crfs profile registry.example/app:1 > start-files.txt   path and bytes of each piece, in the order of first read
  crfs convert SRC DST --prefetch start-files.txt         lay those files out where nodes fetch them at once
  crfs profile sha256:6d2a... --json                      by the digest of the manifest

A running daemon writes a profile down a second after a container's start has read its last, and uses
it by itself the next time the image is pulled. This command only reads what is on disk; the daemon need
not run, and the image may be gone.")]
pub(super) struct Args {
    /// HOST/NAME:TAG or HOST/NAME@DIGEST as it was pulled, or the digest of its manifest; without it all are listed
    #[arg(value_name = "IMAGE")]
    image: Option<String>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// What `--json` prints of a profile.
#[derive(Serialize)]
struct Report<'a> {
    images: &'a [Image],
    layers: &'a [Digest],
    /// Seconds since 1970.
    updated: u64,
    starts: u32,
    bytes: u64,
    /// How many files; the list itself only where one image was asked for.
    files: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    paths: Option<Vec<String>>,
}

pub(super) fn run(args: Args) -> Outcome {
    let root = args.place.root()?;
    let (profiles, damaged) = Folder::new(&root).all()?;
    for error in damaged {
        eprintln!("crfs: {error}");
    }
    let mut text = match &args.image {
        None if args.json => json(
            &profiles
                .iter()
                .map(|p| report(p, false))
                .collect::<Vec<_>>(),
        )?,
        None => profiles.iter().flat_map(lines).collect(),
        Some(image) => {
            let asked: Asked = image.parse()?;
            let found = profiles.iter().find(|profile| is_of(&asked, profile));
            let found = found.ok_or_else(|| {
                let root = root.display();
                format!(
                    "no start of {image} was recorded in {root} yet (crfs profile lists those that were)"
                )
            })?;
            match args.json {
                true => json(&report(found, true))?,
                false => pieces(found),
            }
        }
    };
    if text.is_empty() && args.image.is_none() {
        text = format!("no start was recorded in {} yet\n", root.display());
    }
    out::print(format_args!("{text}"))?;
    Ok(ExitCode::SUCCESS)
}

fn is_of(asked: &Asked, profile: &Profile) -> bool {
    let mut images = profile.images.iter();
    images.any(|image| asked.is_of(Some(image.manifest), [image.name.as_str()]))
}

fn report(profile: &Profile, in_full: bool) -> Report<'_> {
    Report {
        images: &profile.images,
        layers: &profile.layers,
        updated: profile.updated,
        starts: profile.starts,
        bytes: profile.bytes(),
        files: profile.paths().count(),
        paths: in_full.then(|| profile.paths().collect()),
    }
}

fn pieces(profile: &Profile) -> String {
    let pieces = profile.pieces().into_iter();
    // A list of lines cannot carry a path with a line break.
    let listed = pieces.filter(|(path, bytes)| !path.contains(['\n', '\r']) && !bytes.is_empty());
    listed
        .map(|(path, bytes)| format!("{path}\t{}-{}\n", bytes.start, bytes.end - 1))
        .collect()
}

fn json(value: &impl Serialize) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(value).map(|text| text + "\n")
}

/// A line for each name the profile goes by.
fn lines(profile: &Profile) -> impl Iterator<Item = String> {
    let (files, megabytes) = (profile.paths().count(), profile.bytes() as f64 / 1e6);
    let (starts, age) = (profile.starts, age(profile.updated));
    let images = profile.images.iter();
    images.map(move |Image { name, manifest }| {
        format!("{name} {manifest} {files} files, {megabytes:.1} MB, {starts} starts, {age} ago\n")
    })
}

fn age(since: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = now.map_or(0, |now| now.as_secs().saturating_sub(since));
    match Duration::from_secs(seconds).as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}
