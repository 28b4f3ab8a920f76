//! Sequential readers, recognised from chunk numbers alone: there are no file handles to ask.
//!
//! A reader that misses the chunk after the last one it read is sequential; its window doubles
//! with every step up to the bound. A hit on the *trigger* chunk in the middle of what was asked
//! for ahead extends it without a miss. Several readers, also of one file, are told apart.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

/// Readers that are followed at once per layer; the one not heard of for longest is forgotten.
const STREAMS: usize = 16;
/// First window, in bytes of content.
const FIRST_WINDOW: u64 = 512 << 10;
/// A trigger that no chunk has.
const NONE: u32 = u32::MAX;

#[derive(Clone, Default)]
struct Stream {
    file: Range<u32>,
    /// The first chunk of its last read.
    first: u32,
    /// The last chunk it read.
    last: u32,
    /// Chunks below this one were asked for.
    until: u32,
    /// Bytes to be ahead; 0 until it was sequential once.
    window: u64,
    /// When it was last heard of.
    heard: u64,
}

#[derive(Default)]
struct Streams {
    slots: [Stream; STREAMS],
    now: u64,
}

/// The readers of one layer.
pub(in crate::blob) struct ReadAhead {
    streams: Mutex<Streams>,
    /// Trigger chunk of each stream: what a hit compares with, without a lock.
    triggers: [AtomicU32; STREAMS],
    /// Largest window in bytes; 0 turns read-ahead off.
    max: u64,
}

impl ReadAhead {
    pub(super) fn new(max: u64) -> Self {
        Self {
            streams: Mutex::default(),
            triggers: std::array::from_fn(|_| AtomicU32::new(NONE)),
            max,
        }
    }

    /// Whether a hit on `chunk` asks for more: a few relaxed loads.
    pub(in crate::blob) fn is_trigger(&self, chunk: u32) -> bool {
        self.triggers
            .iter()
            .any(|trigger| trigger.load(Ordering::Relaxed) == chunk)
    }

    /// A hit on a trigger: which chunks to ask for.
    pub(in crate::blob) fn on_trigger(&self, chunk: u32, size: &dyn Fn(u32) -> u64) -> Range<u32> {
        let mut streams = self.streams.lock();
        let found = self
            .triggers
            .iter()
            .position(|trigger| trigger.load(Ordering::Relaxed) == chunk);
        match found {
            Some(slot) => self.step(&mut streams, slot, chunk, size),
            None => 0..0,
        }
    }

    /// A read of `chunks` in `file` that misses: which chunks to ask for besides them.
    pub(in crate::blob) fn on_miss(
        &self,
        chunks: &Range<u32>,
        file: &Range<u32>,
        size: &dyn Fn(u32) -> u64,
    ) -> Range<u32> {
        let within = file.start <= chunks.start && chunks.end <= file.end;
        if self.max == 0 || chunks.is_empty() || !within {
            return 0..0;
        }
        let (first, last) = (chunks.start, chunks.end - 1);
        let mut streams = self.streams.lock();
        let follows = |stream: &Stream| {
            let next = stream.first..=stream.until.max(stream.last + 1);
            stream.heard > 0 && stream.file == *file && next.contains(&first)
        };
        if let Some(slot) = streams.slots.iter().position(follows) {
            let stream = &mut streams.slots[slot];
            if last <= stream.last {
                // A part of the same read once more: no sign of anything.
                return 0..0;
            }
            stream.first = first;
            stream.until = stream.until.max(chunks.end);
            let read = chunks.clone().map(size).sum();
            stream.window = stream.window.max(read);
            return self.step(&mut streams, slot, last, size);
        }
        streams.now += 1;
        let heard = streams.now;
        let oldest = (0..STREAMS)
            .min_by_key(|slot| streams.slots[*slot].heard)
            .unwrap_or(0);
        let (file, until) = (file.clone(), chunks.end);
        streams.slots[oldest] = Stream {
            file,
            first,
            last,
            until,
            window: 0,
            heard,
        };
        self.triggers[oldest].store(NONE, Ordering::Relaxed);
        0..0
    }

    fn step(
        &self,
        streams: &mut Streams,
        slot: usize,
        chunk: u32,
        size: &dyn Fn(u32) -> u64,
    ) -> Range<u32> {
        streams.now += 1;
        let heard = streams.now;
        let stream = &mut streams.slots[slot];
        stream.heard = heard;
        stream.last = chunk;
        let asked: u64 = (chunk + 1..stream.until).map(size).sum();
        if asked > stream.window / 2 {
            // Enough for now: extending by a chunk at a time would make a request of each.
            return 0..0;
        }
        stream.window = (stream.window * 2).clamp(FIRST_WINDOW.min(self.max), self.max);
        let from = stream.until.max(chunk + 1);
        let (mut until, mut ahead) = (chunk + 1, 0);
        let mut trigger = NONE;
        while until < stream.file.end && (ahead < stream.window || until < from) {
            ahead += size(until);
            if trigger == NONE && ahead > stream.window / 2 {
                trigger = until;
            }
            until += 1;
        }
        stream.until = until.max(from);
        let end = stream.until >= stream.file.end;
        self.triggers[slot].store(if end { NONE } else { trigger }, Ordering::Relaxed);
        from..stream.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 128 << 10;

    fn miss(ahead: &ReadAhead, chunk: u32, file: Range<u32>) -> Range<u32> {
        ahead.on_miss(&(chunk..chunk + 1), &file, &|_| CHUNK)
    }

    #[test]
    fn random_reads_are_not_taken_for_a_stream() {
        let ahead = ReadAhead::new(16 << 20);
        for chunk in [0, 50, 51 + 50, 7, 90, 3, 3, 200] {
            assert!(miss(&ahead, chunk, 0..1000).is_empty(), "{chunk}");
        }
    }

    #[test]
    fn a_sequential_reader_gets_a_growing_bounded_window() {
        let ahead = ReadAhead::new(2 << 20);
        assert!(miss(&ahead, 10, 10..1000).is_empty());
        assert_eq!(miss(&ahead, 11, 10..1000), 12..16);
        let (mut until, mut chunk) = (16, 12);
        let mut widest = 0;
        while chunk < 900 {
            let more = if ahead.is_trigger(chunk) {
                ahead.on_trigger(chunk, &|_| CHUNK)
            } else {
                0..0
            };
            if !more.is_empty() {
                assert_eq!(more.start, until, "without holes or overlaps");
                until = more.end;
            }
            assert!(until > chunk, "the reader is never caught up with");
            widest = widest.max(until - chunk);
            chunk += 1;
        }
        assert_eq!(u64::from(widest - 1) * CHUNK, 2 << 20);
    }

    #[test]
    fn one_read_of_many_chunks_is_not_taken_for_a_stream_and_two_are() {
        let ahead = ReadAhead::new(16 << 20);
        let batch = |chunks| ahead.on_miss(&chunks, &(0..1000), &|_| CHUNK);
        assert!(batch(100..108).is_empty());
        (100..108).for_each(|chunk| assert!(miss(&ahead, chunk, 0..1000).is_empty()));
        assert_eq!(batch(108..116), 116..132, "a window of two such reads");
        (108..116).for_each(|chunk| assert!(miss(&ahead, chunk, 0..1000).is_empty()));
        assert!(batch(500..508).is_empty());
    }

    #[test]
    fn several_readers_of_one_file_are_told_apart() {
        let ahead = ReadAhead::new(2 << 20);
        for start in [0, 300, 600] {
            miss(&ahead, start, 0..1000);
        }
        for start in [600, 0, 300] {
            assert_eq!(miss(&ahead, start + 1, 0..1000), start + 2..start + 6);
        }
    }

    #[test]
    fn it_stays_within_the_file_and_can_be_turned_off() {
        let ahead = ReadAhead::new(2 << 20);
        miss(&ahead, 0, 0..3);
        assert_eq!(miss(&ahead, 1, 0..3), 2..3);
        assert!(miss(&ahead, 2, 0..3).is_empty());
        assert!(miss(&ahead, u32::MAX - 2, 0..u32::MAX - 1).is_empty());
        assert!(
            miss(&ahead, 9, 0..3).is_empty(),
            "a chunk that is not the file's"
        );
        let off = ReadAhead::new(0);
        miss(&off, 0, 0..10);
        assert!(miss(&off, 1, 0..10).is_empty());
    }
}
