//! Buffers for the replies to reads, shared by all mounts.
//!
//! A hit copies into a buffer that was used before, so it neither allocates nor clears memory. One
//! pool for the process, not one buffer for each thread: 500 mounts with a thread each would keep
//! 500 buffers of the largest read.
//!
//! Locking: one mutex, held for a push or a pop.

use std::ops::{Deref, DerefMut};

use parking_lot::Mutex;

/// How many buffers wait for their next use: more reads than this at one moment allocate.
const IDLE: usize = 8;
/// Buffers larger than this (the largest read of the kernel) are given back.
const LARGEST: usize = 1 << 20;

static POOL: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// A buffer that goes back to the pool when it is dropped.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    len: usize,
}

impl Buffer {
    /// A buffer of `len` bytes of no particular value.
    pub fn take(len: usize) -> Self {
        let mut bytes = POOL.lock().pop().unwrap_or_default();
        if bytes.len() < len {
            bytes.resize(len, 0);
        }
        Self { bytes, len }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.len).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes.is_empty() || self.bytes.len() > LARGEST {
            return;
        }
        let mut pool = POOL.lock();
        if pool.len() < IDLE {
            pool.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_has_the_length_asked_for_whatever_it_held_before() {
        drop(Buffer::take(4096));
        for len in [0, 10, 4096, 5000, 2 * LARGEST] {
            let mut buffer = Buffer::take(len);
            assert_eq!(buffer.len(), len);
            buffer.fill(7);
        }
        assert!(POOL.lock().iter().all(|bytes| bytes.len() <= LARGEST));
    }
}
