//! An image's tar layers to eStargz, to a registry or an OCI layout.
