//! Images of a few small files, cut into chunks that arrive when they are wished for.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::blob::ChunkId;
use crate::fs::Index;
use crate::layer::guess::follow::{Content, Follow, Layer};
use crate::layer::testing::{Elf, build_index};
use crate::oci::Digest;

/// How a test's files are cut.
const CHUNK: usize = 512;

#[derive(Default)]
struct State {
    chunks: Vec<Vec<u8>>,
    here: HashSet<u32>,
    read: Vec<ChunkId>,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<State>>);

impl Content for Fake {
    fn look(&self, chunk: ChunkId, at: u32, out: &mut [u8]) -> bool {
        let state = self.0.lock();
        let bytes = &state.chunks[chunk.0 as usize][at as usize..];
        out.copy_from_slice(&bytes[..out.len()]);
        state.here.contains(&chunk.0)
    }

    fn holds(&self, chunk: ChunkId) -> bool {
        self.0.lock().here.contains(&chunk.0)
    }

    fn reads(&mut self) -> Vec<ChunkId> {
        std::mem::take(&mut self.0.lock().read)
    }

    fn is_gone(&self) -> bool {
        false
    }
}

/// Layers, topmost first, of these files.
struct Image {
    follow: Follow,
    layers: Vec<(Fake, HashMap<String, Range<u32>>)>,
}

fn image(layers: &[&[(&str, Vec<u8>)]]) -> Image {
    let (mut stack, mut fakes) = (Vec::new(), Vec::new());
    for files in layers {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        let fake = Fake::default();
        let mut entries = Vec::new();
        for (name, content) in *files {
            for (number, piece) in content.chunks(CHUNK).enumerate() {
                let (digest, len) = (Digest::of(piece), piece.len());
                let (kind, at) = (["reg", "chunk"][number.min(1)], number * CHUNK);
                let offset = 100 * (1 + fake.0.lock().chunks.len());
                let size = content.len();
                entries.push(format!(
                    r#"{{"name":"{name}","type":"{kind}","mode":493,"size":{size},"offset":{offset},"chunkOffset":{at},"chunkSize":{len},"chunkDigest":"{digest}"}}"#
                ));
                fake.0.lock().chunks.push(piece.to_vec());
            }
        }
        let index = Arc::new(Index::open(&path, &build_index(&entries, &path)).unwrap());
        let chunks = |name: &&str| index.chunks_at(name.as_bytes()).unwrap().unwrap();
        let files = files
            .iter()
            .map(|(name, _)| ((*name).to_owned(), chunks(name)));
        fakes.push((fake.clone(), files.collect()));
        stack.push(Layer {
            index,
            content: Box::new(fake),
        });
    }
    Image {
        follow: Follow::new(stack),
        layers: fakes,
    }
}

impl Image {
    fn chunks(&self, name: &str) -> (usize, Range<u32>) {
        let layers = self.layers.iter().enumerate();
        let mut found = layers.filter_map(|(at, (_, files))| Some((at, files.get(name)?.clone())));
        found.next().unwrap()
    }

    fn is_read(&self, name: &str) {
        let (layer, chunks) = self.chunks(name);
        self.layers[layer]
            .0
            .0
            .lock()
            .read
            .push(ChunkId(chunks.start));
    }

    /// Steps, and has all arrive that is wished for, until nothing is. Gives the files of each round.
    fn rounds(&mut self) -> Vec<Vec<String>> {
        let mut rounds = Vec::new();
        while self.follow.has_news() {
            let wishes = self.follow.step();
            let mut files = Vec::new();
            for wish in &wishes {
                let (fake, names) = &self.layers[wish.layer];
                fake.0.lock().here.insert(wish.chunk.0);
                let of = |(_, chunks): &(&String, &Range<u32>)| chunks.contains(&wish.chunk.0);
                files.extend(names.iter().find(of).map(|(name, _)| name.clone()));
            }
            files.dedup();
            if wishes.is_empty() {
                break;
            }
            rounds.push(files);
        }
        rounds
    }

    fn here(&self, name: &str) -> usize {
        let (layer, chunks) = self.chunks(name);
        let state = self.layers[layer].0.0.lock();
        chunks.filter(|chunk| state.here.contains(chunk)).count()
    }
}

fn program(needed: &[&str], runpath: Option<&str>, between: usize) -> Vec<u8> {
    let elf = Elf {
        interpreter: None,
        needed,
        runpath,
        between,
    };
    elf.build()
}

#[test]
fn libraries_come_before_they_are_read_layer_by_layer() {
    let mut image = image(&[
        &[
            (
                "app/run",
                program(
                    &["liba.so", "libown.so", "libnone.so"],
                    Some("$ORIGIN/lib"),
                    0,
                ),
            ),
            ("app/lib/libown.so", program(&[], None, 0)),
        ],
        &[
            (
                "usr/lib/liba.so",
                program(&["libb.so", "liba.so"], None, 20 * CHUNK),
            ),
            ("usr/lib/libb.so", program(&[], None, 0)),
            ("usr/lib/libown.so", program(&[], None, 0)),
            ("usr/lib/libother.so", program(&[], None, 0)),
        ],
    ]);
    image.is_read("app/run");
    let rounds = image.rounds();
    assert_eq!(rounds[0], ["app/run"]);
    assert_eq!(rounds[1], ["usr/lib/liba.so", "app/lib/libown.so"]);
    assert_eq!(rounds.last().unwrap(), &["usr/lib/libb.so"]);
    assert_eq!(
        (
            image.here("usr/lib/libown.so"),
            image.here("usr/lib/libother.so")
        ),
        (0, 0)
    );
    let (of_a, all) = (
        image.here("usr/lib/liba.so"),
        image.chunks("usr/lib/liba.so").1.len(),
    );
    assert!(
        of_a < 5 && all > 20,
        "its code is left to its readers: {of_a} of {all}"
    );
    image.is_read("usr/lib/libb.so");
    assert!(image.rounds().is_empty(), "known");
}

#[test]
fn other_files_need_nothing() {
    let script = b"#!/usr/bin/env tool\n".to_vec();
    let mut image = image(&[&[
        ("data", vec![b'x'; 5 * CHUNK]),
        ("run", script),
        ("usr/bin/env", program(&[], None, 0)),
        ("usr/bin/tool", vec![b'x'; 3 * CHUNK]),
    ]]);
    image.is_read("data");
    assert_eq!(
        image.rounds(),
        [["data"]],
        "its first bytes, which its reader brings"
    );
    image.is_read("run");
    let rounds = image.rounds();
    assert_eq!(rounds, [vec!["run"], vec!["usr/bin/env", "usr/bin/tool"]]);
    let here = image.here("usr/bin/tool");
    assert_eq!(
        here, 2,
        "no program: its beginning, and its end, where one has what it needs"
    );
}
