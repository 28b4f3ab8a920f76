//! What an operator asks a node: `crfs status`, `why`, `layers`, `top`, against a stock containerd.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::bed::{self, Bed, CRFS};
use crate::serve::compose;

const FOREGROUND_ONLY: &str = "[fetch]\nbackground = false\nprefetch = false\n";

/// Runs crfs about a bed's daemon; gives its exit code and what it printed.
pub fn ask(bed: &Bed, arguments: &[&str]) -> (i32, String) {
    let root = bed.crfs_root();
    let mut crfs = Command::new(CRFS);
    crfs.args(arguments)
        .args(["--root", root.to_str().unwrap()]);
    let done = crfs.stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8_lossy(&done.stderr).into_owned();
    let text = String::from_utf8(done.stdout).unwrap() + &error;
    (done.status.code().unwrap(), text)
}

/// The same with `--json`, which has to succeed or say no.
pub fn ask_json(bed: &Bed, arguments: &[&str]) -> Value {
    let (code, text) = ask(bed, &[arguments, &["--json"]].concat());
    assert!(code == 0 || code == 3, "{arguments:?}: {text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// An image of three layers of which the middle one is an ordinary one, pulled through crfs.
pub fn pull_mixed(bed: &Bed) -> String {
    let plain = crate::cli::small_image(bed.folder(), "small");
    let lazy = bed.folder().join("lazy");
    let to = format!("oci:{}:latest", lazy.display());
    bed::crfs(&["convert", &format!("oci:{}:latest", plain.display()), &to]);
    let picks = [(&*lazy, 0), (&*plain, 1), (&*lazy, 2)];
    let mixed = compose(&bed.folder().join("mixed"), &picks);
    let image = bed.push(&mixed, "mixed:1");
    bed.push(&plain, "plain:1");
    bed.pull("crfs", &image);
    image
}

fn list(value: &Value, of: &str) -> Vec<Value> {
    let all = value.as_array().unwrap().iter();
    all.map(|item| item[of].clone()).collect()
}

#[test]
fn why_tells_the_reason_of_each_layer_also_after_a_restart() {
    let mut bed = Bed::up(FOREGROUND_ONLY, &[]);
    let image = pull_mixed(&bed);
    for _ in 0..2 {
        let why = ask_json(&bed, &["why", &image]);
        let told = &why["images"][0];
        assert_eq!(
            (&told["name"], &told["present"]),
            (&image.clone().into(), &true.into())
        );
        assert_eq!(list(&told["layers"], "lazy"), [true, false, true]);
        assert_eq!(list(&told["layers"], "reason"), ["", "no_toc_digest", ""]);
        let remedy = told["layers"][1]["remedy"].as_str().unwrap();
        assert!(remedy.contains("crfs convert"), "{remedy}");
        let (code, text) = ask(&bed, &["why", &image]);
        assert_eq!(code, 3, "a layer is not lazy: {text}");
        assert!(text.contains("2 of 3 layers are lazy"), "{text}");
        assert!(text.contains("to mend no_toc_digest: "), "{text}");
        let (code, text) = ask(&bed, &["why"]);
        assert!(code == 0 && text.contains(&image), "{text}");
        bed.tell("crfs stop");
        bed.tell("crfs start");
    }
    // What was never pulled is judged by its manifest.
    let plain = format!("{}/plain:1", bed.registry());
    let why = ask_json(&bed, &["why", &plain]);
    let told = &why["images"][0];
    assert_eq!(told["present"], false);
    assert_eq!(list(&told["layers"], "lazy"), [false; 3]);
    let here = list(&told["layers"], "present");
    assert_eq!(
        here,
        [false, true, false],
        "one of them is that of the mixed image: {told}"
    );
    let none = format!("{}/none:1", bed.registry());
    let (code, text) = ask(&bed, &["why", &none]);
    assert!(
        code == 1 && text.contains(&none) && text.contains("not found"),
        "{text}"
    );
    let digest = format!("sha256:{}", "0".repeat(64));
    let (code, text) = ask(&bed, &["why", &digest]);
    assert!(code == 1 && text.contains("ask by its name"), "{text}");
}

#[test]
fn status_layers_and_top_tell_what_a_node_does() {
    let bed = Bed::up(FOREGROUND_ONLY, &[]);
    let empty = ask(&bed, &["layers"]);
    assert_eq!(empty, (0, "no lazy layer is on this node\n".to_owned()));
    let image = pull_mixed(&bed);
    let status = ask_json(&bed, &["status"]);
    assert_eq!(status["running"], true);
    assert!(
        status["keeper"]["server"].is_string() || status["keeper"]["pid"].is_string(),
        "{status}"
    );
    let status = &status["status"];
    assert_eq!(status["mounts"]["served"], 2);
    let found = &status["snapshots"];
    assert_eq!(
        (&found["lazy"], &found["unpacked"]),
        (&2.into(), &1.into()),
        "{found}"
    );
    let answers = &status["answers"];
    assert_eq!(answers["not_lazy"][0]["name"], "no_toc_digest");
    assert_eq!(
        (&answers["lazy"], &answers["not_lazy"][0]["count"]),
        (&2.into(), &1.into())
    );

    layers_are_told(&bed, &image);
    let status = ask_json(&bed, &["status"]);
    let requests = &status["status"]["requests"];
    let number = |key: &str| requests[key].as_u64().unwrap();
    assert!(number("fetched_bytes") > 0, "{requests}");
    assert!(
        number("fetched_bytes") + number("hit_bytes") >= 300_000,
        "{requests}"
    );
    let (_, text) = ask(&bed, &["status"]);
    for word in [
        "2 lazy, of 1 images; 1 unpacked",
        "not lazy: no_toc_digest 1",
        "degraded        none",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    top_is_told(&bed);
}

/// Reads one file of the image, and looks at what is said of its layers before and after.
fn layers_are_told(bed: &Bed, image: &str) {
    let before = ask_json(bed, &["layers"]);
    assert_eq!(list(&before["layers"], "users"), [0, 0]);
    assert_eq!(list(&before["layers"], "hits"), [0, 0]);
    let target = bed.mount(image);
    assert_eq!(fs::read(target.join("data")).unwrap().len(), 300_000);
    let after = ask_json(bed, &["layers"]);
    assert_eq!(
        list(&after["layers"], "users"),
        [1, 1],
        "a view is on both: {after}"
    );
    let layers = after["layers"].as_array().unwrap();
    let read = layers
        .iter()
        .find(|layer| layer["misses"].as_u64().unwrap() > 0);
    let read = read.unwrap_or_else(|| panic!("nothing was read: {after}"));
    let number = |key: &str| read[key].as_u64().unwrap();
    assert!(
        number("held") >= 300_000 && number("fetched") >= 300_000,
        "{read}"
    );
    assert!(
        number("content") >= 300_000 && number("index") > 0,
        "{read}"
    );
    assert!(read["last_read_seconds"].as_f64().unwrap() < 60.0, "{read}");
    assert_eq!(
        (&read["mounts"], &read["degraded"]),
        (&2.into(), &"".into()),
        "the view has its own"
    );
    let (_, text) = ask(bed, &["layers"]);
    assert!(
        text.contains("LAST READ") && text.contains(" s ago"),
        "{text}"
    );
}

fn top_is_told(bed: &Bed) {
    let top = ask_json(bed, &["top", "--count", "1", "--interval", "0.2"]);
    assert_eq!(
        (&top["mounts"], &top["degraded"]),
        (&4.into(), &0.into()),
        "{top}"
    );
    assert_eq!(top["layers"].as_array().unwrap().len(), 2);
    let (code, text) = ask(bed, &["top", "--count", "2", "--interval", "0.1"]);
    assert!(code == 0 && text.matches("reads  ").count() == 2, "{text}");
    assert!(!text.contains('\x1b'), "no terminal, no escapes: {text:?}");
    let (code, text) = ask(bed, &["layers", "--address", "/nonexistent/crfs.sock"]);
    assert!(
        code == 1 && text.contains("no daemon answers at /nonexistent/crfs.sock"),
        "{text}"
    );
}
