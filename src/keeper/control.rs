//! What is said on the keeper's control socket, one datagram a message: a letter, then fixed fields.
//!
//! | to the keeper | | from the keeper | |
//! |---|---|---|---|
//! | `S` spec (with stdout, stderr) | run the server, tell its end | `R` text | done; the server serves |
//! | `J` spec (the same) | so did I before my keeper died; not if it was stopped since | `F` text | not done, and why |
//! | `A` spec | I am the server; tell me if you die | `W` | a server lives that did not introduce itself yet: ask again |
//! | `U` path | replace the program | `E` code | the server has ended for good |
//! | `T`, `Q` | stop it, what is your state | `I` text | the state, `key value` lines |
//! | `X` | forget the layers of the server that was stopped | | |
//! | `H` | let the server read its configuration again | | |

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Longest message, in bytes; below a socket's default buffer.
pub(super) const MESSAGE_MAX: usize = 160 * 1024;

/// A message to the keeper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    Start(Vec<u8>),
    Rejoin(Vec<u8>),
    Adopt(Vec<u8>),
    Upgrade(PathBuf),
    Stop,
    State,
    LetGo,
    Reread,
}

/// A message from the keeper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Ready(String),
    Failed(String),
    Wait,
    Ended(i32),
    State(String),
}

impl Request {
    pub(super) fn encode(&self) -> Vec<u8> {
        let (letter, rest): (u8, &[u8]) = match self {
            Self::Start(spec) => (b'S', spec),
            Self::Rejoin(spec) => (b'J', spec),
            Self::Adopt(spec) => (b'A', spec),
            Self::Upgrade(path) => (b'U', path.as_os_str().as_bytes()),
            Self::Stop => (b'T', b""),
            Self::State => (b'Q', b""),
            Self::LetGo => (b'X', b""),
            Self::Reread => (b'H', b""),
        };
        [&[letter], rest].concat()
    }

    pub(super) fn parse(message: &[u8]) -> Option<Self> {
        let (letter, rest) = message.split_first()?;
        Some(match (letter, rest) {
            (b'S', spec) => Self::Start(spec.to_vec()),
            (b'J', spec) => Self::Rejoin(spec.to_vec()),
            (b'A', spec) => Self::Adopt(spec.to_vec()),
            (b'U', [b'/', ..]) => Self::Upgrade(OsStr::from_bytes(rest).into()),
            (b'T', []) => Self::Stop,
            (b'Q', []) => Self::State,
            (b'X', []) => Self::LetGo,
            (b'H', []) => Self::Reread,
            _ => return None,
        })
    }
}

impl Reply {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Ready(text) => format!("R{text}"),
            Self::Failed(text) => format!("F{text}"),
            Self::Wait => "W".to_owned(),
            Self::Ended(code) => format!("E{code}"),
            Self::State(text) => format!("I{text}"),
        }
        .into_bytes()
    }

    pub(super) fn parse(message: &[u8]) -> Option<Self> {
        let (letter, rest) = message.split_first()?;
        let text = || String::from_utf8_lossy(rest).into_owned();
        Some(match letter {
            b'R' => Self::Ready(text()),
            b'F' => Self::Failed(text()),
            b'W' => Self::Wait,
            b'E' => Self::Ended(text().parse().ok()?),
            b'I' => Self::State(text()),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_as_they_were() {
        let requests = [
            Request::Start(b"/x\0".to_vec()),
            Request::Rejoin(b"/x\0".to_vec()),
            Request::Adopt(vec![]),
            Request::Upgrade("/usr/bin/new".into()),
            Request::Stop,
            Request::State,
            Request::LetGo,
            Request::Reread,
        ];
        for request in requests {
            assert_eq!(Request::parse(&request.encode()), Some(request));
        }
        let replies = [
            Reply::Ready("12".into()),
            Reply::Failed("no such file".into()),
            Reply::Ended(3),
            Reply::Wait,
            Reply::State("layers 2".into()),
        ];
        for reply in replies {
            assert_eq!(Reply::parse(&reply.encode()), Some(reply));
        }
        for bad in ["", "Z", "Hello", "Urelative", "U"] {
            assert_eq!(Request::parse(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(Reply::parse(b"Ex"), None);
    }
}
