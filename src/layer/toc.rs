//! The end of a layer's blob: how much of it is read, and where in it the TOC lies.

use std::io::{self, Read as _};
use std::ops::Range;
use std::path::Path;

use futures::TryStreamExt as _;
use futures::future::try_join_all;

use crate::layer::NotLazy;
use crate::layer::spool::{Spool, SpoolPart};
use crate::oci::{Descriptor, annotation};
use crate::registry::RangeSource;
use crate::stargz::Footer;

/// The least that is read of a blob's end, in bytes: the TOC of a layer of a few hundred files.
const MIN_TAIL: u64 = 64 << 10;
/// The most that is read of a blob's end before its footer is known, in bytes.
const MAX_TAIL: u64 = 1 << 20;
/// The least that is read of a blob's end on the word of the manifest, in bytes.
const MIN_HINTED: u64 = 4 << 10;
/// A TOC is rarely more than this part of its blob (layers of tiny files apart); reading so much
/// of the end saves a round trip, and costs little where it is too much.
const TAIL_SHARE: u64 = 64;

/// A TOC is read in parts of at most this many bytes, or in so many parts: a new connection brings some 14 KiB in its first
/// round trip (RFC 6928) and twice as much in each further one, and the content that is asked for next finds more connections
/// that are past that. Measured (Python with numpy, a profile laid out, medians of 3 in turn): 50 ms and 200 Mbit/s 1.65 s in
/// one part, 1.50 in these; eight parts of 42 kB no better; 10 ms and 1 Gbit/s no difference.
const PART: u64 = 64 << 10;
const PARTS: u64 = 6;

/// How much of the blob's end to read, by the word of whoever wrote the manifest: where the TOC
/// begins. It saves a request where the TOC is longer than the usual guess; the footer decides.
pub(super) fn hint(layer: &Descriptor, most: u64) -> Option<u64> {
    let offset: u64 = layer
        .annotations
        .get(annotation::TOC_OFFSET)?
        .parse()
        .ok()?;
    let tail = layer.size.checked_sub(offset)?;
    (tail <= most.saturating_add(Footer::MAX_LEN as u64)).then_some(tail)
}

/// A blob whose TOC is to be read.
pub(super) struct Reading<'a> {
    pub(super) source: &'a dyn RangeSource,
    /// The longest TOC that is read, compressed, in bytes.
    pub(super) most: u64,
    /// For what is too long to be held in memory.
    pub(super) folder: &'a Path,
}

impl Reading<'_> {
    /// Reads the end of the blob, finds the footer there and the TOC before it: at once, or in two
    /// round trips where the TOC is longer than was `hinted` or guessed.
    pub(super) async fn toc_member(
        &self,
        hinted: Option<u64>,
    ) -> Result<(u64, SpoolPart), NotLazy> {
        let size = self.source.size();
        let usual = (size / TAIL_SHARE).clamp(MIN_TAIL, MAX_TAIL);
        let guess = hinted.unwrap_or(usual).max(MIN_HINTED).min(size);
        if size == 0 {
            return Err(NotLazy::PlainGzip);
        }
        let tail_start = size - guess;
        let tail = self.range(tail_start..size).await?;
        let footer = footer(&tail, size)?;
        let end = size - footer.len() as u64;
        let claimed = end - footer.toc_offset;
        if claimed > self.most {
            let most = self.most;
            let why = format!("a TOC of {claimed} bytes, compressed; the limit is {most}");
            return Err(NotLazy::TooLarge(why));
        }
        let tail_end = end - tail_start;
        let (spool, range) = match footer.toc_offset.checked_sub(tail_start) {
            Some(at) => (tail, at..tail_end),
            None => {
                let mut all = self.range(footer.toc_offset..tail_start).await?;
                all.push_from(&tail, 0..tail_end).map_err(unspooled)?;
                (all, 0..claimed)
            }
        };
        Ok((footer.toc_offset, SpoolPart { spool, range }))
    }

    /// Reads a range, in parts that are asked for at once if it is short enough for them to wait in memory.
    async fn range(&self, range: Range<u64>) -> Result<Spool, NotLazy> {
        let parts = try_join_all(parts(range).map(|part| self.part(part))).await?;
        let mut parts = parts.into_iter();
        let nothing = || Spool::new(self.folder.to_owned());
        let mut all = parts.next().unwrap_or_else(nothing);
        for part in parts {
            all.push_from(&part, 0..part.len()).map_err(unspooled)?;
        }
        Ok(all)
    }

    async fn part(&self, range: Range<u64>) -> Result<Spool, NotLazy> {
        let mut spool = Spool::new(self.folder.to_owned());
        let mut stream = self.source.range(range).await?;
        while let Some(piece) = stream.try_next().await? {
            spool.push(&piece).map_err(unspooled)?;
        }
        Ok(spool)
    }
}

/// Cuts a range into equal parts.
fn parts(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let len = range.end - range.start;
    let count = match len {
        0..=MAX_TAIL => len.div_ceil(PART).clamp(1, PARTS),
        _ => 1,
    };
    let at = move |n: u64| range.start + len * n / count;
    (0..count).map(move |n| at(n)..at(n + 1))
}

fn footer(tail: &Spool, size: u64) -> Result<Footer, NotLazy> {
    let mut last = Vec::with_capacity(Footer::MAX_LEN);
    let start = tail.len().saturating_sub(Footer::MAX_LEN as u64);
    let mut reader = tail.reader(start..tail.len());
    reader.read_to_end(&mut last).map_err(unspooled)?;
    Footer::parse(&last, size)
        .map_err(|error| NotLazy::Invalid(error.to_string()))?
        .ok_or(NotLazy::PlainGzip)
}

fn unspooled(error: io::Error) -> NotLazy {
    NotLazy::Local(format!("a TOC on its way could not be kept: {error}"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::FutureExt as _;
    use futures::future::BoxFuture;
    use futures::stream::{self, StreamExt as _};

    use bytes::Bytes;

    use super::*;
    use crate::oci::{Digest, MediaType};
    use crate::registry::{self, ByteStream};

    struct Memory {
        bytes: Bytes,
        requests: AtomicU32,
    }

    impl RangeSource for Memory {
        fn digest(&self) -> Digest {
            Digest::of(&self.bytes)
        }

        fn size(&self) -> u64 {
            self.bytes.len() as u64
        }

        fn range(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, registry::Error>> {
            self.requests.fetch_add(1, Ordering::SeqCst);
            let piece = self.bytes.slice(range.start as usize..range.end as usize);
            async move { Ok(stream::iter([Ok(piece)]).boxed()) }.boxed()
        }
    }

    /// What tells each place from those near it.
    fn toc_bytes(len: usize) -> impl Iterator<Item = u8> {
        (0..len).map(|at| (at % 251) as u8)
    }

    /// A blob whose TOC has this many bytes, after as much content as makes the usual guess wrong.
    fn blob(toc: usize) -> Memory {
        let real = include_bytes!("../stargz/testdata/estargz.blob");
        let footer = &real[real.len() - Footer::MAX_LEN..];
        let found = Footer::parse(footer, real.len() as u64).unwrap().unwrap();
        // The footer says where the TOC begins, so content is put where it says nothing of.
        let begin = usize::try_from(found.toc_offset).unwrap();
        let mut bytes = vec![1; begin];
        bytes.extend(toc_bytes(toc));
        bytes.extend_from_slice(footer);
        Memory {
            bytes: bytes.into(),
            requests: AtomicU32::new(0),
        }
    }

    #[tokio::test]
    async fn a_hint_saves_a_round_trip_and_a_wrong_one_costs_one() {
        let folder = tempfile::tempdir().unwrap();
        // One that is held in memory and asked for in parts, and one that is not.
        for (size, requests) in [(200_000_u64, [4, 4, 5, 4, 4]), (3_000_000, [2, 1, 2, 2, 1])] {
            let hints = [
                None,
                Some(size + 51),
                Some(size + 20),
                Some(0),
                Some(u64::MAX),
            ];
            for (hinted, requests) in hints.into_iter().zip(requests) {
                let blob = blob(size as usize);
                let reading = Reading {
                    source: &blob,
                    most: size,
                    folder: folder.path(),
                };
                let (at, part) = reading.toc_member(hinted).await.unwrap();
                assert_eq!(at + size + 51, blob.size(), "{hinted:?}");
                let mut member = Vec::new();
                part.spool
                    .reader(part.range)
                    .read_to_end(&mut member)
                    .unwrap();
                assert!(member.into_iter().eq(toc_bytes(size as usize)));
                let asked = blob.requests.load(Ordering::SeqCst);
                assert_eq!(asked, requests, "{hinted:?}");
                let reading = Reading {
                    most: size - 1,
                    ..reading
                };
                let refused = reading.toc_member(hinted).await;
                assert!(matches!(refused, Err(NotLazy::TooLarge(_))), "{hinted:?}");
                let asked = blob.requests.load(Ordering::SeqCst) - asked;
                assert!(asked <= requests, "{hinted:?}: {asked}");
            }
        }
    }

    #[test]
    fn parts_are_all_of_a_range_and_not_too_many() {
        for (len, expected) in [
            (0, 1),
            (1, 1),
            (PART, 1),
            (PART + 1, 2),
            (5 * PART + 3, 6),
            (MAX_TAIL, 6),
            (MAX_TAIL + 1, 1),
            (u64::MAX - 7, 1),
        ] {
            let all: Vec<_> = parts(7..7 + len).collect();
            assert_eq!(all.len(), expected, "{len}");
            assert_eq!((all[0].start, all[expected - 1].end), (7, 7 + len));
            assert!(all.windows(2).all(|two| two[0].end == two[1].start));
        }
    }

    #[test]
    fn a_hint_is_believed_within_bounds() {
        for (text, tail) in [
            ("900", Some(100)),
            ("1000", Some(0)),
            ("1001", None),
            ("-1", None),
            ("", None),
            ("18446744073709551616", None),
        ] {
            let annotations = [(annotation::TOC_OFFSET.to_owned(), text.to_owned())];
            let layer = |size| Descriptor {
                media_type: MediaType::OciTarGzip,
                digest: Digest::of(b""),
                size,
                annotations: annotations.clone().into(),
                platform: None,
                extra: serde_json::Map::new(),
            };
            assert_eq!(hint(&layer(1000), 1 << 20), tail, "{text}");
            assert_eq!(
                hint(&layer(u64::MAX), 1 << 20),
                None,
                "{text}: too much to read at once"
            );
        }
    }
}
