//! What the process must tell the allocator and the kernel before it serves many mounts.
//!
//! fuser allocates a zeroed receive buffer of 16 MiB for each thread, of which a read-only file
//! system touches one page. It has to stay address space; two things would make it memory
//! (*measured*: 16.5 MB resident for each mount without this, 0.1 MB with it):
//!
//! - glibc takes large blocks from the kernel, already zero, but raises the size from which it
//!   does so when one is freed; fuser's handshake frees one. Later buffers then come from the heap
//!   and are cleared by hand where it was used before. Setting the threshold stops it from moving
//!   (mallopt(3)). *Measured* with 20 such buffers: 36 MB resident without, 2 MB with it.
//! - With transparent huge pages on `always`, touching a page brings 2 MiB.
//!
//! And glibc gives threads arenas of their own, up to eight for each core, of which each keeps what
//! was freed in it. *Measured* on two cores, one process pulling and reading an image with Python, a
//! file of 300 MB and 45,000 small ones, one after the other: at most 57 MB resident with all of
//! them, 47 MB with two. Nothing that is hot allocates.

use std::sync::Once;

use tracing::warn;

/// Blocks of this size and more come from the kernel and go back to it at once, in bytes. Above
/// the largest read (1 MiB), whose buffers are used again and again.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_FROM: std::ffi::c_int = 4 << 20;

/// Arenas of the allocator: enough that threads seldom wait for each other.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS: std::ffi::c_int = 2;

static ONCE: Once = Once::new();

/// Sets all of it, for the whole process; does nothing the second time. To be called before threads
/// are started: arenas that are there stay.
pub fn settle() {
    ONCE.call_once(|| {
        settle_allocator();
        if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
            warn!(%error, "transparent huge pages could not be switched off: more memory is used");
        }
    });
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn settle_allocator() {
    /// `M_MMAP_THRESHOLD` of glibc's `malloc.h`.
    const M_MMAP_THRESHOLD: std::ffi::c_int = -3;
    /// `M_ARENA_MAX` of glibc's `malloc.h`.
    const M_ARENA_MAX: std::ffi::c_int = -8;
    unsafe extern "C" {
        fn mallopt(parameter: std::ffi::c_int, value: std::ffi::c_int) -> std::ffi::c_int;
    }
    // SAFETY: glibc's mallopt takes two integers, locks its arena by itself and may be called at
    // any time.
    let (threshold, arenas) = unsafe {
        (
            mallopt(M_MMAP_THRESHOLD, MAPPED_FROM),
            mallopt(M_ARENA_MAX, ARENAS),
        )
    };
    if threshold == 0 || arenas == 0 {
        warn!("the allocator could not be set up: each mount may use 16 MiB");
    }
}

/// Other allocators do not move their threshold.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn settle_allocator() {}
