//! Damage to the metadata on disk: found, made good, or harmless; and the disk running full.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::snapshots_client::{Client, Daemon, Layer, Random, RootFolder, is_long};

/// Everything the API says, by name.
type Seen = BTreeMap<String, String>;

async fn seen(client: &Client) -> Seen {
    let infos = client.list(&[]).await.unwrap();
    let line = |mut info: containerd_snapshots::api::snapshots::v1::Info| {
        let labels: BTreeMap<_, _> = std::mem::take(&mut info.labels).into_iter().collect();
        (info.name.clone(), format!("{info:?} {labels:?}"))
    };
    infos.into_iter().map(line).collect()
}

/// Fails with the snapshots that are not the same.
fn assert_same(after: &Seen, before: &Seen, when: &str) {
    let names: std::collections::BTreeSet<_> = after.keys().chain(before.keys()).collect();
    let differ: Vec<_> = names
        .into_iter()
        .filter(|name| after.get(*name) != before.get(*name))
        .map(|name| (before.get(name), after.get(name)))
        .collect();
    assert!(
        differ.is_empty(),
        "after {when}, before and after: {differ:#?}"
    );
}

async fn fill(client: &Client, count: usize) {
    let mut parent = String::new();
    for n in 0..count {
        let (key, name) = (format!("active {n}"), format!("layer {n}"));
        client.prepare(&key, &parent, [].into()).await.unwrap();
        client
            .update(&key, "value", &"v".repeat(n * 37 % 900))
            .await
            .unwrap();
        match n % 3 {
            0 => {
                client.commit(&name, &key).await.unwrap();
                parent = name;
            }
            1 => client.remove(&key).await.unwrap(),
            _ => {}
        }
        if n % 5 == 0 {
            let layer = Layer {
                image: "lazy",
                number: n,
            };
            assert!(client.pull("x", &parent, layer).await.unwrap());
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status()
        .unwrap();
    assert!(status.success());
}

/// The files that hold metadata.
fn metadata_files(root: &Path) -> Vec<PathBuf> {
    let mut files = vec![root.join("version")];
    let mut folders = vec![root.join("store")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    for entry in fs::read_dir(root.join("snapshots")).unwrap() {
        files.push(entry.unwrap().path().join("record"));
    }
    files.retain(|file| file.exists());
    files.sort();
    files
}

/// Damages one file in one of several ways; says how.
fn damage(root: &Path, random: &mut Random) -> String {
    if random.below(20) == 0 {
        fs::remove_dir_all(root.join("store")).unwrap();
        return "database deleted".to_owned();
    }
    let files = metadata_files(root);
    // The database is few files of many: it gets half of all damage.
    let database: Vec<_> = files
        .iter()
        .filter(|file| file.starts_with(root.join("store")))
        .collect();
    let file = match random.below(2) {
        0 => database[random.below(database.len())].clone(),
        _ => files[random.below(files.len())].clone(),
    };
    let length = usize::try_from(fs::metadata(&file).unwrap().len()).unwrap();
    let open = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&file)
        .unwrap();
    let how = match (random.below(4), length) {
        (_, 0) | (0, _) => {
            fs::remove_file(&file).unwrap();
            "deleted".to_owned()
        }
        (1, _) => {
            let to = random.below(length);
            open.set_len(to as u64).unwrap();
            format!("cut to {to} of {length}")
        }
        (2, _) => {
            let at = random.below(length);
            let zeros = vec![0; 4096.min(length - at)];
            open.write_all_at(&zeros, at as u64).unwrap();
            format!("zeroed from {at} of {length}")
        }
        _ => {
            let at = random.below(length);
            let mut byte = [0];
            open.read_exact_at(&mut byte, at as u64).unwrap();
            byte[0] ^= 1 << random.below(8);
            open.write_all_at(&byte, at as u64).unwrap();
            format!("bit flipped at {at} of {length}")
        }
    };
    format!("{}: {how}", file.display())
}

#[test]
fn random_damage_is_made_good() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let rounds = if is_long() { 200 } else { 20 };
        let root = RootFolder::new();
        let (daemon, client) = Daemon::start(&root.path()).await;
        fill(&client, 40).await;
        let before = seen(&client).await;
        daemon.kill();
        for target in root.mounts() {
            unmount(&*target, UnmountFlags::DETACH).unwrap();
        }
        let good = root.path().with_extension("good");
        copy(&root.path(), &good);
        let mut random = Random(5);
        for _ in 0..rounds {
            let damage = damage(&root.path(), &mut random);
            let (daemon, client) = Daemon::start(&root.path()).await;
            let after = seen(&client).await;
            assert_same(&after, &before, &damage);
            client.prepare("new", "layer 0", [].into()).await.unwrap();
            daemon.kill();
            for target in root.mounts() {
                unmount(&*target, UnmountFlags::DETACH).unwrap();
            }
            fs::remove_dir_all(root.path()).unwrap();
            copy(&good, &root.path());
        }
    });
}

#[test]
fn thousands_of_snapshots_are_rebuilt_in_seconds() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let count = if is_long() { 10_000 } else { 1_000 };
        let root = RootFolder::new();
        let (daemon, client) = Daemon::start(&root.path()).await;
        client.prepare("a", "", [].into()).await.unwrap();
        client.commit("base", "a").await.unwrap();
        for begin in (0..count).step_by(100) {
            let keys: Vec<String> = (begin..begin + 100)
                .map(|n| format!("ns/{n}/key"))
                .collect();
            let prepares = keys
                .iter()
                .map(|key| client.prepare(key, "base", [].into()));
            futures::future::try_join_all(prepares).await.unwrap();
        }
        let before = seen(&client).await;
        assert_eq!(before.len(), count + 1);
        daemon.kill();
        fs::remove_dir_all(root.path().join("store")).unwrap();
        let began = Instant::now();
        let (daemon, client) = Daemon::start(&root.path()).await;
        let took = began.elapsed();
        println!("{count} snapshots rebuilt in {took:?}");
        assert!(took < Duration::from_secs(10), "{took:?}");
        assert_same(&seen(&client).await, &before, "the rebuild");
        daemon.kill();
    });
}

#[test]
fn a_full_disk_fails_calls_and_heals_without_a_restart() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let root = RootFolder::new();
        fs::create_dir(root.path()).unwrap();
        mount(
            "small",
            &root.path(),
            "tmpfs",
            MountFlags::empty(),
            c"size=16m,mode=700",
        )
        .unwrap();
        let (daemon, client) = Daemon::start(&root.path()).await;
        fill(&client, 12).await;
        let ballast = root.path().join("ballast");
        for round in 0..3 {
            let before = seen(&client).await;
            let full = fs::write(&ballast, vec![1; 64 << 20]).unwrap_err();
            assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
            let mut refused = 0;
            for n in 0..40 {
                let key = format!("full {round} {n}");
                if client.prepare(&key, "layer 0", [].into()).await.is_err() {
                    refused += 1;
                } else {
                    client.remove(&key).await.unwrap();
                }
            }
            assert!(refused > 0, "the disk is not full enough");
            assert_same(&seen(&client).await, &before, "calls that failed");
            fs::remove_file(&ballast).unwrap();
            let key = format!("healed {round}");
            client.prepare(&key, "layer 0", [].into()).await.unwrap();
        }
        let before = seen(&client).await;
        daemon.kill();
        let (daemon, client) = Daemon::start(&root.path()).await;
        assert_same(&seen(&client).await, &before, "a restart");
        // What is removed while the disk is full stays removed.
        fs::write(&ballast, vec![1; 64 << 20]).unwrap_err();
        client.remove("healed 0").await.unwrap();
        daemon.kill();
        fs::remove_file(&ballast).unwrap();
        let (daemon, client) = Daemon::start(&root.path()).await;
        assert!(!seen(&client).await.contains_key("healed 0"));
        daemon.kill();
    });
}

#[test]
fn a_newer_root_is_refused_and_not_touched() {
    let root = RootFolder::new();
    fs::create_dir(root.path()).unwrap();
    fs::write(root.path().join("version"), "9\n").unwrap();
    assert_eq!(Daemon::spawn(&root.path(), None).wait(), Some(3));
    assert!(root.log().contains("newer crfs"));
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
}
