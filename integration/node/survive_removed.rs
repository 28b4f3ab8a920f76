//! Files that are open of a layer whose snapshot was removed: nobody else knows of it any more, and it is
//! served on, over the death of the server, until they are closed.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use crfs::keeper::{self, Folder};
use rustix::process::{Pid, Signal, kill_process};

use crate::bed::{self, Bed};
use crate::many_layers;
use crate::serve::{self, Serve};
use crate::takeover_rig::kernel_repeats_requests;

/// A value of the keeper's state.
fn says(folder: &Folder, key: &str) -> Option<String> {
    let state = keeper::state(folder).ok()?;
    let mut lines = state.lines();
    lines.find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(' ')?.to_owned()))
}

/// All of a file, from the file system and not from the page cache.
fn read(file: &mut File) -> String {
    rustix::fs::fadvise(&*file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    std::io::Seek::rewind(file).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_file_of_a_removed_layer_outlives_the_server() {
    if !kernel_repeats_requests() {
        return;
    }
    let bed = Bed::up("", &["--only", "registry"]);
    let image = many_layers::image(&bed, 2);
    let node = bed.folder().join("node");
    let daemon = Serve::start(&node, "[fetch]\nbackground = false\n", &[]);
    let client = daemon.client().await;
    let names = serve::pull(&client, &image, "ns").await;
    let mounts = serve::lazy_mounts(&daemon.root());
    let lowest = mounts.iter().find(|mount| mount.join("srv/l0").exists());
    let name = |number: usize| format!("srv/l0/d{}/file-{number}", number / 50);
    let open = |number: usize| File::open(lowest.unwrap().join(name(number))).unwrap();
    let mut files: Vec<File> = [3, 60, 120, 190].map(open).into();
    for name in names.iter().rev() {
        client.remove(name).await.unwrap();
    }
    client.cleanup().await.unwrap();
    assert_eq!(serve::lazy_mounts(&daemon.root()), Vec::<&Path>::new());
    let folder = Folder::new(&daemon.root()).unwrap();
    assert_eq!(
        says(&folder, "layers").as_deref(),
        Some("1"),
        "the other is gone"
    );

    for round in 1..=3 {
        let before = daemon.pid();
        let pid = Pid::from_raw(i32::try_from(before).unwrap()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        // Each time one that was never read, so that its content has to be found again.
        for (at, number) in [3, 60, 120, 190].into_iter().enumerate().take(round + 1) {
            assert_eq!(
                read(&mut files[at]),
                name(number).repeat(5),
                "round {round}"
            );
        }
        bed::wait_for("the next server", 20, || {
            says(&folder, "phase").as_deref() == Some("ready") && daemon.pid() != before
        });
        // What is in use is not swept away, though no snapshot has it.
        daemon.client().await.cleanup().await.unwrap();
    }
    let notes = daemon.root().join("detached");
    assert_eq!(fs::read_dir(&notes).unwrap().count(), 1);
    drop(files);
    bed::wait_for("the layer to be let go", 10, || {
        says(&folder, "layers").as_deref() == Some("0")
    });
    bed::wait_for("the note to be removed", 10, || {
        fs::read_dir(&notes).unwrap().next().is_none()
    });
}
