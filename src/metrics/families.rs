//! Every metric there is: its name, what kind it is, its labels, its value.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;

use crate::blob::fetch::{PURPOSES, TROUBLES};
use crate::fs::{BOUNDS, Failure, Latencies};
use crate::layer::Reason;
use crate::metrics::Process;
use crate::report::Tallies;

/// What kind of metric it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows; its name ends in `_total` when it is told.
    Counter,
    /// It comes and goes.
    Gauge,
    /// How many took how long.
    Histogram,
}

/// A metric with all of its series.
#[derive(Debug, Clone)]
pub struct Family {
    /// Its name, without `_total`.
    pub name: &'static str,
    /// What kind it is.
    pub kind: Kind,
    /// What it means, in a sentence without its full stop.
    pub help: &'static str,
    /// Its series.
    pub samples: Vec<Sample>,
}

/// A series: the label that tells it apart, if there is one, and the value.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Name and value of the label.
    pub label: Option<(&'static str, &'static str)>,
    /// The value.
    pub value: Value,
}

/// A value.
#[derive(Debug, Clone)]
pub enum Value {
    /// Of a counter or gauge.
    Number(u64),
    /// Of a gauge or counter that is no whole number.
    Real(f64),
    /// Of a histogram of times.
    Times(Latencies),
}

impl Family {
    /// Its name as it is told.
    #[must_use]
    pub fn told_name(&self) -> String {
        match self.kind {
            Kind::Counter => format!("{}_total", self.name),
            Kind::Gauge | Kind::Histogram => self.name.to_owned(),
        }
    }
}

fn one(name: &'static str, kind: Kind, help: &'static str, value: Value) -> Family {
    let samples = vec![Sample { label: None, value }];
    Family {
        name,
        kind,
        help,
        samples,
    }
}

fn counter(name: &'static str, help: &'static str, value: u64) -> Family {
    one(name, Kind::Counter, help, Value::Number(value))
}

fn gauge(name: &'static str, help: &'static str, value: u64) -> Family {
    one(name, Kind::Gauge, help, Value::Number(value))
}

/// A family of a series for each name.
fn by(
    (name, kind, help): (&'static str, Kind, &'static str),
    label: &'static str,
    names: &[&'static str],
    values: &[u64],
) -> Family {
    let samples = names.iter().zip(values).map(|(value, number)| Sample {
        label: Some((label, *value)),
        value: Value::Number(*number),
    });
    Family {
        name,
        kind,
        help,
        samples: samples.collect(),
    }
}

/// All metrics. `tallies` that are all zero give every series there can be, too.
#[must_use]
pub fn all(tallies: &Tallies, process: &Process) -> Vec<Family> {
    let mut all = node(tallies);
    all.extend(reads(tallies));
    all.extend(cache(tallies));
    all.extend(fetch(tallies));
    all.extend(of_process(process));
    all
}

fn node(tallies: &Tallies) -> Vec<Family> {
    let Tallies {
        snapshots,
        answers,
        health,
        ..
    } = tallies;
    let reasons = Reason::ALL.map(Reason::name);
    let kinds = [
        snapshots.lazy,
        snapshots.unpacked,
        snapshots.active,
        snapshots.views,
    ];
    vec![
        build(),
        gauge(
            "crfs_mounts",
            "Mounts of lazy layers that are served; a view has its own",
            health.mounts,
        ),
        counter(
            "crfs_mounts_taken_over",
            "Mounts taken over from the server before",
            health.taken_over,
        ),
        counter(
            "crfs_mounts_lost",
            "Mounts found without a server and without a descriptor, whose containers have to be restarted",
            health.lost,
        ),
        gauge(
            "crfs_layers_degraded",
            "Lazy layers that are not mounted at present, and tried again",
            tallies.degraded,
        ),
        by(
            ("crfs_snapshots", Kind::Gauge, "Snapshots by kind"),
            "kind",
            &["lazy", "unpacked", "active", "view"],
            &kinds,
        ),
        gauge(
            "crfs_images",
            "Images that any lazy layer was pulled as part of",
            snapshots.images,
        ),
        by(
            (
                "crfs_layers_not_lazy",
                Kind::Gauge,
                "Layers on this node that containerd unpacked, by the reason why they are not lazy",
            ),
            "reason",
            &reasons,
            &snapshots.reasons,
        ),
        counter(
            "crfs_prepares_lazy",
            "Layers that containerd offered and got lazily",
            answers.lazy,
        ),
        by(
            (
                "crfs_prepares_not_lazy",
                Kind::Counter,
                "Layers that containerd offered and has to unpack, by reason",
            ),
            "reason",
            &reasons,
            &answers.refused,
        ),
    ]
}

fn build() -> Family {
    let version = Sample {
        label: Some(("version", env!("CARGO_PKG_VERSION"))),
        value: Value::Number(1),
    };
    Family {
        name: "crfs_build_info",
        kind: Kind::Gauge,
        help: "Version of the program; its value is always 1",
        samples: vec![version],
    }
}

fn reads(tallies: &Tallies) -> Vec<Family> {
    let requests = &tallies.sums.requests;
    let times = |outcome, times| Sample {
        label: Some(("outcome", outcome)),
        value: Value::Times(times),
    };
    vec![
        Family {
            name: "crfs_read_duration_seconds",
            kind: Kind::Histogram,
            help: "Reads that reached crfs and were answered, by whether the content was here, and how long that took",
            samples: vec![
                times("cached", requests.hits),
                times("fetched", requests.fetched),
            ],
        },
        by(
            (
                "crfs_read_bytes",
                Kind::Counter,
                "Bytes that reads were answered with, by where they came from",
            ),
            "source",
            &["cache", "registry"],
            &[requests.hit_bytes, requests.fetched_bytes],
        ),
        gauge(
            "crfs_reads_waiting",
            "Reads that wait for the network",
            requests.waiting,
        ),
        counter(
            "crfs_passthrough_opens",
            "Opens of files that the kernel then reads by itself",
            requests.passed,
        ),
        counter(
            "crfs_populated_files",
            "Small files stored in the page cache ahead of their reader",
            requests.populated,
        ),
        by(
            (
                "crfs_request_failures",
                Kind::Counter,
                "Requests of the kernel answered with an error that means something is wrong, by reason",
            ),
            "reason",
            &Failure::ALL.map(Failure::name),
            &requests.failures,
        ),
    ]
}

fn cache(tallies: &Tallies) -> Vec<Family> {
    let (cache, (total, free, _)) = (&tallies.sums.cache, tallies.sums.disk);
    vec![
        gauge(
            "crfs_cache_bytes",
            "Bytes of disk that the cache takes",
            cache.held,
        ),
        gauge(
            "crfs_cache_max_bytes",
            "Bytes of disk that the cache may take",
            cache.max_size,
        ),
        gauge("crfs_cache_entries", "Contents in the cache", cache.entries),
        counter(
            "crfs_cache_written_bytes",
            "Bytes of content written to the cache",
            cache.written,
        ),
        counter(
            "crfs_cache_evicted_bytes",
            "Bytes evicted from the cache",
            cache.evicted,
        ),
        counter(
            "crfs_cache_damaged",
            "Cached contents that were found damaged, and are fetched again",
            cache.damaged,
        ),
        counter(
            "crfs_cache_write_errors",
            "Writes to the cache that failed",
            cache.write_errors,
        ),
        gauge(
            "crfs_cache_disk_bytes",
            "Size of the disk with the cache",
            total,
        ),
        gauge(
            "crfs_cache_disk_free_bytes",
            "Free bytes of the disk with the cache",
            free,
        ),
    ]
}

fn fetch(tallies: &Tallies) -> Vec<Family> {
    let (sums, fetch) = (&tallies.sums, &tallies.sums.fetch);
    vec![
        by(
            (
                "crfs_fetched_bytes",
                Kind::Counter,
                "Compressed bytes of layers that came, by what they were fetched for",
            ),
            "purpose",
            &PURPOSES,
            &fetch.bytes,
        ),
        by(
            (
                "crfs_fetch_requests",
                Kind::Counter,
                "Requests for parts of layers, by what they are for",
            ),
            "purpose",
            &PURPOSES,
            &fetch.requests,
        ),
        by(
            (
                "crfs_fetch_failures",
                Kind::Counter,
                "Fetches that failed and members that were corrupt, by reason",
            ),
            "reason",
            &TROUBLES,
            &fetch.troubles,
        ),
        by(
            (
                "crfs_fetch_requests_active",
                Kind::Gauge,
                "Requests for parts of layers under way, without those of readers that nothing comes to",
            ),
            "class",
            &["reader", "background"],
            &[fetch.requests_now, fetch.background_now],
        ),
        gauge(
            "crfs_fetch_in_flight_bytes",
            "Bytes being fetched and unpacked, of [fetch] memory",
            fetch.in_flight,
        ),
        one(
            "crfs_fetch_best_bytes_per_second",
            Kind::Gauge,
            "The best rate at which content came lately",
            Value::Real(fetch.best_rate),
        ),
        counter(
            "crfs_http_requests",
            "HTTP requests to registries, those for tokens and manifests included",
            sums.http_requests,
        ),
        counter(
            "crfs_http_received_bytes",
            "Bytes of their answers",
            sums.http_received,
        ),
        gauge(
            "crfs_background_members",
            "Compressed pieces of all mounted layers",
            sums.members,
        ),
        gauge(
            "crfs_background_members_left",
            "Those that the background has still to go through",
            sums.background_left,
        ),
    ]
}

fn of_process(process: &Process) -> Vec<Family> {
    let cpu = Value::Real(process.cpu.as_secs_f64());
    let started = Value::Real(process.started);
    vec![
        gauge(
            "process_resident_memory_bytes",
            "Resident memory of the daemon",
            process.resident,
        ),
        gauge(
            "process_open_fds",
            "Open descriptors of the daemon",
            process.descriptors,
        ),
        one(
            "process_cpu_seconds",
            Kind::Counter,
            "CPU time of the daemon",
            cpu,
        ),
        one(
            "process_start_time_seconds",
            Kind::Gauge,
            "When the daemon began to serve, in seconds since 1970",
            started,
        ),
    ]
}

/// All of them in Prometheus' text format.
///
/// # Errors
/// Never in practice: writing to a string fails only if a metric does not make sense.
pub fn encode(families: Vec<Family>) -> Result<(&'static str, String), fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families(families)));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry)?;
    Ok((prometheus_text::CONTENT_TYPE, text))
}

#[derive(Debug)]
struct Families(Vec<Family>);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in &self.0 {
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, kind)?;
            for sample in &family.samples {
                match sample.label {
                    Some(label) => {
                        let labels = [label];
                        write(
                            family.kind,
                            &sample.value,
                            &mut metric.encode_family(&labels)?,
                        )?;
                    }
                    None => write(family.kind, &sample.value, &mut metric)?,
                }
            }
        }
        Ok(())
    }
}

fn write(kind: Kind, value: &Value, metric: &mut MetricEncoder<'_>) -> fmt::Result {
    let none: Option<&Exemplar<NoLabelSet, f64>> = None;
    match (kind, value) {
        (Kind::Counter, Value::Number(number)) => metric.encode_counter(number, none),
        (Kind::Counter, Value::Real(number)) => metric.encode_counter(number, none),
        (_, Value::Number(number)) => metric.encode_gauge(number),
        (_, Value::Real(number)) => metric.encode_gauge(number),
        (_, Value::Times(times)) => {
            let bounds = BOUNDS.iter().map(|micros| *micros as f64 / 1e6);
            let bounds = bounds.chain(std::iter::once(f64::INFINITY));
            let buckets: Vec<_> = bounds.zip(times.buckets).collect();
            let sum = times.sum as f64 / 1e9;
            metric.encode_histogram::<NoLabelSet>(sum, times.count(), &buckets, None)
        }
    }
}
