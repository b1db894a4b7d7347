//! The tests over namespaces: one binary, run by `cargo xtask test --part it` in a sandbox of its own.

mod cleanup;
mod demo;
mod harness;
mod identity;
mod mesh;
mod peers;
mod policy;
mod retry;
mod servers;
mod services;
mod smoke;
mod transport;
