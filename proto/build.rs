//! Makes Rust of the messages that crfs speaks beside the snapshots service.

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=proto");
    prost_build::compile_protos(&["proto/cri.proto"], &["proto"])
}
