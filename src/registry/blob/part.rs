//! The asked bytes of one answer: checked head, counted body.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;

use crate::registry::Error;
use crate::registry::blob::whole::Tail;
use crate::registry::body::Body;
use crate::registry::transport::Answer;

/// The asked part of one answer.
pub(super) struct Part {
    from: From,
    /// Bytes before the asked ones that the host sends all the same.
    skip: u64,
    left: u64,
    /// Whether the host was to send the asked bytes and no others.
    exact: bool,
}

/// What it is cut from.
enum From {
    /// An answer of its own.
    Answer(Body),
    /// One that others read too, from the part's beginning on.
    Whole(Tail),
}

impl Part {
    /// Checks that `answer` holds `range` of a blob of `size` bytes.
    pub(super) fn of(
        what: &Arc<str>,
        size: u64,
        answer: Answer,
        range: &Range<u64>,
    ) -> Result<Self, Error> {
        let want = range.end - range.start;
        let wrong = |answer: &Answer, why: String| {
            let host = answer.host();
            Error::Protocol(format!("{}: {host} answered {why}", what))
        };
        let (skip, length, exact) = match answer.status() {
            StatusCode::PARTIAL_CONTENT => {
                let text = answer.headers().get(CONTENT_RANGE);
                let text = text.and_then(|t| t.to_str().ok()).unwrap_or("(none)");
                if parse_content_range(text) != Some((range.clone(), size)) {
                    let asked = format!("{}-{}/{}", range.start, range.end - 1, size);
                    let why = format!("content-range {text:?} when asked for {asked}");
                    return Err(wrong(&answer, why));
                }
                (0, want, true)
            }
            StatusCode::OK => (range.start, size, want == size),
            other => return Err(wrong(&answer, format!("{other} when asked for a range"))),
        };
        if answer.content_length().is_some_and(|got| got != length) {
            let got = answer.content_length().unwrap_or_default();
            return Err(wrong(&answer, format!("with {got} bytes, not {length}")));
        }
        Ok(Self {
            from: From::Answer(answer.into_body()),
            skip,
            left: want,
            exact,
        })
    }

    /// `range` of a blob of which all is sent: what `tail` reads.
    pub(super) const fn of_whole(tail: Tail, range: &Range<u64>) -> Self {
        Self {
            from: From::Whole(tail),
            skip: 0,
            left: range.end - range.start,
            exact: false,
        }
    }

    /// Whether the host sends the whole blob although a part of it was asked for.
    pub(super) const fn is_of_more(&self) -> bool {
        matches!(self.from, From::Answer(_)) && !self.exact
    }

    /// All of the blob of `size` bytes, if [`Self::is_of_more`].
    pub(super) fn widened(self, size: u64) -> Self {
        Self {
            skip: 0,
            left: size,
            ..self
        }
    }

    /// Who sends it.
    pub(super) fn host(&self) -> &str {
        self.from.host()
    }

    /// The next asked bytes; `None` when there are no more.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while self.left > 0 {
            let Some(mut piece) = self.from.next().await? else {
                return Ok(None);
            };
            let unasked = self.skip.min(piece.len() as u64);
            piece.advance(unasked as usize);
            self.skip -= unasked;
            if piece.len() as u64 > self.left {
                if self.exact {
                    return Err(self.too_long());
                }
                piece.truncate(self.left as usize);
            }
            if !piece.is_empty() {
                self.left -= piece.len() as u64;
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// All asked bytes came: nothing may follow. Reading the end also frees the connection.
    pub(super) async fn finish(mut self) -> Result<(), Error> {
        match self.exact {
            true => match self.from.next().await {
                Ok(Some(piece)) if !piece.is_empty() => Err(self.too_long()),
                // A missing end changes nothing about bytes that are complete.
                _ => Ok(()),
            },
            false => Ok(()),
        }
    }

    /// What is missing of it, as an error.
    pub(super) fn truncated(&self, what: &Arc<str>) -> Error {
        Error::Truncated {
            what: Arc::clone(what),
            host: self.host().to_owned(),
            left: self.left,
        }
    }

    fn too_long(&self) -> Error {
        Error::Protocol(format!(
            "{} sent more bytes than were asked for",
            self.host()
        ))
    }
}

impl From {
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        match self {
            Self::Answer(body) => body.next().await,
            Self::Whole(tail) => tail.next().await,
        }
    }

    fn host(&self) -> &str {
        match self {
            Self::Answer(body) => body.host(),
            Self::Whole(tail) => tail.host(),
        }
    }
}

/// `bytes FIRST-LAST/SIZE` (RFC 9110, 14.4) as a half-open range and the size; `*` is not known
/// to be right and therefore wrong.
fn parse_content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let number = |digits: &str| {
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| digits.parse::<u64>().ok()).flatten()
    };
    let (unit, rest) = text.trim().split_once(' ')?;
    let (range, size) = rest.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let end = number(last)?.checked_add(1)?;
    let range = number(first)?..end;
    unit.eq_ignore_ascii_case("bytes")
        .then_some((range, number(size)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_strictly() {
        assert_eq!(parse_content_range("bytes 0-9/20"), Some((0..10, 20)));
        assert_eq!(parse_content_range(" Bytes 5-5/6 "), Some((5..6, 6)));
        for bad in [
            "",
            "bytes",
            "bytes */20",
            "bytes 0-9/*",
            "bytes 0-9",
            "bytes -1-9/20",
            "bytes +0-9/20",
            "bytes 0-18446744073709551615/20",
            "bytes 0-18446744073709551616/20",
            "items 0-9/20",
            "multipart/byteranges; boundary=x",
        ] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
