//! How fast cached files are read, on the host's disk and through a layer below an overlay: the
//! figures that decide between READ and passthrough, and between OPEN and none. Only with `--long`.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crfs::blob::ByteSize;
use crfs::blob::cache::{Cache, Config};
use crfs::fs::OpenMode;

use crate::bed::long;
use crate::fs_layer::{Content, Mount, Overlay, can_mount};
use crate::fs_passthrough::{noise, open_until_passed};
use crate::takeover_rig::kernel_passes_through;

const LARGE: usize = 1 << 30;

fn drop_page_cache() {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

/// Seconds that reading a file takes, the page cache dropped: best and middle of five.
fn read_through(path: &Path, cold: bool) -> (f64, f64) {
    let mut buffer = vec![0; 1 << 20];
    let mut times: Vec<_> = (0..5)
        .map(|_| {
            if cold {
                drop_page_cache();
            }
            let begun = Instant::now();
            let mut file = File::open(path).unwrap();
            while file.read(&mut buffer).unwrap() > 0 {}
            begun.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (times[0], times[2])
}

#[test]
fn a_large_cached_file() {
    if !can_mount() || !long() || !kernel_passes_through() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let bytes = noise(7, LARGE);
    let native = folder.path().join("native");
    File::create(&native).unwrap().write_all(&bytes).unwrap();
    println!("native: {:.3?} s", read_through(&native, true));
    let config = Config {
        max_size: ByteSize(8 << 30),
    };
    let cache = Arc::new(Cache::open(&folder.path().join("cache"), &config).unwrap());
    let file = |threads: usize, kib: u32, pass: bool| {
        let content = Content::default().file("large", "", &bytes, 512 << 10);
        let mount = Mount::of(content).cached(&cache).with(move |options| {
            options.threads = threads.try_into().unwrap();
            options.read_ahead = Some(kib << 10);
            options.passthrough = pass;
        });
        mount.mount()
    };
    for threads in [1, 2] {
        for kib in [128, 512, 1024, 4096] {
            let layer = file(threads, kib, false);
            let overlay = Overlay::over(&[&layer]);
            let times = read_through(&overlay.at("large"), true);
            println!("READ, {threads} threads, read-ahead {kib} KiB: {times:.3?} s");
        }
    }
    let layer = file(1, 128, true);
    let overlay = Overlay::over(&[&layer]);
    open_until_passed(&layer, &overlay.at("large"));
    println!(
        "passthrough: {:.3?} s",
        read_through(&overlay.at("large"), true)
    );
    println!(
        "passthrough, in the page cache: {:.3?} s",
        read_through(&overlay.at("large"), false)
    );
    println!(
        "native, in the page cache: {:.3?} s",
        read_through(&native, false)
    );
}

#[test]
fn many_small_cached_files() {
    if !can_mount() || !long() {
        return;
    }
    const COUNT: usize = 30_000;
    let folder = tempfile::tempdir().unwrap();
    let mut content = Content::default();
    fs::create_dir(folder.path().join("native")).unwrap();
    for number in 0..COUNT {
        let bytes = noise(number as u64, 50 + number % 3000);
        let name = format!("d{}/f{number}", number % 300);
        let path = folder.path().join("native").join(&name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &bytes).unwrap();
        content = content.file(&name, "", &bytes, 4096);
    }
    let cat = |root: &Path| {
        let mut buffer = vec![0; 64 << 10];
        let mut times: Vec<_> = (0..5)
            .map(|_| {
                let begun = Instant::now();
                for number in 0..COUNT {
                    let path = root.join(format!("d{}/f{number}", number % 300));
                    let mut file = File::open(path).unwrap();
                    while file.read(&mut buffer).unwrap() > 0 {}
                }
                begun.elapsed().as_secs_f64()
            })
            .collect();
        let first = times[0];
        times.sort_by(f64::total_cmp);
        (first, times[2])
    };
    println!(
        "native: first, then {:.3?} s",
        cat(&folder.path().join("native"))
    );
    let config = Config {
        max_size: ByteSize(8 << 30),
    };
    let cache = Arc::new(Cache::open(&folder.path().join("cache"), &config).unwrap());
    let content = Arc::new(parking_lot::Mutex::new(Some(content)));
    for open in [OpenMode::Skip, OpenMode::Answer] {
        let Some(mine) = content.lock().clone() else {
            return;
        };
        let mount = Mount::of(mine).cached(&cache);
        let layer = mount.with(move |options| options.open = open).mount();
        let overlay = Overlay::over(&[&layer]);
        println!("{open:?}: first, then {:.3?} s", cat(&overlay.path));
    }
}
