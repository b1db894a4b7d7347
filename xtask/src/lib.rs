//! The developer's commands: a launcher that compiles in seconds and depends on none of our crates.
//!
//! `demo`, `test` and `bench` install what is missing, build once in the profile `it` and become the program asked
//! for. `tidy`, `measure`, `codegen` and `ci` read the tree or call cargo. Nothing here knows the mesh.
#![expect(clippy::print_stdout, reason = "a command-line tool: standard output is its interface")]

pub mod ci;
pub mod cluster;
pub mod codegen;
pub mod image;
pub mod measure;
pub mod oci;
pub mod packages;
pub mod programs;
pub mod repo;
pub mod source;
pub mod suite;
pub mod tidy;
