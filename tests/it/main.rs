//! The tests over namespaces: one binary, run by `cargo xtask test --part it` in a sandbox of its own.

mod cleanup;
mod harness;
mod mesh;
mod peers;
mod policy;
mod servers;
mod smoke;
