//! What an administrator does to the mounts of layers, and that new containers work all the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bed::Bed;
use crate::cli::small_image;
use crate::serve::{self, Image, Serve};
use crate::snapshots_client::Client;

fn sh(command: &str) {
    let done = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(done.status.success(), "{command}: {done:?}");
}

/// The number of a FUSE mount's connection.
fn connection(target: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts
        .lines()
        .rfind(|line| line.split(' ').nth(4) == target.to_str());
    let device = mount.unwrap().split(' ').nth(2).unwrap();
    device.split_once(':').unwrap().1.to_owned()
}

/// What a new container on `parent` would read: its snapshot is mounted as containerd does.
async fn read(client: &Client, key: &str, parent: &str, folder: &Path) -> String {
    let mounts = client.prepare(key, parent, [].into()).await.unwrap();
    let (source, options) = (&mounts[0].source, mounts[0].options.join(","));
    let kind = &mounts[0].r#type;
    let target = folder.join(key);
    fs::create_dir(&target).unwrap();
    sh(&format!(
        "mount -t {kind} {source} -o {options} {}",
        target.display()
    ));
    fs::read_to_string(target.join("etc/low")).unwrap()
}

/// What an administrator may do to a mount, by name.
type Way<'a> = (&'a str, &'a dyn Fn(&PathBuf));

#[tokio::test(flavor = "multi_thread")]
async fn what_an_administrator_takes_away_is_mounted_again() {
    let bed = Bed::up("", &["--only", "registry"]);
    let image = bed.convert(&small_image(bed.folder(), "small"), "small:lazy");
    let folder = bed.folder().join("daemon");
    let daemon = Serve::start(&folder, "", &[]);
    let client = daemon.client().await;
    let names = serve::pull(&client, &Image::of(&bed, &image), "ns").await;
    let top = names.last().unwrap();
    let old = bed.folder();
    assert_eq!(read(&client, "before", top, old).await, "replaced");
    client.prepare("active", top, [].into()).await.unwrap();
    assert!(!daemon.log().contains("ERROR"), "{}", daemon.log());
    let layers = serve::lazy_mounts(&daemon.root());
    assert_eq!(layers.len(), 3);
    let control = bed.folder().join("fusectl");
    fs::create_dir(&control).unwrap();
    sh(&format!("mount -t fusectl fusectl {}", control.display()));

    let unmount = |target: &PathBuf| sh(&format!("umount -l {}", target.display()));
    let abort = |target: &PathBuf| {
        let file = control.join(connection(target)).join("abort");
        fs::write(file, "1").unwrap();
    };
    let cover = |target: &PathBuf| sh(&format!("mount -t tmpfs tmpfs {}", target.display()));
    let ways: [Way<'_>; 3] = [
        ("unmounted", &unmount),
        ("aborted", &abort),
        ("covered", &cover),
    ];
    for (number, (name, harm)) in ways.into_iter().enumerate() {
        harm(&layers[1]);
        if name == "unmounted" {
            let kept = fs::read_to_string(old.join("before/etc/middle")).unwrap();
            assert_eq!(kept, "middle", "who has it open goes on");
        }
        if name == "aborted" {
            // The daemon is told at once, but not in no time.
            crate::bed::wait_for("the end of the connection", 5, || {
                daemon.log().contains("no longer served")
            });
        }
        assert_eq!(
            read(&client, name, top, old).await,
            "replaced",
            "after it was {name}"
        );
        let errors = daemon.log().matches("ERROR").count();
        assert_eq!(
            errors,
            number + 1,
            "said once, and loudly:\n{}",
            daemon.log()
        );
    }
    assert!(
        daemon.log().contains(layers[1].to_str().unwrap()),
        "{}",
        daemon.log()
    );

    // Prepare and Mounts look as well.
    for (number, call) in ["prepare", "mounts"].into_iter().enumerate() {
        unmount(&layers[0]);
        match call {
            "prepare" => drop(client.prepare("again", top, [].into()).await.unwrap()),
            _ => drop(client.mounts("active").await.unwrap()),
        }
        let low = fs::read_to_string(layers[0].join("etc/low")).unwrap();
        assert_eq!(low, "lowest", "after {call}");
        assert_eq!(daemon.log().matches("ERROR").count(), 4 + number);
    }
    // Eight at once mount it once.
    unmount(&layers[0]);
    let keys: Vec<_> = (0..8).map(|n| format!("view {n}")).collect();
    let views = keys.iter().map(|key| client.view(key, top));
    for view in futures::future::join_all(views).await {
        view.unwrap();
    }
    let again = serve::lazy_mounts(&daemon.root());
    let there = again.iter().filter(|target| **target == layers[0]);
    assert_eq!(there.count(), 1, "{again:?}");
}
