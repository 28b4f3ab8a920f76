//! What the process must tell the allocator and the kernel before it serves many mounts.
//!
//! fuser allocates a zeroed receive buffer of 16 MiB for each thread, of which a read-only file
//! system touches one page. It has to stay address space; two things would make it memory
//! (*measured*: 16.5 MB resident for each mount without this, 0.1 MB with it):
//!
//! - glibc takes large blocks from the kernel, already zero, but raises the size from which it
//!   does so when one is freed; fuser's handshake frees one. Later buffers then come from the heap
//!   and are cleared by hand. Setting the threshold stops it from moving (mallopt(3)).
//! - With transparent huge pages on `always`, touching a page brings 2 MiB.

use std::sync::Once;

use tracing::warn;

/// Blocks of this size and more come from the kernel and go back to it at once, in bytes. Above
/// the largest read (1 MiB), whose buffers are used again and again.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_FROM: std::ffi::c_int = 4 << 20;

static ONCE: Once = Once::new();

/// Sets both, for the whole process; does nothing the second time.
pub fn settle() {
    ONCE.call_once(|| {
        fix_mmap_threshold();
        if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
            warn!(%error, "transparent huge pages could not be switched off: more memory is used");
        }
    });
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn fix_mmap_threshold() {
    /// `M_MMAP_THRESHOLD` of glibc's `malloc.h`.
    const M_MMAP_THRESHOLD: std::ffi::c_int = -3;
    unsafe extern "C" {
        fn mallopt(parameter: std::ffi::c_int, value: std::ffi::c_int) -> std::ffi::c_int;
    }
    // SAFETY: glibc's mallopt takes two integers, locks its arena by itself and may be called at
    // any time.
    if unsafe { mallopt(M_MMAP_THRESHOLD, MAPPED_FROM) } == 0 {
        warn!("the allocator's threshold could not be set: each mount may use 16 MiB");
    }
}

/// Other allocators do not move their threshold.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn fix_mmap_threshold() {}
