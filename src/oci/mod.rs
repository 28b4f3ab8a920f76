//! Parsed values of the OCI world: digests, references, descriptors, manifests, snapshot labels.
//!
//! Nothing here does I/O. Every string that came from an image, a registry or containerd is parsed
//! once, here, and travels on as a type; no path is ever built from an unparsed string.

mod asked;
mod chain;
mod descriptor;
mod digest;
mod labels;
mod platform;
mod reference;

pub use asked::Asked;
pub use chain::chain_ids;
pub use descriptor::{
    Descriptor, ImageConfig, Index, MAX_MANIFEST, Manifest, ManifestError, MediaType, RootFs,
};
pub use digest::{Digest, DigestError, Hasher};
pub use labels::{LabelError, LayerLabels, annotation, label};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError};
