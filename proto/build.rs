//! Makes Rust of the messages that crfs speaks beside the snapshots service.

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=proto");
    prost_build::compile_protos(&["proto/cri.proto"], &["proto"])?;
    // The messages are plain data for everybody, the service is for `service` alone.
    prost_build::Config::new()
        .type_attribute(".", "#[derive(serde::Serialize)]")
        .compile_protos(&["proto/control.proto"], &["proto"])?;
    let services = std::path::PathBuf::from(std::env::var("OUT_DIR").unwrap_or_default());
    let services = services.join("services");
    std::fs::create_dir_all(&services)?;
    tonic_build::configure()
        .out_dir(services)
        .extern_path(".crfs.control.v1", "crate::report::api")
        .compile(&["proto/control.proto"], &["proto"])?;
    containerd()
}

/// The calls of containerd that crfs makes, as one tree of modules.
fn containerd() -> std::io::Result<()> {
    let folder = std::path::PathBuf::from(std::env::var("OUT_DIR").unwrap_or_default());
    let folder = folder.join("containerd");
    std::fs::create_dir_all(&folder)?;
    let services = ["content", "diff", "images", "leases", "snapshots"];
    let files = services.map(|service| format!("proto/containerd/{service}.proto"));
    tonic_build::configure()
        .out_dir(folder)
        .build_server(false)
        .include_file("mod.rs")
        .compile(&files, &["proto".to_owned()])
}
