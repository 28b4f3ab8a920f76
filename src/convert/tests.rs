//! Conversions from layout to layout.

use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::oci::{ImageConfig, Index, Manifest, annotation};

/// A layout that tests fill and spoil.
struct Layout(tempfile::TempDir);

impl Layout {
    fn new() -> Self {
        let layout = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir_all(layout.path().join("blobs/sha256")).unwrap();
        layout
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Adds a blob and returns its descriptor.
    fn put(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        std::fs::write(self.blob(digest), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// Adds an image of tars and returns its manifest's descriptor.
    fn image(&self, dialect: &Dialect, layers: &[(Value, Digest)]) -> Value {
        let ids: Vec<_> = layers.iter().map(|(_, id)| id).collect();
        let config = json!({"architecture": "amd64", "os": "linux", "author": "me",
            "rootfs": {"type": "layers", "diff_ids": ids}, "history": [{"created_by": "x"}]});
        let config = self.put(dialect.config, config.to_string().as_bytes());
        let layers: Vec<_> = layers.iter().map(|(layer, _)| layer).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": dialect.manifest, "config": config,
            "layers": layers, "annotations": {"k": "v"}});
        self.put(dialect.manifest, manifest.to_string().as_bytes())
    }

    fn layer(&self, media_type: &str, name: &str) -> (Value, Digest) {
        let tar = tar_of(name);
        (self.put(media_type, &tar), Digest::of(&tar))
    }

    fn name(&self, root: &Value) {
        let mut root = root.clone();
        root["annotations"] = json!({"org.opencontainers.image.ref.name": "t"});
        let index = json!({"schemaVersion": 2, "manifests": [root]});
        std::fs::write(self.path().join("index.json"), index.to_string()).unwrap();
    }

    fn blob(&self, digest: Digest) -> std::path::PathBuf {
        self.path().join("blobs/sha256").join(digest.hex())
    }

    fn read(&self, digest: Digest) -> Vec<u8> {
        let bytes = std::fs::read(self.blob(digest)).unwrap();
        assert_eq!(Digest::of(&bytes), digest);
        bytes
    }

    async fn convert_to(&self, to: &Self) -> Result<Summary, Error> {
        let source = LayoutSource::open(self.path(), Some("t"))?;
        let sink = LayoutSink::create(to.path(), "t")?;
        let options = write::Options::default();
        Converter::new(Box::new(source), Box::new(sink), options, Arc::new(Silent))
            .run()
            .await
    }
}

struct Dialect {
    config: &'static str,
    manifest: &'static str,
    tar: &'static str,
    gzip: &'static str,
}

const OCI: Dialect = Dialect {
    config: "application/vnd.oci.image.config.v1+json",
    manifest: "application/vnd.oci.image.manifest.v1+json",
    tar: "application/vnd.oci.image.layer.v1.tar",
    gzip: "application/vnd.oci.image.layer.v1.tar+gzip",
};
const DOCKER: Dialect = Dialect {
    config: "application/vnd.docker.container.image.v1+json",
    manifest: "application/vnd.docker.distribution.manifest.v2+json",
    tar: "application/vnd.docker.image.rootfs.diff.tar",
    gzip: "application/vnd.docker.image.rootfs.diff.tar.gzip",
};
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";

/// A tar of one empty file.
fn tar_of(name: &str) -> Vec<u8> {
    let mut block = [0_u8; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[156] = b'0';
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    [&block[..], &[0; 1024]].concat()
}

#[tokio::test]
async fn an_image_keeps_its_dialect_and_names_the_new_layers_in_all_places() {
    for dialect in [OCI, DOCKER] {
        let (from, to) = (Layout::new(), Layout::new());
        let mut first = from.layer(dialect.tar, "a");
        first.0["annotations"] = json!({"mine": "kept"});
        first.0["urls"] = json!(["http://x"]);
        from.name(&from.image(&dialect, &[first, from.layer(dialect.tar, "b")]));
        let summary = from.convert_to(&to).await.unwrap();
        assert_eq!(
            (summary.media_type.as_str(), summary.layers.len()),
            (dialect.manifest, 2)
        );
        let manifest = Manifest::parse(&to.read(summary.digest)).unwrap();
        assert_eq!(
            manifest.media_type.as_ref().unwrap().as_str(),
            dialect.manifest
        );
        assert_eq!(manifest.config.media_type.as_str(), dialect.config);
        assert_eq!(manifest.annotations["k"], "v");
        let config = ImageConfig::parse(&to.read(manifest.config.digest)).unwrap();
        assert_eq!(config.extra["author"], "me");
        assert_eq!(config.rootfs.diff_ids.len(), 2);
        for (layer, diff_id) in manifest.layers.iter().zip(config.rootfs.diff_ids) {
            assert_eq!(layer.media_type.as_str(), dialect.gzip);
            let mut blob = tempfile::tempfile().unwrap();
            blob.write_all(&to.read(layer.digest)).unwrap();
            let output = tempfile::tempfile().unwrap();
            let again = write::write(&blob, output, &write::Options::default(), &|_| {}).unwrap();
            assert_eq!((again.input_diff_id, again.digest), (diff_id, layer.digest));
            assert_eq!(
                layer.annotations[annotation::TOC_DIGEST],
                again.toc_digest.to_string()
            );
            let size = &layer.annotations[annotation::UNCOMPRESSED_SIZE];
            assert_eq!(*size, again.tar_size.to_string());
            assert!(!layer.extra.contains_key("urls"));
        }
        assert_eq!(manifest.layers[0].annotations["mine"], "kept");
        let leftover = std::fs::read_dir(to.path()).unwrap().count();
        assert_eq!(
            leftover, 3,
            "oci-layout, index.json and blobs, nothing temporary"
        );
    }
}

#[tokio::test]
async fn an_index_keeps_order_and_platforms_and_loses_what_attests_to_the_old_image() {
    let (from, to) = (Layout::new(), Layout::new());
    let shared = from.layer(OCI.tar, "shared");
    let mut images = Vec::new();
    for arch in ["riscv64", "amd64"] {
        let own = from.layer(OCI.tar, arch);
        let mut image = from.image(&OCI, &[shared.clone(), own]);
        image["platform"] = json!({"os": "linux", "architecture": arch, "variant": "v1"});
        images.push(image);
    }
    let mut attestation = from.image(&OCI, &[]);
    attestation["annotations"] = json!({"vnd.docker.reference.digest": images[0]["digest"]});
    images.insert(1, attestation);
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": images, "x": 1});
    from.name(&from.put(kind, index.to_string().as_bytes()));
    let summary = from.convert_to(&to).await.unwrap();
    let index = Index::parse(&to.read(summary.digest)).unwrap();
    assert_eq!(index.extra["x"], 1);
    let platforms = index.manifests.iter().map(|d| d.platform.as_ref().unwrap());
    let platforms: Vec<_> = platforms.map(|p| p.architecture.as_str()).collect();
    assert_eq!(platforms, ["riscv64", "amd64"]);
    let manifests = index
        .manifests
        .iter()
        .map(|d| Manifest::parse(&to.read(d.digest)).unwrap());
    let bottoms: Vec<_> = manifests.map(|m| m.layers[0].clone()).collect();
    assert_eq!(bottoms[0], bottoms[1]);
    assert_eq!(summary.layers.len(), 3, "the shared one once");
    assert_eq!(summary.notes.len(), 1);
    assert!(summary.notes[0].contains("attests"));
}

#[tokio::test]
async fn images_that_a_sparse_layout_does_not_have_are_left_out() {
    let (from, to) = (Layout::new(), Layout::new());
    let kind = "application/vnd.oci.image.index.v1+json";
    let images = ["arm64", "amd64"].map(|arch| {
        let mut image = from.image(&OCI, &[from.layer(OCI.tar, arch)]);
        image["platform"] = json!({"os": "linux", "architecture": arch});
        image
    });
    let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": images});
    from.name(&from.put(kind, index.to_string().as_bytes()));
    let lose = |image: &Value| {
        let digest: Digest = image["digest"].as_str().unwrap().parse().unwrap();
        std::fs::remove_file(from.blob(digest)).unwrap();
    };
    lose(&images[0]);
    let summary = from.convert_to(&to).await.unwrap();
    let index = Index::parse(&to.read(summary.digest)).unwrap();
    let platforms = index.platforms().map(ToString::to_string);
    assert_eq!(platforms.collect::<Vec<_>>(), ["linux/amd64"]);
    let [note] = &summary.notes[..] else {
        unreachable!("{:?}", summary.notes);
    };
    assert!(note.contains("(linux/arm64) is left out"), "{note}");

    lose(&images[1]);
    let error = from.convert_to(&Layout::new()).await.unwrap_err();
    assert!(error.is_missing_file(), "{error}");
}

#[tokio::test]
async fn layers_that_cannot_be_lazy_stay_as_they_are() {
    let (from, to) = (Layout::new(), Layout::new());
    let zstd = (from.put(ZSTD, b"whatever"), Digest::of(b"1"));
    let mut foreign = (from.put(FOREIGN, b"elsewhere"), Digest::of(b"2"));
    foreign.0["urls"] = json!(["http://x"]);
    let above = from.layer(OCI.tar, "../up");
    let all = [zstd, foreign, above, from.layer(OCI.tar, "fine")];
    from.name(&from.image(&OCI, &all));
    let summary = from.convert_to(&to).await.unwrap();
    let manifest = Manifest::parse(&to.read(summary.digest)).unwrap();
    let config = ImageConfig::parse(&to.read(manifest.config.digest)).unwrap();
    for (i, (layer, id)) in all.iter().take(3).enumerate() {
        assert_eq!(serde_json::to_value(&manifest.layers[i]).unwrap(), *layer);
        assert_eq!(config.rootfs.diff_ids[i], *id);
        let copied = to.blob(manifest.layers[i].digest).exists();
        assert_eq!(copied, i != 1, "all but the one that is not distributable");
    }
    let left = summary
        .layers
        .iter()
        .filter_map(|l| l.left.clone())
        .collect::<Vec<_>>();
    let said = left.join("; ");
    assert_eq!(left.len(), 3);
    assert!(
        ["zstd", "not distributable", "\"../up\" leaves"]
            .iter()
            .all(|w| said.contains(w))
    );
}

#[tokio::test]
async fn content_with_the_wrong_digest_is_refused_and_nothing_gets_the_name() {
    type Spoil = fn(&Layout, &Manifest);
    let spoil: [(&str, Spoil); 4] = [
        ("blob", |from, m| {
            std::fs::write(from.blob(m.layers[0].digest), b"x").unwrap()
        }),
        ("blob", |from, m| {
            let path = from.blob(m.layers[0].digest);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[600] = 1;
            std::fs::write(path, bytes).unwrap();
        }),
        ("config", |from, m| {
            let path = from.blob(m.config.digest);
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(path, text.replace("\"me\"", "\"us\"")).unwrap();
        }),
        ("layer", |_, _| {}),
    ];
    for (what, spoil) in spoil {
        let (from, to) = (Layout::new(), Layout::new());
        let mut layer = from.layer(OCI.tar, "a");
        if what == "layer" {
            layer.1 = Digest::of(b"another tar");
        }
        let image = from.image(&OCI, &[layer]);
        from.name(&image);
        let digest: Digest = image["digest"].as_str().unwrap().parse().unwrap();
        spoil(&from, &Manifest::parse(&from.read(digest)).unwrap());
        match from.convert_to(&to).await {
            Err(Error::WrongContent { what: found, .. }) => assert_eq!(found, what),
            other => panic!("{what}: {other:?}"),
        }
        assert!(!to.path().join("index.json").exists());
    }
}

#[tokio::test]
async fn other_images_of_a_layout_stay_and_the_same_name_is_replaced() {
    let (from, to) = (Layout::new(), Layout::new());
    from.name(&from.image(&OCI, &[from.layer(OCI.tar, "a")]));
    let kept = to.image(&OCI, &[]);
    let mut other = kept.clone();
    other["annotations"] = json!({"org.opencontainers.image.ref.name": "other"});
    let mut old = kept;
    old["annotations"] = json!({"org.opencontainers.image.ref.name": "t"});
    let index = json!({"schemaVersion": 2, "manifests": [old, other]});
    std::fs::write(to.path().join("index.json"), index.to_string()).unwrap();
    let summary = from.convert_to(&to).await.unwrap();
    let index = std::fs::read(to.path().join("index.json")).unwrap();
    let index = Index::parse(&index).unwrap();
    assert_eq!(serde_json::to_value(&index.manifests[0]).unwrap(), other);
    assert_eq!(
        (index.manifests.len(), index.manifests[1].digest),
        (2, summary.digest)
    );
    let missing = LayoutSource::open(to.path(), Some("x"))
        .err()
        .unwrap()
        .to_string();
    assert!(missing.contains("there is: other, t"), "{missing}");
    assert!(LayoutSource::open(to.path(), None).is_err());
}
