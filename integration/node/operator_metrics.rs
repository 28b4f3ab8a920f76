//! Metrics as they are asked for: over HTTP, by curl and by a real Prometheus.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::bed::{self, Bed};
use crate::operator::pull_mixed;
use crate::serve::{self, Image, Serve};

/// What curl says of a request.
fn curl(arguments: &[&str]) -> String {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--noproxy", "*", "--max-time", "10"]);
    let done = curl.args(arguments).output().unwrap();
    assert!(done.status.success(), "{arguments:?}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

/// Every series with its value.
pub fn scrape(socket: &Path) -> BTreeMap<String, f64> {
    let socket = socket.to_str().unwrap();
    let text = curl(&["--unix-socket", socket, "http://crfs/metrics"]);
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let series = lines.map(|line| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    });
    series.collect()
}

#[test]
fn metrics_tell_what_happened_and_survive_a_kill() {
    let config = "[fetch]\nbackground = false\nprefetch = false\n[metrics]\naddress = \"unix:{node}/metrics.sock\"\n";
    let mut bed = Bed::up(config, &[]);
    let socket = bed.folder().join("node/metrics.sock");
    let empty = scrape(&socket);
    assert_eq!(
        (empty["crfs_mounts"], empty["crfs_snapshots{kind=\"lazy\"}"]),
        (0.0, 0.0)
    );
    let image = pull_mixed(&bed);
    let target = bed.mount(&image);
    assert_eq!(fs::read(target.join("data")).unwrap().len(), 300_000);
    let told = scrape(&socket);
    assert_eq!(
        told.len(),
        empty.len(),
        "the number of series is always the same"
    );
    for (series, value) in [
        // Those of the containers, and those of the view.
        ("crfs_mounts", 4.0),
        ("crfs_mounts_taken_over_total", 0.0),
        ("crfs_layers_degraded", 0.0),
        ("crfs_snapshots{kind=\"lazy\"}", 2.0),
        ("crfs_snapshots{kind=\"unpacked\"}", 1.0),
        ("crfs_snapshots{kind=\"view\"}", 1.0),
        ("crfs_layers_not_lazy{reason=\"no_toc_digest\"}", 1.0),
        ("crfs_layers_not_lazy{reason=\"plain_gzip\"}", 0.0),
        ("crfs_prepares_lazy_total", 2.0),
        (
            "crfs_prepares_not_lazy_total{reason=\"no_toc_digest\"}",
            1.0,
        ),
        ("crfs_request_failures_total{reason=\"deadline\"}", 0.0),
    ] {
        assert_eq!(told.get(series), Some(&value), "{series}");
    }
    for series in [
        "crfs_read_bytes_total{source=\"registry\"}",
        "crfs_fetched_bytes_total{purpose=\"reader\"}",
        "crfs_cache_written_bytes_total",
        "crfs_http_received_bytes_total",
    ] {
        assert!(told[series] >= 4096.0, "{series}: {}", told[series]);
    }
    let reads = |told: &BTreeMap<String, f64>| {
        let outcome =
            |outcome| told[&format!("crfs_read_duration_seconds_count{{outcome=\"{outcome}\"}}")];
        outcome("cached") + outcome("fetched")
    };
    assert!(reads(&told) >= 1.0);
    assert!(told["process_resident_memory_bytes"] > 1e6);
    only_metrics_are_told(&socket);
    let path = socket.to_str().unwrap();
    bed.tell("crfs crash");
    bed::wait_for("metrics of the next daemon", 20, || {
        let mut curl = Command::new("curl");
        curl.args([
            "-sS",
            "--max-time",
            "5",
            "--unix-socket",
            path,
            "http://crfs/metrics",
        ]);
        let text = curl.output().unwrap().stdout;
        String::from_utf8_lossy(&text).contains("crfs_mounts_taken_over_total 4")
    });
}

fn only_metrics_are_told(socket: &Path) {
    let path = socket.to_str().unwrap();
    let head = [
        "--unix-socket",
        path,
        "-o",
        "/dev/null",
        "-w",
        "%{http_code} %{content_type}",
    ];
    let asked = |more: &[&str]| curl(&[&head, more].concat());
    assert!(asked(&["http://crfs/metrics"]).starts_with("200 text/plain; version=0.0.4"));
    assert!(asked(&["http://crfs/other"]).starts_with("404"));
    assert!(asked(&["-X", "POST", "http://crfs/metrics"]).starts_with("405"));
}

#[test]
fn an_address_that_is_taken_stops_nothing_and_is_had_later() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let config = format!("[metrics]\naddress = \"{address}\"\n");
    let daemon = Serve::start(dir.path(), &config, &[]);
    let told = |log: &str| {
        let mut lines = log.lines();
        lines.any(|line| line.contains("ERROR") && line.contains(&address))
    };
    bed::wait_for("the log to name the address", 5, || told(&daemon.log()));
    drop(taken);
    bed::wait_for("metrics", 20, || {
        let mut curl = Command::new("curl");
        let url = format!("http://{address}/metrics");
        curl.args(["-sS", "--noproxy", "*", "--max-time", "5", &url]);
        let text = curl.output().unwrap().stdout;
        String::from_utf8_lossy(&text).contains("crfs_mounts 0")
    });
}

/// A Prometheus of its own; killed when dropped.
struct Prometheus {
    child: Child,
    port: u16,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Both fail only if it has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    fn start(program: &Path, folder: &Path, target: &str) -> Self {
        let config = folder.join("prometheus.yml");
        let scrape = format!(
            "global:\n  scrape_interval: 1s\nscrape_configs:\n- job_name: crfs\n  static_configs:\n  - targets: [\"{target}\"]\n"
        );
        fs::write(&config, scrape).unwrap();
        let port = free_port();
        let log = fs::File::create(folder.join("prometheus.log")).unwrap();
        let mut prometheus = Command::new(program);
        prometheus
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.join("tsdb").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = prometheus.spawn().unwrap();
        Self { child, port }
    }

    /// The answer to a query; `None` while it does not serve.
    fn query(&self, query: &str) -> Option<Value> {
        let url = format!("http://127.0.0.1:{}/api/v1/query", self.port);
        let mut curl = Command::new("curl");
        curl.args([
            "-s",
            "--noproxy",
            "*",
            "--max-time",
            "10",
            "--data-urlencode",
        ]);
        curl.args([&format!("query={query}"), &url]);
        serde_json::from_slice(&curl.output().unwrap().stdout).ok()
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_reads_the_metrics_and_answers_every_query_of_the_dashboard() {
    let Some(program) = std::env::var_os("CRFS_BED_PROMETHEUS") else {
        println!("skipped: no prometheus can be had here");
        return;
    };
    let bed = Bed::up("", &["--only", "registry"]);
    let image = bed.convert(
        &crate::cli::small_image(bed.folder(), "small"),
        "small:lazy",
    );
    let target = format!("127.0.0.1:{}", free_port());
    let config = format!("[metrics]\naddress = \"{target}\"\n");
    let daemon = Serve::start(&bed.folder().join("daemon"), &config, &[]);
    let prometheus = Prometheus::start(Path::new(&program), bed.folder(), &target);
    serve::pull(&daemon.client().await, &Image::of(&bed, &image), "ns").await;
    let value = |query: &str| -> Option<String> {
        let answer = prometheus.query(query)?;
        let value = &answer["data"]["result"][0]["value"][1];
        value.as_str().map(str::to_owned)
    };
    bed::wait_for("prometheus to have seen three mounts", 40, || {
        value("crfs_mounts").as_deref() == Some("3")
    });
    assert_eq!(value("up{job=\"crfs\"}").as_deref(), Some("1"));
    let version = format!(
        "crfs_build_info{{version=\"{}\"}}",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(value(&version).as_deref(), Some("1"));
    // Two scrapes make a rate.
    bed::wait_for("a rate", 20, || {
        value("sum(rate(crfs_http_requests_total[10s]))").is_some()
    });
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/grafana.json"));
    let dashboard: Value = serde_json::from_str(&text.unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels
        .filter_map(|panel| panel["targets"].as_array())
        .flatten();
    let mut count = 0;
    for target in targets {
        let query = target["expr"].as_str().unwrap();
        let query = query
            .replace("$job", ".*")
            .replace("$instance", ".*")
            .replace("$__rate_interval", "10s");
        let answer = prometheus.query(&query).unwrap();
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let filtered = query.contains("> 0") || query.contains("histogram_quantile");
        let found = answer["data"]["result"].as_array().unwrap().len();
        assert!(found > 0 || filtered, "{query} finds nothing");
        count += 1;
    }
    assert!(count > 20, "{count} queries");
}
