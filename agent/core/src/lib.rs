//! Adit's pure decisions and machines: no socket, no clock, no environment, no lock, no log, no async.

#![forbid(unsafe_code)]

pub mod authz;
pub mod balance;
pub mod discover;
pub mod draw;
pub mod ejection;
pub mod life;
pub mod net;
pub mod notices;
pub mod pods;
pub mod policy;
pub mod readiness;
pub mod redirect;
pub mod report;
pub mod resolve;
pub mod retry;
pub mod rotation;
pub mod service;
pub mod time;
pub mod traffic;
pub mod trust;
pub mod workload;
pub mod world;
