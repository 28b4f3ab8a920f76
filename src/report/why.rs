//! Why the layers of an image are lazy or not: from what is kept with the snapshots, or, of an image
//! that is not here, from what its registry says.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::{Kind, Node, Record, api, reason_of};
use crate::layer::{Judged, NotLazy};
use crate::oci::{Asked, Digest, Reference, ReferenceError, label};
use crate::snapshotter::Key;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was asked for is neither a reference nor a digest.
    #[error("{0}")]
    Reference(#[from] ReferenceError),
    /// No image of this manifest is here, and a digest alone says not where to look for it.
    #[error("no image with manifest {0} is on this node; ask by its name")]
    NotHere(Digest),
    /// It is not here, and its registry does not tell.
    #[error("{image} is not on this node, and its manifest cannot be read: {why}")]
    Remote {
        /// The image.
        image: String,
        /// What the registry said.
        why: NotLazy,
    },
}

/// Which images are asked about: one, or `None` for all.
pub(super) fn asked(text: &str) -> Result<Option<Asked>, ReferenceError> {
    match text {
        "" => Ok(None),
        _ => text.parse().map(Some),
    }
}

fn is_asked(asked: Option<&Asked>, record: &Record) -> bool {
    let of = Origin::of(record);
    asked.is_none_or(|asked| asked.is_of(of.manifest, of.names))
}

/// What a snapshot says of where it comes from.
#[derive(Default)]
struct Origin<'a> {
    names: Vec<&'a str>,
    manifest: Option<Digest>,
    layer: Option<Digest>,
}

impl<'a> Origin<'a> {
    fn of(record: &'a Record) -> Self {
        if let Some(lazy) = &record.lazy {
            let all = std::iter::once(&lazy.image).chain(&lazy.also);
            return Self {
                names: all.map(String::as_str).collect(),
                manifest: Some(lazy.manifest),
                layer: Some(lazy.layer),
            };
        }
        let Some(refused) = &record.refused else {
            return Self::default();
        };
        Self {
            names: refused.image.iter().map(String::as_str).collect(),
            manifest: refused.manifest,
            layer: refused.layer,
        }
    }
}

impl Node {
    /// Why the layers of an image, or of all, are lazy or not.
    ///
    /// # Errors
    /// There is no such image here and its registry does not tell.
    pub async fn why(&self, image: &str) -> Result<Vec<api::Image>, Error> {
        let asked = asked(image)?;
        let records = self.0.snapshotter.records();
        let degraded = self.0.snapshotter.degraded();
        let why_degraded = |key: &Key| {
            let found = degraded.iter().find(|degraded| degraded.key == *key)?;
            let why = found.why.as_deref().unwrap_or("it is being mounted");
            Some(format!("not mounted at present: {why}"))
        };
        let found = known(&records, asked.as_ref(), &why_degraded);
        match asked {
            _ if !found.is_empty() => Ok(found),
            None => Ok(Vec::new()),
            Some(Asked::Manifest(digest)) => Err(Error::NotHere(digest)),
            Some(Asked::Name(name)) => {
                let judged = self.0.layers.judge(&name).await;
                let (manifest, layers) = judged.map_err(|why| Error::Remote {
                    image: name.to_string(),
                    why,
                })?;
                Ok(vec![remote(&name, manifest, &layers, &records)])
            }
        }
    }
}

/// The images on this node that are asked for, each with all layers of its chain.
pub(super) fn known(
    records: &[Arc<Record>],
    asked: Option<&Asked>,
    why_degraded: &dyn Fn(&Key) -> Option<String>,
) -> Vec<api::Image> {
    let by_key: HashMap<&Key, &Record> = records.iter().map(|r| (&r.key, &**r)).collect();
    let is_layer = |record: &Record| {
        let unpacking = record.kind == Kind::Active && record.refused.is_some();
        record.kind == Kind::Committed || unpacking
    };
    let layers = records.iter().map(|record| &**record);
    let wanted = layers.filter(|record| is_layer(record) && is_asked(asked, record));
    let wanted: Vec<&Record> = wanted.collect();
    // A layer below another one of the same image is told of with that.
    let below: BTreeSet<&Key> = wanted.iter().filter_map(|r| r.parent.as_ref()).collect();
    let tops = wanted.iter().filter(|record| !below.contains(&record.key));
    let images = tops.map(|top| {
        let mut chain = vec![*top];
        while let Some(parent) = chain.last().and_then(|record| record.parent.as_ref()) {
            let Some(record) = by_key.get(parent) else {
                break;
            };
            chain.push(record);
        }
        chain.reverse();
        image(asked, top, &chain, why_degraded)
    });
    let mut images: Vec<_> = images.collect();
    images.sort_by(|one, other| (&one.name, &one.manifest).cmp(&(&other.name, &other.manifest)));
    // The same image in two namespaces may stand in two chains.
    images.dedup();
    images
}

fn image(
    asked: Option<&Asked>,
    top: &Record,
    chain: &[&Record],
    why_degraded: &dyn Fn(&Key) -> Option<String>,
) -> api::Image {
    let origin = Origin::of(top);
    let name = match asked {
        Some(by @ Asked::Name(name)) if by.is_any_of(origin.names.iter().copied()) => {
            name.to_string()
        }
        _ => origin.names.first().copied().unwrap_or_default().to_owned(),
    };
    api::Image {
        name,
        manifest: text(origin.manifest),
        present: true,
        layers: chain
            .iter()
            .map(|record| layer(record, why_degraded(&record.key)))
            .collect(),
    }
}

fn layer(record: &Record, degraded: Option<String>) -> api::LayerWhy {
    let digest = text(Origin::of(record).layer);
    if let Some(lazy) = &record.lazy {
        return api::LayerWhy {
            layer: digest,
            lazy: true,
            present: true,
            size: lazy.size,
            why: degraded.unwrap_or_default(),
            ..api::LayerWhy::default()
        };
    }
    let (reason, why) = reason_of(record).unzip();
    let labelled = record.labels.get(label::LAYER_DIGEST).cloned();
    api::LayerWhy {
        layer: if digest.is_empty() {
            labelled.unwrap_or_default()
        } else {
            digest
        },
        lazy: false,
        present: true,
        reason: reason.map_or_else(String::new, |reason| reason.name().to_owned()),
        why: why.unwrap_or_default(),
        remedy: reason.map_or_else(String::new, |reason| reason.remedy().to_owned()),
        size: record.usage.map_or(0, |usage| usage.bytes),
    }
}

/// An image that nothing here was pulled as; some of its layers may be here all the same.
pub(super) fn remote(
    name: &Reference,
    manifest: Digest,
    layers: &[Judged],
    records: &[Arc<Record>],
) -> api::Image {
    let layers = layers.iter().map(|judged| {
        let here = records
            .iter()
            .find(|record| Origin::of(record).layer == Some(judged.layer));
        let reason = judged.refusal.as_ref().map(NotLazy::reason);
        match here {
            Some(record) => layer(record, None),
            None => api::LayerWhy {
                layer: judged.layer.to_string(),
                lazy: judged.refusal.is_none(),
                present: false,
                reason: reason.map_or_else(String::new, |reason| reason.name().to_owned()),
                why: judged
                    .refusal
                    .as_ref()
                    .map_or_else(String::new, NotLazy::to_string),
                remedy: reason.map_or_else(String::new, |reason| reason.remedy().to_owned()),
                size: judged.size,
            },
        }
    });
    api::Image {
        name: name.to_string(),
        manifest: manifest.to_string(),
        present: false,
        layers: layers.collect(),
    }
}

fn text(digest: Option<Digest>) -> String {
    digest.map_or_else(String::new, |digest| digest.to_string())
}
