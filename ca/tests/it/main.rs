//! The CA from outside: over its wire, and as a program.
#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;
mod connections;
mod program;
mod serve;
