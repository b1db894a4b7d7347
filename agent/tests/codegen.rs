//! The committed client stub is what `proto/protos/ca.proto` says. `UPDATE=1 cargo test -p adit-agent --test codegen` writes it.

use std::path::Path;

#[test]
fn the_client_stub_is_what_the_proto_file_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let protos = root.join("../proto/protos");
    let fresh = tempfile::tempdir().unwrap();
    let files = protox::compile(["ca.proto"], [protos]).unwrap();
    tonic_prost_build::configure().build_server(false).out_dir(fresh.path()).compile_fds(files).unwrap();
    let committed = root.join("src/identity/gen/istio.v1.auth.rs");
    let fresh = std::fs::read_to_string(fresh.path().join("istio.v1.auth.rs")).unwrap();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&committed, &fresh).unwrap();
    }
    assert!(
        std::fs::read_to_string(&committed).unwrap_or_default() == fresh,
        "{} is stale: run `UPDATE=1 cargo test -p adit-agent --test codegen`",
        committed.display()
    );
}
