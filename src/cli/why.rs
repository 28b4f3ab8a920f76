//! `crfs why`: which layers of an image are lazy, and why the others are not.

use std::process::ExitCode;

use crate::cli::Outcome;
use crate::cli::ask::{Which, json};
use crate::cli::out;
use crate::cli::table::{Table, bytes, short};
use crate::report::api;

/// Say which layers of an image are lazy, why the others are not, and what would make them so
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crfs why                                        every image on this node
  crfs why registry.example/app:1                 each layer: lazy or not, the reason, the remedy
  crfs why sha256:6d2a...                         by the digest of its manifest
  crfs why registry.example/app:1 --json | jq '.images[].layers[] | select(.lazy | not)'

Of an image that is not on this node its registry is asked, and the answer is what would become of it.
Reasons are kept with the layers and survive a restart. The exit status is 3 if a layer is not lazy.")]
pub(super) struct Args {
    /// HOST/NAME:TAG or HOST/NAME@DIGEST as it was pulled, or the digest of its manifest; without it all are listed
    #[arg(value_name = "IMAGE", default_value = "", hide_default_value = true)]
    image: String,
    #[command(flatten)]
    which: Which,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> Outcome {
    let image = args.image.clone();
    let reply = args
        .which
        .ask(|mut client| async move { client.why(image).await })?;
    match (args.json, reply.images.is_empty()) {
        (true, _) => out::print(format_args!("{}", json(&reply)?))?,
        (false, true) => out::line(format_args!("no image is on this node"))?,
        (false, false) => out::print(format_args!("{}", text(&reply)))?,
    }
    let all_lazy = reply
        .images
        .iter()
        .flat_map(|image| &image.layers)
        .all(|layer| layer.lazy);
    let listed = args.image.is_empty();
    Ok(if all_lazy || listed {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    })
}

fn text(reply: &api::WhyReply) -> String {
    let images = reply.images.iter().map(describe);
    images.collect::<Vec<_>>().join("\n")
}

fn describe(image: &api::Image) -> String {
    let lazy = image.layers.iter().filter(|layer| layer.lazy).count();
    let name = match image.name.as_str() {
        "" => "an image that containerd did not name",
        name => name,
    };
    let (is, of) = (
        if image.present { "are" } else { "would be" },
        image.layers.len(),
    );
    let place = if image.present {
        ""
    } else {
        ", not on this node"
    };
    let mut text = format!(
        "{name} {}{place}: {lazy} of {of} layers {is} lazy\n",
        image.manifest
    );
    let mut table = Table::new(&[" ", "LAYER", " SIZE", "LAZY", "REASON", "WHY"]);
    for (number, layer) in image.layers.iter().enumerate() {
        table.row(vec![
            number.to_string(),
            short(&layer.layer),
            bytes(layer.size),
            if layer.lazy { "yes" } else { "no" }.to_owned(),
            layer.reason.clone(),
            layer.why.clone(),
        ]);
    }
    text.push_str(&table.text());
    let mut told: Vec<&str> = Vec::new();
    for layer in image.layers.iter().filter(|layer| !layer.remedy.is_empty()) {
        if !told.contains(&layer.reason.as_str()) {
            told.push(&layer.reason);
            text = text + "to mend " + &layer.reason + ": " + &layer.remedy + "\n";
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_is_told_once_for_all_layers_of_its_reason() {
        let layer = |reason: &str| api::LayerWhy {
            layer: "sha256:0123456789abcdef".to_owned(),
            lazy: reason.is_empty(),
            reason: reason.to_owned(),
            remedy: if reason.is_empty() { "" } else { "convert it" }.to_owned(),
            size: 1_500,
            ..api::LayerWhy::default()
        };
        let image = api::Image {
            name: "r.io/app:1".to_owned(),
            manifest: "sha256:m".to_owned(),
            present: true,
            layers: vec![layer(""), layer("plain_gzip"), layer("plain_gzip")],
        };
        let text = describe(&image);
        assert!(
            text.starts_with("r.io/app:1 sha256:m: 1 of 3 layers are lazy\n"),
            "{text}"
        );
        assert_eq!(
            text.matches("to mend plain_gzip: convert it").count(),
            1,
            "{text}"
        );
        assert!(
            text.contains("0  sha256:0123456789ab  1.5 kB  yes\n"),
            "{text}"
        );
    }
}
