//! How far away a registry may be: the round trips until all layers of an image are mounted, and what may share the line
//! meanwhile.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::bed::{self, Bed};
use crate::serve::{self, Image, Serve};

const ROUND_TRIP: Duration = Duration::from_millis(100);

/// What each layer holds beside its small files, in bytes.
const NOISE: usize = 200_000;

/// Ten layers: nine of some files each, and `long`, whose TOC is longer than a tail that is guessed.
fn ten_layers(bed: &Bed, long: u64) -> Image {
    let many: Vec<_> = (0..20_000)
        .map(|n| format!("many/{:x}", n * 7919))
        .collect();
    let tars: Vec<_> = (0..10)
        .map(|layer| {
            let noise = serve::noise(layer, NOISE);
            let names: Vec<_> = (0..50).map(|n| format!("layer{layer}/{n}")).collect();
            let mut files: Vec<(&str, &[u8])> = vec![("noise", &noise)];
            let names = if layer == long { &many } else { &names };
            files.extend(names.iter().map(|name| (name.as_str(), name.as_bytes())));
            serve::tar(&bed.folder().join(format!("{layer}.tar")), &files)
        })
        .collect();
    let tars: Vec<_> = tars.iter().map(std::path::PathBuf::as_path).collect();
    let layout = bed::image_of(&tars, &bed.folder().join("ten"));
    Image::of(bed, &bed.convert(&layout, "ten:lazy"))
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_layers_cost_at_most_six_round_trips() {
    let bed = Bed::up("", &["--only", "registry"]);
    let image = ten_layers(&bed, 5);
    let mut best = Duration::MAX;
    // Other programs may slow one attempt down; each is of a node that knows nothing yet.
    for attempt in 0..3 {
        let folder = bed.folder().join(format!("node{attempt}"));
        let mut daemon = Serve::start(&folder, "[fetch]\nbackground = false\n", &[]);
        let client = daemon.client().await;
        bed.relay(
            "POST",
            &format!("link?rtt_ms={}&mbit=0", ROUND_TRIP.as_millis()),
        );
        bed.relay("POST", "reset");
        let start = Instant::now();
        let names = serve::pull(&client, &image, "ns").await;
        let took = start.elapsed();
        assert_eq!(names.len(), 10);
        let requests = bed.requests_served();
        bed.relay("POST", "link?rtt_ms=0&mbit=0");
        println!("ten layers mounted in {took:?} with {requests} requests");
        assert_eq!(
            requests,
            2 + 9 + 6,
            "the manifest, the config, and one for each layer but the long one, which is read in parts"
        );
        best = best.min(took);
        daemon.end(Signal::TERM);
        if best <= 6 * ROUND_TRIP {
            return;
        }
    }
    panic!("{best:?} is more than six round trips");
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_nobody_waits_for_comes_after_tables_of_contents() {
    let bed = Bed::up("", &["--only", "registry"]);
    let image = ten_layers(&bed, 9);
    let mut daemon = Serve::start(&bed.folder().join("node"), "", &[]);
    let client = daemon.client().await;
    // The long table of contents takes half a second, and nine layers are mounted at its beginning.
    bed.relay("POST", "link?rtt_ms=1&mbit=20");
    bed.relay("POST", "reset");
    serve::pull(&client, &image, "ns").await;
    let content = NOISE as u64 * 9;
    let mounted: u64 = image.served(&bed)[..9].iter().sum();
    bed::wait_for("the content of the others", 30, || {
        image.served(&bed)[..9].iter().sum::<u64>() > content
    });
    println!(
        "{mounted} bytes of nine layers had come when the tenth was mounted, {content} came then"
    );
    assert!(mounted < content / 2);
    daemon.end(Signal::TERM);
}
