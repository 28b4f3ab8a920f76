//! The TOC's JSON as it comes: never more of it in memory than one value of it needs.
//!
//! The TOC of a layer of a million files is some 300 MB of JSON. A window of text moves over it;
//! one value at a time is parsed in place, and where the window ends inside a value, more is read
//! and the value is tried again. The window doubles each time, so that no value is read over more
//! than twice its length, up to a limit.

use std::io::Read;

use serde::Deserialize;
use serde::de::Error as _;

use crate::stargz::Error;

/// How much is read at a time, in bytes: small enough for a CPU's second-level cache.
const READ: usize = 128 << 10;
/// The longest value, in bytes: beyond what an entry with all the attributes that the kernel would
/// list needs, and what a hostile one may cost in memory.
const MAX_VALUE: usize = 8 << 20;
/// How much of a JSON error is passed on, in characters; it may quote the TOC.
const MAX_JSON_ERROR: usize = 200;

/// Text of a JSON document, read piece by piece.
pub(super) struct Window<'r> {
    input: &'r mut dyn Read,
    /// What has been read; used up to `at`.
    text: String,
    at: usize,
    /// The first bytes of a character of which the others have not been read.
    cut: Vec<u8>,
    /// Length of what came before `text`.
    before: u64,
    ended: bool,
}

impl<'r> Window<'r> {
    /// A window at the document's beginning.
    pub(super) fn new(input: &'r mut dyn Read) -> Self {
        Self {
            input,
            text: String::new(),
            at: 0,
            cut: Vec::new(),
            before: 0,
            ended: false,
        }
    }

    /// The next byte that is no white space, which is not used up; `None` at the end.
    pub(super) fn peek(&mut self) -> Result<Option<u8>, Error> {
        loop {
            let rest = self.rest().bytes();
            let blank = |byte: &u8| matches!(byte, b' ' | b'\n' | b'\t' | b'\r');
            self.at += rest.clone().take_while(blank).count();
            if let Some(byte) = self.rest().bytes().next() {
                return Ok(Some(byte));
            }
            if self.ended {
                return Ok(None);
            }
            self.fill()?;
        }
    }

    /// Uses up the next byte that is no white space, one of `expected`.
    pub(super) fn next_of(&mut self, expected: &'static str) -> Result<u8, Error> {
        match self.peek()? {
            Some(byte) if expected.bytes().any(|other| other == byte) => {
                self.at += 1;
                Ok(byte)
            }
            _ => Err(self.malformed(&format!("expected one of {expected:?}"))),
        }
    }

    /// Uses up one value. `attempt` parses it ([`first`]) and tells its length; it is called again
    /// with more text where that ended too early, and does what is to be done with the value.
    pub(super) fn value(
        &mut self,
        attempt: &mut dyn FnMut(&str) -> serde_json::Result<usize>,
    ) -> Result<(), Error> {
        // These say themselves where they end; the text after a number may go on with it.
        let closed = matches!(self.peek()?, Some(b'{' | b'[' | b'"'));
        loop {
            match attempt(self.rest()) {
                Ok(used) if closed || self.ended || used < self.rest().len() => {
                    self.at += used;
                    return Ok(());
                }
                Err(error) if self.ended || !error.is_eof() => {
                    return Err(self.malformed(&error.to_string()));
                }
                Ok(_) | Err(_) => self.fill()?,
            }
        }
    }

    /// The error that says what is wrong where the window stands. It may quote a string of any
    /// length from the TOC (escaped, but whole).
    pub(super) fn malformed(&self, what: &str) -> Error {
        Error::TocJson {
            at: self.before + self.at as u64,
            what: what.chars().take(MAX_JSON_ERROR).collect(),
        }
    }

    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// Moves on to what has not been used, and doubles it.
    fn fill(&mut self) -> Result<(), Error> {
        self.text.drain(..self.at);
        self.before += self.at as u64;
        self.at = 0;
        let held = self.text.len();
        if held >= MAX_VALUE {
            return Err(self.malformed("a value is longer than 8 MiB"));
        }
        let more = held.max(READ).min(MAX_VALUE - held);
        self.cut.reserve(more);
        let mut piece = self.input.take(more as u64);
        let read = piece.read_to_end(&mut self.cut);
        self.ended = read.map_err(|error| Error::TocUnpack(error.to_string()))? == 0;
        let bad = |valid: usize| Error::TocUtf8 {
            at: self.before + (held + valid) as u64,
        };
        let (valid, text) = match std::str::from_utf8(&self.cut) {
            Ok(text) => (text.len(), text),
            Err(error) if error.error_len().is_none() && !self.ended => {
                let (text, _) = self.cut.split_at(error.valid_up_to());
                (text.len(), std::str::from_utf8(text).unwrap_or_default())
            }
            Err(error) => return Err(bad(error.valid_up_to())),
        };
        self.text.push_str(text);
        self.cut.drain(..valid);
        Ok(())
    }
}

/// The first value of a text, and its length.
pub(super) fn first<'t, T: Deserialize<'t>>(text: &'t str) -> serde_json::Result<(T, usize)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter();
    match values.next() {
        Some(value) => Ok((value?, values.byte_offset())),
        None => Err(serde_json::Error::custom("a value is missing")),
    }
}
