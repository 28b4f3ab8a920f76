//! Every metric is in the table, told in the format, and the dashboard asks for no other.

use std::collections::BTreeSet;

use super::{Family, Process, all, encode};
use crate::layer::Reason;
use crate::report::Tallies;

#[test]
fn the_table_lists_every_metric_as_it_is() {
    let table = include_str!("../../deploy/METRICS.md");
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    let listed: BTreeSet<String> = rows.map(str::to_owned).collect();
    let families = all(&Tallies::default(), &Process::default());
    let rows = families.iter().map(|family| {
        let kind = format!("{:?}", family.kind).to_lowercase();
        let labels = family.samples.iter().filter_map(|sample| sample.label);
        let values: Vec<_> = labels
            .clone()
            .map(|(_, value)| format!("`{value}`"))
            .collect();
        let label = match labels.map(|(name, _)| name).next() {
            Some("version") => "`version`".to_owned(),
            Some(name) => format!("`{name}`: {}", values.join(", ")),
            None => String::new(),
        };
        let (name, help) = (family.told_name(), family.help);
        format!("| `{name}` | {kind} | {label} | {help} |").replace("|  |", "| |")
    });
    let rows: BTreeSet<String> = rows.collect();
    assert_eq!(rows.len(), families.len(), "each name once");
    let missing: Vec<_> = rows.difference(&listed).cloned().collect();
    let stale: Vec<_> = listed.difference(&rows).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "deploy/METRICS.md lacks\n{}\nand has what is not so\n{stale:#?}",
        missing.join("\n")
    );
}

#[test]
fn the_text_is_what_prometheus_reads() {
    let mut tallies = Tallies::default();
    tallies.sums.requests.hits.buckets[0] = 2;
    tallies.sums.requests.hits.buckets[18] = 1;
    tallies.sums.requests.hits.sum = 40_000_020_000;
    tallies.answers.refused[Reason::PlainGzip.index()] = 7;
    let (kind, text) = encode(all(&tallies, &Process::default())).unwrap();
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    for line in [
        "# TYPE crfs_prepares_not_lazy_total counter",
        "crfs_prepares_not_lazy_total{reason=\"plain_gzip\"} 7",
        "crfs_read_duration_seconds_bucket{le=\"1e-05\",outcome=\"cached\"} 2",
        "crfs_read_duration_seconds_bucket{le=\"30\",outcome=\"cached\"} 2",
        "crfs_read_duration_seconds_bucket{le=\"+Inf\",outcome=\"cached\"} 3",
        "crfs_read_duration_seconds_sum{outcome=\"cached\"} 40.00002",
        "crfs_read_duration_seconds_count{outcome=\"fetched\"} 0",
        "crfs_mounts 0",
    ] {
        let has = text.lines().any(|found| sorted(found) == sorted(line));
        assert!(has, "{line} is not in:\n{text}");
    }
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let families = all(&Tallies::default(), &Process::default());
    let names: Vec<String> = families.iter().map(Family::told_name).collect();
    let text = include_str!("../../deploy/grafana.json");
    let dashboard: serde_json::Value = serde_json::from_str(text).unwrap();
    let mut asked = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let words = target["expr"].as_str().unwrap();
            let words = words.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            asked.extend(words.filter(|w| w.starts_with("crfs_") || w.starts_with("process_")));
        }
    }
    assert!(asked.len() > 20, "{asked:?}");
    for word in asked {
        let parts = ["_bucket", "_sum", "_count"];
        let of_histogram = parts.iter().find_map(|part| word.strip_suffix(part));
        let known = |name: &str| names.iter().any(|known| known == name);
        assert!(known(word) || of_histogram.is_some_and(known), "{word}");
    }
}

/// A line with its labels in order.
fn sorted(line: &str) -> String {
    let Some((name, rest)) = line.split_once('{') else {
        return line.to_owned();
    };
    let (labels, value) = rest.rsplit_once('}').unwrap();
    let mut labels: Vec<_> = labels.split(',').collect();
    labels.sort_unstable();
    format!("{name}{{{}}}{value}", labels.join(","))
}
