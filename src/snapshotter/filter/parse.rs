//! Text to selectors.
//!
//! The rules follow what containerd's own parser accepts, down to where blanks may stand: before
//! any token, but not after the last one of a selector. Where a value begins, a quote character,
//! `,` and `.` mean what they mean elsewhere; within an unquoted value only `,` and blanks end it.

use std::iter::Peekable;
use std::str::CharIndices;

use regex::RegexBuilder;

use crate::snapshotter::filter::{Field, FilterError, MAX_REGEX, Selector, Test};

/// Parses one filter; the empty one has no selectors and holds always.
///
/// # Errors
/// It is not a filter.
pub fn parse(text: &str) -> Result<Vec<Selector>, FilterError> {
    let mut selectors = Vec::new();
    if text.is_empty() {
        return Ok(selectors);
    }
    let mut parser = Parser {
        rest: text.char_indices().peekable(),
        len: text.len(),
    };
    loop {
        selectors.push(parser.selector()?);
        match parser.rest.next() {
            None => return Ok(selectors),
            Some((_, ',')) => {}
            Some((at, c)) => return Err(error(at, format!("unexpected {c:?}"))),
        }
    }
}

struct Parser<'a> {
    rest: Peekable<CharIndices<'a>>,
    len: usize,
}

impl Parser<'_> {
    fn selector(&mut self) -> Result<Selector, FilterError> {
        let mut path = vec![self.part()?];
        while self.peek() == Some('.') {
            self.rest.next();
            path.push(self.part()?);
        }
        let field = Field::new(&path);
        let test = match self.peek() {
            None | Some(',') => Test::Present,
            Some(_) => self.test()?,
        };
        Ok(Selector { field, test })
    }

    /// One part of a field path: quoted, or letters, digits and `_`.
    fn part(&mut self) -> Result<Vec<u8>, FilterError> {
        self.skip_blanks();
        let at = self.at();
        match self.peek() {
            Some('"') => self.quoted('"'),
            Some(c) if is_field(c) => Ok(self.take_while(is_field).into_bytes()),
            _ => Err(error(at, "expected a field")),
        }
    }

    fn test(&mut self) -> Result<Test, FilterError> {
        self.skip_blanks();
        let at = self.at();
        let operator = self.take_while(|c| matches!(c, '=' | '!' | '~'));
        match operator.as_str() {
            "==" => Ok(Test::Equal(self.value(&['"'])?)),
            "!=" => Ok(Test::NotEqual(self.value(&['"'])?)),
            "~=" => self.regex(),
            _ => Err(error(at, "expected ==, != or ~=")),
        }
    }

    fn regex(&mut self) -> Result<Test, FilterError> {
        let at = self.at();
        let value = self.value(&['"', '/', '|'])?;
        let pattern =
            String::from_utf8(value).map_err(|_| error(at, "the expression is not UTF-8"))?;
        RegexBuilder::new(&pattern)
            .size_limit(MAX_REGEX)
            .dfa_size_limit(MAX_REGEX)
            .build()
            .map(Test::Matches)
            .map_err(|problem| error(at, short(&problem.to_string())))
    }

    /// A value, quoted by one of `quotes` or not quoted.
    fn value(&mut self, quotes: &[char]) -> Result<Vec<u8>, FilterError> {
        self.skip_blanks();
        let at = self.at();
        match self.peek() {
            Some(c) if quotes.contains(&c) => self.quoted(c),
            Some('"' | '/' | '|') => Err(error(at, "a quote that is not allowed here")),
            Some(',' | '.' | '=' | '!' | '~') | None => Err(error(at, "expected a value")),
            Some(_) => {
                let value = self.take_while(|c| c != ',' && is_graphic(c));
                if value.is_empty() {
                    return Err(error(at, "expected a value"));
                }
                Ok(value.into_bytes())
            }
        }
    }

    /// A quoted text with Go's escapes.
    fn quoted(&mut self, quote: char) -> Result<Vec<u8>, FilterError> {
        let begin = self.at();
        self.rest.next();
        let mut bytes = Vec::new();
        loop {
            match self.rest.next() {
                Some((_, c)) if c == quote => return Ok(bytes),
                Some((at, '\\')) => self.escape(quote, at, &mut bytes)?,
                Some((at, c)) if c == '\0' || c == char::REPLACEMENT_CHARACTER => {
                    return Err(error(at, "a character that is not allowed"));
                }
                None | Some((_, '\n')) => return Err(error(begin, "quote is not closed")),
                Some((_, c)) => push(&mut bytes, c),
            }
        }
    }

    fn escape(&mut self, quote: char, at: usize, to: &mut Vec<u8>) -> Result<(), FilterError> {
        let illegal = || error(at, "illegal escape sequence");
        let (_, c) = self.rest.next().ok_or_else(illegal)?;
        match c {
            'a' => to.push(0x07),
            'b' => to.push(0x08),
            'f' => to.push(0x0c),
            'n' => to.push(b'\n'),
            'r' => to.push(b'\r'),
            't' => to.push(b'\t'),
            'v' => to.push(0x0b),
            '\\' => to.push(b'\\'),
            'x' => to.push(self.byte(0, 16, 2).ok_or_else(illegal)?),
            '0'..='7' => {
                let first = c.to_digit(8).ok_or_else(illegal)?;
                to.push(self.byte(first, 8, 2).ok_or_else(illegal)?);
            }
            'u' => push(to, self.scalar(4).ok_or_else(illegal)?),
            'U' => push(to, self.scalar(8).ok_or_else(illegal)?),
            c if c == quote => push(to, c),
            _ => return Err(illegal()),
        }
        Ok(())
    }

    fn byte(&mut self, first: u32, base: u32, digits: u32) -> Option<u8> {
        u8::try_from(self.digits(first, base, digits)?).ok()
    }

    /// A code point; Go writes U+FFFD for one that is none, like half a surrogate pair.
    fn scalar(&mut self, digits: u32) -> Option<char> {
        let code = self.digits(0, 16, digits)?;
        let is_unicode = code <= u32::from(char::MAX);
        is_unicode.then(|| char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn digits(&mut self, first: u32, base: u32, digits: u32) -> Option<u32> {
        let mut value = first;
        for _ in 0..digits {
            let digit = self.rest.next()?.1.to_digit(base)?;
            value = value.checked_mul(base)?.checked_add(digit)?;
        }
        Some(value)
    }

    fn peek(&mut self) -> Option<char> {
        self.rest.peek().map(|(_, c)| *c)
    }

    fn at(&mut self) -> usize {
        self.rest.peek().map_or(self.len, |(at, _)| *at)
    }

    fn skip_blanks(&mut self) {
        while self.rest.next_if(|(_, c)| c.is_whitespace()).is_some() {}
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> String {
        let mut taken = String::new();
        while let Some((_, c)) = self.rest.next_if(|(_, c)| wanted(*c)) {
            taken.push(c);
        }
        taken
    }
}

fn is_field(c: char) -> bool {
    c == '_' || c.is_ascii_alphanumeric()
}

fn is_graphic(c: char) -> bool {
    !c.is_whitespace() && !c.is_control() && c != char::REPLACEMENT_CHARACTER
}

fn push(bytes: &mut Vec<u8>, c: char) {
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

/// regex explains itself over several lines, the last of which says what is wrong.
fn short(problem: &str) -> String {
    problem.lines().last().unwrap_or_default().trim().to_owned()
}

fn error(at: usize, what: impl Into<String>) -> FilterError {
    let what = what.into();
    FilterError { what, at }
}
