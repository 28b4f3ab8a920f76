//! The core as the adapter uses it, over content in memory.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::blob::{InMemory, ReadError};
use crate::oci::Digest;
use crate::stargz::{Limits, Toc};

/// A folder with three files of one, two and no chunks, a symlink, and a file with attributes.
const TOC: &str = r#"{"version":1,"entries":[
    {"name":"d/","type":"dir","mode":493,"modtime":"2020-01-02T03:04:05Z"},
    {"name":"d/one","type":"reg","mode":420,"size":5,"offset":100,"chunkSize":5,
     "chunkDigest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
    {"name":"d/two","type":"reg","mode":420,"size":9,"offset":200,"chunkSize":6,
     "chunkDigest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
    {"name":"d/two","type":"chunk","offset":300,"chunkOffset":6,"chunkSize":3,
     "chunkDigest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
    {"name":"d/none","type":"reg","mode":420,"size":0},
    {"name":"link","type":"symlink","linkName":"d/one"},
    {"name":"marked","type":"reg","mode":420,"size":0,
     "xattrs":{"user.b":"Mg==","user.a":""}}
]}"#;

struct Layer {
    fs: LayerFs,
    content: Arc<InMemory>,
    _folder: tempfile::TempDir,
}

fn layer() -> Layer {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index");
    let toc = Toc::verify(TOC.as_bytes().to_vec(), &Digest::of(TOC.as_bytes())).unwrap();
    let blob = Digest::of(b"blob");
    index::build(&toc, &Limits::default(), 1000, blob, &path).unwrap();
    let index = Arc::new(Index::open(&path, toc.digest()).unwrap());
    let chunks = [&b"hello"[..], b"secret", b"sea"].map(Bytes::from_static);
    let content = Arc::new(InMemory::new(chunks.to_vec()));
    let fs = LayerFs::new(index, Arc::clone(&content) as _);
    Layer {
        fs,
        content,
        _folder: folder,
    }
}

impl Layer {
    fn ino(&self, path: &str) -> Ino {
        path.split('/').fold(Ino::ROOT, |at, name| {
            self.fs.lookup(at, name.as_bytes()).unwrap().ino
        })
    }

    /// Reads, and says whether it had to wait.
    async fn read(&self, path: &str, offset: u64, len: u32) -> Result<(Vec<u8>, bool), Error> {
        match self.fs.read(self.ino(path), offset, len)? {
            Reading::Ready(bytes) => Ok((bytes.to_vec(), false)),
            Reading::Waiting(bytes) => Ok((bytes.await?.to_vec(), true)),
        }
    }

    fn list(&self, path: &str, offset: u64, most: usize) -> Vec<(String, u64)> {
        let mut names = Vec::new();
        let ino = if path.is_empty() {
            Ino::ROOT
        } else {
            self.ino(path)
        };
        let each = &mut |item: Item<'_>| {
            if names.len() == most {
                return ControlFlow::Break(());
            }
            names.push((String::from_utf8(item.name.to_vec()).unwrap(), item.next));
            ControlFlow::Continue(())
        };
        self.fs.readdir(ino, offset, each).unwrap();
        names
    }
}

#[tokio::test]
async fn a_read_is_answered_in_full_hit_or_miss() {
    let layer = layer();
    for (offset, len, expected) in [
        (0, 100, &b"secretsea"[..]),
        (0, 9, b"secretsea"),
        (4, 4, b"etse"),
        (6, 3, b"sea"),
        (8, 100, b"a"),
        (9, 10, b""),
        (u64::MAX, 10, b""),
        (3, 0, b""),
    ] {
        let (bytes, _) = layer.read("d/two", offset, len).await.unwrap();
        assert_eq!(bytes, expected, "{offset} {len}");
    }
    let (_, waited) = layer.read("d/two", 0, 9).await.unwrap();
    assert!(!waited, "both chunks were fetched before");
    let (bytes, waited) = layer.read("d/one", 1, 3).await.unwrap();
    assert_eq!((&bytes[..], waited), (&b"ell"[..], true));
    assert_eq!(
        layer.read("d/none", 0, 10).await.unwrap(),
        (Vec::new(), false)
    );
}

#[tokio::test]
async fn a_half_cached_read_waits_and_failures_are_errors_never_short_reads() {
    let layer = layer();
    layer.read("d/two", 0, 6).await.unwrap();
    assert_eq!(layer.content.fetched(), 1);
    let blob = Digest::of(b"blob");
    layer.content.fail_with(Some(ReadError::Closed { blob }));
    assert!(matches!(
        layer.read("d/two", 0, 9).await,
        Err(Error::Content(_))
    ));
    assert!(layer.read("d/two", 0, 6).await.is_ok());
    layer.content.fail_with(None);
    let (bytes, waited) = layer.read("d/two", 0, 9).await.unwrap();
    assert_eq!((&bytes[..], waited), (&b"secretsea"[..], true));
}

#[tokio::test]
async fn content_shorter_than_promised_is_an_error() {
    let mut layer = layer();
    let content = InMemory::new(vec![Bytes::from_static(b"hel")]);
    layer.fs = LayerFs::new(Arc::clone(layer.fs.index()), Arc::new(content));
    assert!(layer.read("d/one", 0, 5).await.is_err());
}

#[test]
fn a_folder_is_listed_from_any_offset_on() {
    let layer = layer();
    let all = layer.list("d", 0, 100);
    let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, [".", "..", "none", "one", "two"]);
    for most in 1..=5 {
        let mut pieces = Vec::new();
        let mut offset = 0;
        loop {
            let piece = layer.list("d", offset, most);
            let Some((_, next)) = piece.last() else { break };
            offset = *next;
            pieces.extend(piece);
        }
        assert_eq!(pieces, all, "{most} at a time");
    }
    assert!(layer.list("d", 6, 100).is_empty());
    assert!(layer.list("d", u64::MAX, 100).is_empty());
}

#[test]
fn names_lead_to_the_same_node_every_time() {
    let layer = layer();
    let one = layer.ino("d/one");
    assert_eq!(layer.ino("d/one"), one);
    let d = layer.ino("d");
    let error = |parent, name: &[u8]| layer.fs.lookup(parent, name).unwrap_err();
    assert!(matches!(error(d, b"three"), Error::NoEntry));
    assert!(matches!(error(d, &[b'x'; 256]), Error::LongName));
    assert!(matches!(error(one, b"x"), Error::NotFolder(_)));
    assert!(matches!(error(Ino(99), b"x"), Error::NoNode(Ino(99))));
    assert!(matches!(error(Ino(0), b"x"), Error::NoNode(_)));
}

#[test]
fn links_and_attributes_are_told() {
    let layer = layer();
    assert_eq!(layer.fs.readlink(layer.ino("link")).unwrap(), b"d/one");
    assert!(matches!(
        layer.fs.readlink(layer.ino("d")),
        Err(Error::NotSymlink(_))
    ));
    assert!(matches!(
        layer.fs.read(layer.ino("d"), 0, 1),
        Err(Error::NotFile(_))
    ));
    let marked = layer.ino("marked");
    assert_eq!(layer.fs.listxattr(marked).unwrap(), b"user.a\0user.b\0");
    assert_eq!(layer.fs.getxattr(marked, b"user.a").unwrap(), b"");
    assert_eq!(layer.fs.getxattr(marked, b"user.b").unwrap(), b"2");
    assert!(matches!(
        layer.fs.getxattr(marked, b"user.c"),
        Err(Error::NoAttribute)
    ));
    assert!(layer.fs.listxattr(layer.ino("d")).unwrap().is_empty());
}

#[test]
fn statfs_tells_of_the_disk_that_holds_the_cache() {
    let statfs = layer().fs.statfs();
    assert_eq!(statfs.blocks, (1 << 40) / 4096);
    assert_eq!(
        (statfs.free, statfs.available),
        ((1 << 39) / 4096, (1 << 38) / 4096)
    );
    assert_eq!((statfs.inodes, statfs.block), (7, 4096));
}
