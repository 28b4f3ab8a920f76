//! Tar files made in a test, header by header: also such as no tool writes.
//!
//! Whatever does not fit a plain header goes into a PAX record, as Go's and Python's writers do it.

use std::path::Path;

const BLOCK: usize = 512;
/// What fits the octal fields of owner and group.
const MAX_PLAIN_ID: u32 = 0o777_7777;
/// When everything was made that says nothing else.
const WHEN: i64 = 1_700_000_000;

/// One entry of a tar.
#[derive(Debug, Clone)]
pub struct Item {
    /// Its name, as written.
    pub name: Vec<u8>,
    /// The header's type flag.
    pub flag: u8,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Content of a file.
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Seconds since the epoch, and nanoseconds.
    pub mtime: (i64, u32),
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

impl Item {
    fn new(flag: u8, name: impl AsRef<[u8]>) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            flag,
            link: Vec::new(),
            data: Vec::new(),
            mode: if flag == b'5' { 0o755 } else { 0o644 },
            owner: (0, 0),
            mtime: (WHEN, 0),
            device: (0, 0),
            xattrs: Vec::new(),
        }
    }

    /// A regular file.
    pub fn file(name: impl AsRef<[u8]>, data: impl Into<Vec<u8>>) -> Self {
        let data = data.into();
        Self {
            data,
            ..Self::new(b'0', name)
        }
    }

    /// A folder.
    pub fn folder(name: impl AsRef<[u8]>) -> Self {
        Self::new(b'5', name)
    }

    /// A symbolic link.
    pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        let link = target.as_ref().to_vec();
        Self {
            link,
            ..Self::new(b'2', name)
        }
        .mode(0o777)
    }

    /// Another name of a file.
    pub fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        let link = target.as_ref().to_vec();
        Self {
            link,
            ..Self::new(b'1', name)
        }
    }

    /// A character (`'3'`) or block (`'4'`) device.
    pub fn device(flag: u8, name: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        let device = (major, minor);
        Self {
            device,
            ..Self::new(flag, name)
        }
    }

    /// A named pipe.
    pub fn fifo(name: impl AsRef<[u8]>) -> Self {
        Self::new(b'6', name)
    }

    /// With these permission bits.
    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    /// With this owner and group.
    pub fn owner(self, uid: u32, gid: u32) -> Self {
        let owner = (uid, gid);
        Self { owner, ..self }
    }

    /// Changed last at this time.
    pub fn at(self, seconds: i64, nanos: u32) -> Self {
        let mtime = (seconds, nanos);
        Self { mtime, ..self }
    }

    /// With one more extended attribute.
    pub fn xattr(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.xattrs.push((name.to_owned(), value.into()));
        self
    }

    fn records(&self) -> Vec<u8> {
        let mut records = Vec::new();
        let mut add = |key: &str, value: &[u8]| {
            let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
            let fits = |len: &usize| len.to_string().len() + rest.len() == *len;
            let len = (rest.len()..).find(fits).unwrap();
            records.extend_from_slice(len.to_string().as_bytes());
            records.extend_from_slice(&rest);
        };
        for (key, text) in [("path", &self.name), ("linkpath", &self.link)] {
            let odd = text.iter().any(u8::is_ascii_control) || text.len() > 100;
            if odd {
                add(key, text);
            }
        }
        for (key, id) in [("uid", self.owner.0), ("gid", self.owner.1)] {
            if id > MAX_PLAIN_ID {
                add(key, id.to_string().as_bytes());
            }
        }
        match self.mtime {
            (0.., 0) => {}
            (seconds @ 0.., nanos) => add("mtime", format!("{seconds}.{nanos:09}").as_bytes()),
            // Before the epoch the fraction counts backwards too.
            (seconds, 0) => add("mtime", seconds.to_string().as_bytes()),
            (seconds, nanos) => {
                let (whole, part) = (-seconds - 1, 1_000_000_000 - nanos);
                add("mtime", format!("-{whole}.{part:09}").as_bytes());
            }
        }
        for (name, value) in &self.xattrs {
            add(&format!("SCHILY.xattr.{name}"), value);
        }
        records
    }

    fn header(&self, flag: u8, name: &[u8], size: usize) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, room: usize, text: &[u8]| {
            let text = &text[..text.len().min(room)];
            block[at..at + text.len()].copy_from_slice(text);
        };
        let id = |id: u32| format!("{:07o}\0", if id > MAX_PLAIN_ID { 0 } else { id });
        put(0, 100, name);
        put(100, 8, format!("{:07o}\0", self.mode).as_bytes());
        put(108, 8, id(self.owner.0).as_bytes());
        put(116, 8, id(self.owner.1).as_bytes());
        put(124, 12, format!("{size:011o}\0").as_bytes());
        let seconds = self.mtime.0.max(0);
        put(136, 12, format!("{seconds:011o}\0").as_bytes());
        put(148, 8, b"        ");
        put(156, 1, &[flag]);
        put(157, 100, &self.link);
        put(257, 8, b"ustar\x0000");
        put(329, 8, format!("{:07o}\0", self.device.0).as_bytes());
        put(337, 8, format!("{:07o}\0", self.device.1).as_bytes());
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

/// A tar in the making.
#[derive(Debug, Default)]
pub struct Tar {
    bytes: Vec<u8>,
    /// Where the data of each file starts, for files that have any.
    pub data_at: Vec<(Item, usize)>,
}

impl Tar {
    /// A tar of these entries, without its end.
    pub fn of(items: impl IntoIterator<Item = Item>) -> Self {
        let mut tar = Self::default();
        for item in items {
            tar.add(item);
        }
        tar
    }

    fn add(&mut self, item: Item) {
        let records = item.records();
        if !records.is_empty() {
            let header = item.header(b'x', b"PaxHeaders/x", records.len());
            self.bytes.extend_from_slice(&header);
            self.bytes.extend_from_slice(&records);
            self.pad();
        }
        let header = item.header(item.flag, &item.name, item.data.len());
        self.bytes.extend_from_slice(&header);
        if !item.data.is_empty() {
            let at = self.bytes.len();
            self.bytes.extend_from_slice(&item.data);
            self.data_at.push((item, at));
        }
        self.pad();
    }

    fn pad(&mut self) {
        let len = self.bytes.len().next_multiple_of(BLOCK);
        self.bytes.resize(len, 0);
    }

    /// All of it, with the two blocks of zeros that end a tar.
    pub fn bytes(&self) -> Vec<u8> {
        [&self.bytes[..], &[0; 2 * BLOCK]].concat()
    }

    /// Writes the tar.
    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.bytes()).unwrap();
    }

    /// Writes the tar as umoci does: without an end, and without the padding of the last file.
    pub fn write_cut(&self, path: &Path) {
        let (last, at) = self.data_at.last().unwrap();
        let end = at + last.data.len();
        assert!(
            end.next_multiple_of(BLOCK) == self.bytes.len() && end % BLOCK != 0,
            "the last entry is a file that needs padding"
        );
        std::fs::write(path, &self.bytes[..end]).unwrap();
    }
}
