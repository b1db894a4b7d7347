//! The tests over namespaces: one binary, run by `cargo xtask test --part it` in a sandbox of its own.

mod admin;
mod adoption;
mod capture;
mod cleanup;
mod cluster;
mod cni;
mod demo;
mod departures;
mod harness;
mod identity;
mod mesh;
mod peers;
mod policy;
mod reasons;
mod restart;
mod retry;
mod servers;
mod services;
mod smoke;
mod state;
mod talk;
mod transport;
mod until;
mod workers;
