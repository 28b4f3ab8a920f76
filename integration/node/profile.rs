//! Profiles: what a start reads is recorded in order, given out, and fetched first the next time.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::bed::{self, Bed, CRFS};
use crate::serve::{self, Image, Serve};
use crate::snapshots_client::Client;

const FOREGROUND_ONLY: &str = "[fetch]\nbackground = false\nreadahead = 0\n";
/// Each file is a member of its own: nothing comes along with another.
const FILE: usize = 300_000;
/// Longer than what is read of it, and cut into chunks of 512 KiB.
const BIG: usize = 3_000_000;

fn content(layer: u64, number: u64) -> Vec<u8> {
    serve::noise(layer * 1000 + number, FILE)
}

/// A tar of twenty files `LAYER/NUMBER` and a big one.
fn tar(bed: &Bed, layer: u64) -> PathBuf {
    let names: Vec<_> = (0..20).map(|number| format!("{layer}/{number}")).collect();
    let files: Vec<_> = (0..20).map(|number| content(layer, number)).collect();
    let (big, name) = (serve::noise(layer, BIG), format!("{layer}/big"));
    let mut all: Vec<(&str, &[u8])> = vec![(&name, &big)];
    let files = names.iter().zip(&files);
    all.extend(files.map(|(name, data)| (name.as_str(), data.as_slice())));
    serve::tar(&bed.folder().join(format!("{layer}.tar")), &all)
}

fn image(bed: &Bed, name: &str, layers: &[u64]) -> PathBuf {
    let tars: Vec<_> = layers.iter().map(|layer| tar(bed, *layer)).collect();
    let tars: Vec<_> = tars.iter().map(PathBuf::as_path).collect();
    bed::image_of(&tars, &bed.folder().join(name))
}

/// A container on an image: where each of its layers is mounted, the top first.
async fn start(client: &Client, key: &str, names: &[String]) -> Vec<PathBuf> {
    let top = names.last().unwrap();
    let mounts = client.prepare(key, top, Default::default()).await.unwrap();
    let lower = mounts[0].options.iter();
    let lower = lower.filter_map(|option| option.strip_prefix("lowerdir="));
    let lower: Vec<_> = lower.flat_map(|all| all.split(':')).collect();
    lower.iter().map(PathBuf::from).collect()
}

/// Reads `LAYER/NUMBER` and so on, one after the other, and insists on what is in them.
fn read(lower: &[PathBuf], files: &[&str]) {
    for file in files {
        let found = lower
            .iter()
            .find_map(|layer| fs::read(layer.join(file)).ok());
        let (layer, number) = file.split_once('/').unwrap();
        let layer = layer.parse().unwrap();
        let expected = match number {
            "big" => serve::noise(layer, BIG),
            number => content(layer, number.parse().unwrap()),
        };
        assert!(found.unwrap() == expected, "{file}");
        // Reads within a tenth of a millisecond may be taken for one another.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Reads some bytes of `1/big`, and no more: neither does the kernel.
fn read_piece(lower: &[PathBuf], bytes: std::ops::Range<usize>) {
    let find = |layer: &PathBuf| fs::File::open(layer.join("1/big")).ok();
    let file = lower.iter().find_map(find).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    let mut found = vec![0; bytes.len()];
    file.read_exact_at(&mut found, bytes.start as u64).unwrap();
    assert!(found == serve::noise(1, BIG)[bytes]);
}

/// What `crfs profile` prints, or what it says of why it cannot.
fn profile(root: &Path, arguments: &[&str]) -> Result<Vec<String>, String> {
    let mut command = Command::new(CRFS);
    command
        .arg("profile")
        .arg("--root")
        .arg(root)
        .args(arguments);
    let done = command.output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    match done.status.success() {
        true => Ok(text(&done.stdout).lines().map(str::to_owned).collect()),
        false => Err(text(&done.stderr)),
    }
}

fn wait_for_profile(root: &Path, image: &str, files: &[&str]) {
    let files: Vec<_> = files.iter().map(|file| format!("/{file}")).collect();
    let path = |line: &String| line.split('\t').next().map(str::to_owned);
    let mut last = None;
    for _ in 0..100 {
        last = Some(profile(root, &[image]));
        let paths = last.clone().unwrap().unwrap_or_default();
        if paths.iter().filter_map(path).eq(files.iter().cloned()) {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{files:?} is not the profile: {last:?}");
}

/// Waits until nothing has left the registry for half a second.
fn wait_for_silence(bed: &Bed) {
    let mut last = u64::MAX;
    bed::wait_for("the prefetch to end", 30, || {
        std::thread::sleep(Duration::from_millis(500));
        let before = std::mem::replace(&mut last, bed.bytes_served());
        before == last
    });
}

const START: [&str; 7] = ["1/13", "2/7", "1/3", "1/4", "2/18", "1/2", "2/0"];

#[tokio::test(flavor = "multi_thread")]
async fn what_a_start_has_read_is_there_at_the_next_one() {
    let bed = Bed::up("", &["--only", "registry"]);
    let image = Image::of(&bed, &bed.convert(&image(&bed, "two", &[1, 2]), "two:lazy"));
    let folder = bed.folder().join("node");
    let root = folder.join("root");
    let mut daemon = Serve::start(&folder, FOREGROUND_ONLY, &[]);
    let client = daemon.client().await;
    bed.relay("POST", "reset");
    let names = serve::pull(&client, &image, "ns").await;
    let lower = start(&client, "ns/1/container", &names).await;
    let refused = profile(&root, &[&image.name]).unwrap_err();
    assert!(refused.contains("no start of"), "{refused}");
    read(&lower, &START);
    let first = bed.requests_served();
    wait_for_profile(&root, &image.name, &START);
    wait_for_profile(&root, &image.manifest, &START);

    // The layers stay mounted, the cache goes; a container brings the start back.
    daemon.end(Signal::TERM);
    fs::remove_dir_all(root.join("cache")).unwrap();
    let mut daemon = Serve::start(&folder, FOREGROUND_ONLY, &[]);
    let client = daemon.client().await;
    bed::wait_for("the layers", 20, || serve::lazy_mounts(&root).len() == 2);
    bed.relay("POST", "reset");
    let lower = start(&client, "ns/2/again", &names).await;
    wait_for_silence(&bed);
    let (bytes, requests) = (bed.bytes_served(), bed.requests_served());
    let listed = (START.len() * FILE) as u64;
    assert!(
        (listed..listed + 100_000).contains(&bytes),
        "nothing but the profile: {bytes}"
    );
    assert_eq!(
        requests, 6,
        "nothing but the profile; three neighbours are more than a part of the window"
    );
    bed.relay("POST", "down?on=1");
    read(&lower, &START);
    bed.relay("POST", "down?on=0");

    // Image, indexes and cache are gone, the profile is not.
    for key in ["ns/1/container", "ns/2/again"] {
        client.remove(key).await.unwrap();
    }
    for name in names.iter().rev() {
        client.remove(name).await.unwrap();
    }
    client.cleanup().await.unwrap();
    assert_eq!(fs::read_dir(root.join("indexes")).unwrap().count(), 0);
    daemon.end(Signal::TERM);
    fs::remove_dir_all(root.join("cache")).unwrap();
    wait_for_profile(&root, &image.name, &START);

    let daemon = Serve::start(&folder, FOREGROUND_ONLY, &[]);
    let client = daemon.client().await;
    bed.relay("POST", "reset");
    let names = serve::pull(&client, &image, "ns").await;
    wait_for_silence(&bed);
    let (bytes, requests) = (bed.bytes_served(), bed.requests_served());
    bed.relay("POST", "down?on=1");
    let lower = start(&client, "ns/3/offline", &names).await;
    read(&lower, &START);
    bed.relay("POST", "down?on=0");
    println!("first start: {first} requests; the next: {requests} and {bytes} bytes at the pull");
    // The manifest, two tables of contents; 1/2 to 1/4 in two parts, and the others.
    assert!(requests <= 3 + 6 && requests < first, "{requests}");
    assert!(
        bytes < (START.len() * FILE * 105 / 100 + 20_000) as u64,
        "{bytes}"
    );

    // What was there already counts as read, too, and what is new comes behind it.
    read(&lower, &["1/big"]);
    let all = [&START[..], &["1/big"]].concat();
    wait_for_profile(&root, &image.name, &all);
    let json = profile(&root, &[&image.name, "--json"]).unwrap().concat();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["files"], 8);
    assert_eq!(
        json["starts"], 2,
        "the second start in between told nothing new"
    );
    assert_eq!(json["images"][0]["name"], image.name.as_str());
    assert_eq!(json["paths"][7], "/1/big");
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_container_has_the_node_for_itself_for_a_moment() {
    let bed = Bed::up("", &["--only", "registry"]);
    let one = Image::of(&bed, &bed.convert(&image(&bed, "one", &[1, 2]), "one:lazy"));
    let mut daemon = Serve::start(&bed.folder().join("node"), "", &[]);
    let client = daemon.client().await;
    // The whole image takes seven seconds.
    bed.relay("POST", "link?rtt_ms=1&mbit=20");
    let names = serve::pull(&client, &one, "ns").await;
    let served_in_a_second = || {
        let before = bed.bytes_served();
        std::thread::sleep(Duration::from_secs(1));
        bed.bytes_served() - before
    };
    read(&start(&client, "ns/1/c", &names).await, &["2/5", "1/5"]);
    let beside_the_first = served_in_a_second();
    start(&client, "ns/2/c", &names).await;
    // What was asked for before still comes.
    served_in_a_second();
    let beside_the_second = served_in_a_second().max(served_in_a_second());
    start(&client, "ns/3/c", &names).await;
    println!(
        "{beside_the_first} bytes a second beside the first, {beside_the_second} beside the second"
    );
    assert!(beside_the_first > 1_000_000 && beside_the_second < 50_000);
    let started = std::time::Instant::now();
    bed::wait_for("the background", 30, || served_in_a_second() > 1_000_000);
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "one rest for all"
    );
    bed.relay("POST", "link?rtt_ms=0&mbit=0");
    daemon.end(Signal::TERM);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_share_a_layer_have_profiles_of_their_own() {
    let bed = Bed::up("", &["--only", "registry"]);
    let one = Image::of(&bed, &bed.convert(&image(&bed, "one", &[1, 2]), "one:lazy"));
    let two = Image::of(&bed, &bed.convert(&image(&bed, "two", &[1, 3]), "two:lazy"));
    assert_eq!(one.layers[0], two.layers[0]);
    let folder = bed.folder().join("node");
    let root = folder.join("root");
    let mut daemon = Serve::start(&folder, FOREGROUND_ONLY, &[]);
    let client = daemon.client().await;
    let names = serve::pull(&client, &one, "ns").await;
    let first = start(&client, "ns/1/c", &names).await;
    read(&first, &["2/5", "1/5"]);
    wait_for_profile(&root, &one.name, &["2/5", "1/5"]);
    // As containerd has it: the shared layer's snapshot is one.
    let second = pull_on(&client, &two, &names[0]).await;
    let second = start(&client, "ns/2/c", &second).await;
    assert_eq!(first[1], second[1]);
    read(&second, &["3/8", "1/9", "1/6"]);
    // The daemon ends before it has looked.
    daemon.end(Signal::TERM);
    wait_for_profile(&root, &two.name, &["3/8", "1/9", "1/6"]);
    let listed = profile(&root, &[]).unwrap();
    assert_eq!(listed.len(), 2, "{listed:?}");
    // A damaged one is reported, and costs the others nothing.
    let files = fs::read_dir(root.join("profiles")).unwrap();
    let files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    fs::write(&files[0], "no profile").unwrap();
    assert_eq!(profile(&root, &[]).unwrap().len(), 1);
}

/// Pulls the second layer of `image` onto a snapshot that has its first.
async fn pull_on(client: &Client, image: &Image, base: &str) -> Vec<String> {
    let target = format!("sha256:chain-of-{}-1", image.manifest);
    let labels = [
        ("containerd.io/snapshot.ref", target.as_str()),
        ("containerd.io/snapshot/cri.image-ref", &image.name),
        (
            "containerd.io/snapshot/cri.manifest-digest",
            &image.manifest,
        ),
        ("containerd.io/snapshot/cri.layer-digest", &image.layers[1]),
    ];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let refused = client.prepare("ns/2/extract", base, labels.into()).await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::AlreadyExists);
    let filter = format!("labels.\"containerd.io/snapshot.ref\"==\"{target}\"");
    let found = client.list(&[filter]).await.unwrap();
    vec![base.to_owned(), found[0].name.clone()]
}

#[tokio::test(flavor = "multi_thread")]
async fn convert_takes_the_list_as_it_is_and_lays_those_files_out_first() {
    let bed = Bed::up("", &["--only", "registry"]);
    let layout = image(&bed, "two", &[1, 2]);
    let plain = Image::of(&bed, &bed.convert(&layout, "plain:lazy"));
    let folder = bed.folder().join("node");
    let daemon = Serve::start(&folder, FOREGROUND_ONLY, &[]);
    let client = daemon.client().await;
    let names = serve::pull(&client, &plain, "ns").await;
    let lower = start(&client, "ns/1/c", &names).await;
    // A piece of a large file, then small files.
    let piece = 1 << 20..(1 << 20) + 1000;
    read_piece(&lower, piece.clone());
    read(&lower, &START);
    let all = [&["1/big"], &START[..]].concat();
    wait_for_profile(&daemon.root(), &plain.name, &all);
    let list = profile(&daemon.root(), &[&plain.name]).unwrap();
    drop(daemon);
    let file = bed.folder().join("start-files.txt");
    fs::write(&file, list.join("\n")).unwrap();
    let name = format!("{}/laid:lazy", bed.registry());
    let source = format!("oci:{}:latest", layout.display());
    let (target, file) = (format!("docker://{name}"), file.display().to_string());
    bed::crfs(&["convert", &source, &target, "--prefetch", &file]);
    let laid = Image::of(&bed, &name);
    for (number, layer) in (1..).zip(&laid.layers) {
        let first = files_before_the_landmark(&bed, layer);
        let mut listed = all.iter().copied();
        let listed = listed
            .by_ref()
            .filter(|file| file.starts_with(&format!("{number}/")));
        assert!(
            first.iter().eq(listed),
            "in the order of first read: {first:?}"
        );
    }

    // A node that has never seen it fetches each layer's beginning, but not what nobody read of the
    // large file.
    let node = Serve::start(&bed.folder().join("other"), FOREGROUND_ONLY, &[]);
    let client = node.client().await;
    bed.relay("POST", "reset");
    let names = serve::pull(&client, &laid, "ns").await;
    wait_for_silence(&bed);
    assert_eq!(
        bed.requests_served(),
        9,
        "manifest, config, two TOCs, a piece of the large file, two beginnings in two parts each"
    );
    let most = (512 << 10) + START.len() * FILE;
    assert!(bed.bytes_served() < (most * 105 / 100 + 20_000) as u64);
    bed.relay("POST", "down?on=1");
    let lower = start(&client, "ns/1/c", &names).await;
    read_piece(&lower, piece);
    read(&lower, &START);
}

/// The regular files of a layer that lie before its landmark.
fn files_before_the_landmark(bed: &Bed, layer: &str) -> Vec<String> {
    let url = format!("http://{}/v2/laid/blobs/{layer}", bed.registry());
    let script = format!("curl -fsSL --noproxy '*' {url} | tar -tz");
    let listed = Command::new("sh").args(["-c", &script]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let (first, _) = listed.split_once(".prefetch.landmark").unwrap();
    let files = first.lines().filter(|name| !name.ends_with('/'));
    files.map(str::to_owned).collect()
}
