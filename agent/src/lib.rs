//! The node agent's IO: drivers, sources and executors around `adit-core`.
//!
//! Modules in the order of the layer table (ARCHITECTURE.md): a module uses only what stands above it here.

pub mod clock;
pub mod netns;
pub mod node;
pub mod redirect;
pub mod shutdown;
pub mod sockets;
pub mod telemetry;
pub mod units;
pub mod view;

pub mod cluster;
pub mod identity;

pub mod dataplane;

pub mod pods;

pub mod admin;
pub mod health;

pub mod app;
pub mod config;
