//! Large files that the kernel reads by itself, on real mounts below a real overlay.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crfs::blob::ByteSize;
use crfs::blob::cache::{Cache, Config};

use crate::fs_layer::{Content, Mount, Mounted, Overlay, can_mount};
use crate::takeover_rig::kernel_passes_through;

/// Bytes that nothing compresses and that differ with `seed`.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Opens a file again and again until the kernel reads it by itself.
pub fn open_until_passed(layer: &Mounted, path: &Path) -> File {
    let passed = || layer.served.as_ref().unwrap().counts().passed;
    let (before, begun) = (passed(), Instant::now());
    loop {
        let file = File::open(path).unwrap();
        if passed() > before {
            return file;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "it never passes through"
        );
        drop(file);
        std::thread::sleep(Duration::from_millis(200));
    }
}

pub fn cache(folder: &Path, max_size: u64) -> Arc<Cache> {
    let config = Config {
        max_size: ByteSize(max_size),
    };
    Arc::new(Cache::open(folder, &config).unwrap())
}

fn reads(layer: &Mounted) -> u64 {
    let counts = layer.served.as_ref().unwrap().counts();
    assert_eq!(counts.failures, 0, "{counts:?}");
    counts.hits + counts.misses
}

fn read(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_complete_file_is_read_by_the_kernel_and_an_open_one_stays_as_it_is() {
    if !can_mount() || !kernel_passes_through() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(&folder.path().join("cache"), 256 << 20);
    // Zeros in the middle, and the same chunk twice: neither is held twice by the cache.
    let mut bytes = noise(1, 5_000_000);
    bytes[1 << 20..2 << 20].fill(0);
    bytes.copy_within(0..512 << 10, 3 << 20);
    let content = Content::default().file("large", "", &bytes, 512 << 10);
    let layer = Mount::of(content).cached(&cache).mount();
    let overlay = Overlay::over(&[&layer]);
    let path = overlay.at("large");
    // Nothing was completed yet: this one is read through the server as long as it is open, and so
    // is every other that overlaps with it.
    let mut early = File::open(&path).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let mut second = File::open(&path).unwrap();
    assert_eq!(layer.served.as_ref().unwrap().counts().passed, 0);
    assert!(read(&mut early) == bytes && read(&mut second) == bytes);
    assert!(reads(&layer) > 0);
    drop((early, second));
    let mut passed = open_until_passed(&layer, &path);
    let before = reads(&layer);
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    assert!(read(&mut passed) == bytes);
    let mut third = File::open(&path).unwrap();
    assert!(read(&mut third) == bytes);
    let mut piece = [0; 100];
    third.read_exact_at(&mut piece, 4_999_900).unwrap();
    assert_eq!(piece, bytes[4_999_900..]);
    assert_eq!(third.read_at(&mut piece, 5_000_000).unwrap(), 0);
    assert_eq!(reads(&layer), before, "not one READ");
    drop((passed, third, overlay));
    layer.unmount().unwrap();
}

#[test]
fn a_program_passed_through_runs_and_maps() {
    if !can_mount() || !kernel_passes_through() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(&folder.path().join("cache"), 256 << 20);
    let bash = fs::read("/bin/bash").unwrap();
    assert!(bash.len() > 1 << 20, "too small to be passed through");
    let content = Content::default().file("bash", r#","mode":493"#, &bash, 512 << 10);
    let layer = Mount::of(content).cached(&cache).mount();
    let overlay = Overlay::over(&[&layer]);
    let path = overlay.at("bash");
    drop(open_until_passed(&layer, &path));
    let before = reads(&layer);
    for _ in 0..3 {
        let output = Command::new(&path).args(["-c", "echo $((6 * 7))"]).output();
        assert_eq!(output.unwrap().stdout, b"42\n");
    }
    // grep maps nothing, cmp reads; python would map: a map of our own.
    let file = File::open(&path).unwrap();
    // SAFETY: nobody writes to the file.
    let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    assert!(map[..] == bash[..]);
    assert_eq!(reads(&layer), before, "not one READ");
}

#[test]
fn a_file_that_somebody_touched_is_verified_before_it_is_passed_through_again() {
    if !can_mount() || !kernel_passes_through() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(&folder.path().join("cache"), 256 << 20);
    let bytes = noise(2, 3_000_000);
    let content = Content::default().file("large", "", &bytes, 512 << 10);
    let layer = Mount::of(content).cached(&cache).mount();
    let path = layer.at("large");
    drop(open_until_passed(&layer, &path));
    // A file system's times may be as coarse as the kernel's tick: what is written within the tick of
    // the seal is not seen.
    std::thread::sleep(Duration::from_millis(50));
    let stored = folder.path().join("cache/80000000.file");
    let stored = File::options().write(true).open(stored).unwrap();
    stored.write_all_at(&bytes[100..200], 100).unwrap();
    let before = layer.served.as_ref().unwrap().counts().passed;
    let mut file = File::open(&path).unwrap();
    assert_eq!(layer.served.as_ref().unwrap().counts().passed, before);
    assert!(read(&mut file) == bytes);
    drop(file);
    assert!(read(&mut open_until_passed(&layer, &path)) == bytes);
    layer.unmount().unwrap();
}

#[test]
fn where_the_kernel_refuses_the_server_answers() {
    if !can_mount() {
        return;
    }
    // A file on an overlay cannot be passed through below another.
    let other = Mount::of(Content::default().folder("d")).mount();
    let overlay = Overlay::over(&[&other]);
    let cache = cache(&overlay.at("cache"), 64 << 20);
    let bytes = noise(4, 3_000_000);
    let content = Content::default().file("large", "", &bytes, 512 << 10);
    let layer = Mount::of(content).cached(&cache).mount();
    for _ in 0..10 {
        let mut file = File::open(layer.at("large")).unwrap();
        assert!(read(&mut file) == bytes);
        std::thread::sleep(Duration::from_millis(200));
    }
    let stored = overlay.at("cache/80000000.file");
    assert_eq!(
        fs::metadata(stored).unwrap().len(),
        3_000_000,
        "it was completed"
    );
    assert_eq!(layer.served.as_ref().unwrap().counts().passed, 0);
    assert!(reads(&layer) > 0);
    layer.unmount().unwrap();
    drop(cache);
}
