//! Cuts a tar into gzip members.
//!
//! What is read lazily is fetched by the member. A file of up to [`CHUNK`] bytes is in one member,
//! which it shares with its neighbours; a larger one is cut into chunks, each of which begins a
//! member. Sharing is what keeps the blob small: deflate finds nothing to repeat across members. A
//! member begins with data, never with a header, so that its offset is that of a file.

use std::io::Read;

use super::error::{Error, Unsuitable};
use super::json;
use super::names::Names;
use super::own;
use super::pool::{Data, Job, Line, Member, Pool};
use super::prefetch::Selection;
use super::scan::{Entry, Scanner};

/// The most of a file that one chunk holds, in bytes. A read of one byte fetches and inflates one
/// chunk: about 200 kB on the wire, 2 ms of a core, of the order of a round trip.
const CHUNK: u64 = 512 << 10;
/// A member of small files that has grown to this many bytes is full.
const SHARED: usize = 192 << 10;
/// Headers without data between them are cut here, so that memory stays bounded.
const HEADERS: usize = 1 << 20;

/// Appends the next bytes of an entry's data: so many, to that.
type ReadData<'a> = dyn FnMut(u64, &mut Vec<u8>) -> Result<(), Error> + 'a;

/// Which entries of a tar are added.
#[derive(Clone, Copy)]
pub(super) enum Chosen<'a> {
    All,
    /// All: they are what comes before the landmark.
    First(&'a Selection),
    /// Those that did not.
    Rest(&'a Selection),
}

/// Makes members from the entries of a tar, and checks that a TOC can list them.
pub(super) struct Planner<'a> {
    pool: &'a Pool,
    member: Member,
    /// Whether the member began with data, so that more can be added to it.
    shared: bool,
    names: Names,
}

impl<'a> Planner<'a> {
    pub(super) fn new(pool: &'a Pool) -> Self {
        Self {
            pool,
            member: Member::default(),
            shared: false,
            names: Names::default(),
        }
    }

    /// Adds the entries of one tar. The format's own entries, which a converted layer has already,
    /// are left out.
    pub(super) fn add_tar<R: Read>(
        &mut self,
        tar: &mut Scanner<R>,
        chosen: Chosen<'_>,
    ) -> Result<(), Error> {
        loop {
            let headers = self.member.raw.len();
            let Some(entry) = tar.next(&mut self.member.raw)? else {
                self.member.raw.truncate(headers);
                return Ok(());
            };
            if let Some(name) = own::reserved(&entry) {
                self.member.raw.truncate(headers);
                self.drop_own(tar, &entry, name)?;
            } else if matches!(chosen, Chosen::Rest(selection) if selection.has(&entry)) {
                self.member.raw.truncate(headers);
                tar.skip(entry.size)?;
                self.drop_padding(tar, entry.size)?;
            } else {
                self.names.add(&entry)?;
                self.add(&entry, chosen, &mut |len, raw| tar.data(len, raw))?;
                tar.padding(entry.size, &mut self.member.raw)?;
            }
        }
    }

    /// Adds a landmark. Its data begins a member of its own: nodes fetch what comes before its member.
    pub(super) fn add_landmark(&mut self, name: &'static str) -> Result<(), Error> {
        let header = own::header(name, 1);
        self.member.raw.extend_from_slice(&header);
        let mut tar = Scanner::new(&header[..]);
        let entry = tar
            .next(&mut Vec::new())?
            .ok_or(Unsuitable::Reserved(name))?;
        let mut data = |_, raw: &mut Vec<u8>| {
            raw.push(own::LANDMARK_DATA);
            Ok(())
        };
        self.names.add(&entry)?;
        self.shared = false;
        self.add(&entry, Chosen::All, &mut data)?;
        tar.padding(entry.size, &mut self.member.raw)
    }

    /// Hands in what is left, and returns the numbers of the entries that others replaced.
    pub(super) fn finish(mut self) -> Result<Vec<u32>, Error> {
        self.cut()?;
        Ok(self.names.finish()?)
    }

    /// Adds an entry whose headers are in the member; `read` appends the next bytes of its data.
    fn add(
        &mut self,
        entry: &Entry,
        chosen: Chosen<'_>,
        read: &mut ReadData<'_>,
    ) -> Result<(), Error> {
        if entry.size == 0 {
            json::head(entry, &mut self.member.json)?;
            self.end_line(None);
            return match self.member.raw.len() >= HEADERS {
                true => self.cut(),
                false => Ok(()),
            };
        }
        let mut at = 0;
        while at < entry.size {
            let len = (entry.size - at).min(CHUNK);
            self.make_room(len, entry.size)?;
            match at {
                0 => json::head(entry, &mut self.member.json)?,
                _ => json::chunk_head(entry, &mut self.member.json),
            }
            if matches!(chosen, Chosen::First(selection) if !selection.reads(entry, at..at + len)) {
                json::unread(&mut self.member.json);
            }
            let inner = self.member.raw.len();
            read(len, &mut self.member.raw)?;
            let len = self.member.raw.len() - inner;
            self.end_line(Some(Data {
                inner,
                len,
                at,
                of: entry.size,
            }));
            at += len as u64;
        }
        Ok(())
    }

    /// Begins a new member if the open one is full or a chunk must begin one.
    fn make_room(&mut self, len: u64, of: u64) -> Result<(), Error> {
        let filled = self.member.raw.len();
        let overfull = filled as u64 + len > CHUNK;
        if !self.shared || of > CHUNK || filled >= SHARED || overfull {
            self.cut()?;
        }
        self.shared = true;
        Ok(())
    }

    fn end_line(&mut self, data: Option<Data>) {
        let json_end = self.member.json.len();
        self.member.lines.push(Line { json_end, data });
    }

    fn cut(&mut self) -> Result<(), Error> {
        self.shared = false;
        match self.member.raw.is_empty() {
            true => Ok(()),
            false => self
                .pool
                .push(Job::Member(std::mem::take(&mut self.member))),
        }
    }

    /// Passes over an entry that an earlier conversion added.
    fn drop_own<R: Read>(
        &mut self,
        tar: &mut Scanner<R>,
        entry: &Entry,
        name: &'static str,
    ) -> Result<(), Error> {
        let mut start = Vec::new();
        let len = entry.size.min(64);
        tar.data(len, &mut start)?;
        own::check(entry, name, &start)?;
        tar.skip(entry.size - len)?;
        self.drop_padding(tar, entry.size)
    }

    fn drop_padding<R: Read>(&mut self, tar: &mut Scanner<R>, size: u64) -> Result<(), Error> {
        let end = self.member.raw.len();
        tar.padding(size, &mut self.member.raw)?;
        self.member.raw.truncate(end);
        Ok(())
    }
}
