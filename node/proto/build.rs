//! Compiles the `.proto` files with protox, so that no `protoc` is needed.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: [&str; 4] = [
        "carillon/v1/chat.proto",
        "carillon/admin/v1/admin.proto",
        "carillon/internal/v1/peer.proto",
        "carillon/internal/v1/query.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let set = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // Served by gRPC reflection.
    std::fs::write(out.join("carillon.bin"), set.encode_to_vec())?;
    let mut config = tonic_prost_build::Config::new();
    config.bytes(["."]);
    tonic_prost_build::configure()
        // `connect` is one of our calls; clients are made with `new(channel)`.
        .build_transport(false)
        .codec_path("crate::codec::ProtoCodec")
        .compile_fds_with_config(set, config)?;
    Ok(())
}
