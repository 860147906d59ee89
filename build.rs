//! Generates the contracts: `proto/` to Rust, and the descriptor set that server reflection and the RPC policies read.
//! protox compiles in-process, so that nobody has to install protoc.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let root = Path::new("proto");
    let files = proto_files(&root.join("florin"))?;

    let mut compiler = protox::Compiler::new([root])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(&files)?;

    #[allow(clippy::disallowed_methods, reason = "this is how cargo tells a build script")]
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // The encoded form keeps our own options (`florin.common.v1.rpc`), which the decoded Rust types would drop.
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;

    let mut config = tonic_prost_build::Config::new();
    // Google's comments hold indented examples, which rustdoc would take for Rust.
    config.bytes(["."]).enable_type_names().disable_comments([".google.rpc"]);
    tonic_prost_build::configure()
        .include_file("contracts.rs")
        .emit_rerun_if_changed(false)
        .compile_fds_with_config(without_options(compiler.file_descriptor_set()), config)?;
    Ok(())
}

/// The Rust code needs messages and services, not the files that only define Google's HTTP options.
fn without_options(mut set: tonic_prost_build::FileDescriptorSet) -> tonic_prost_build::FileDescriptorSet {
    set.file.retain(|file| file.package() != "google.api");
    set
}

fn proto_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(proto_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            found.push(path);
        }
    }
    found.push(PathBuf::from("proto/google/rpc/error_details.proto"));
    found.push(PathBuf::from("proto/google/rpc/status.proto"));
    found.sort();
    found.dedup();
    Ok(found)
}
