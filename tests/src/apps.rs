//! Test applications: servers and clients that know exactly what they sent and got.
//!
//! In-process ones ([`Server`], [`connect`]) have sockets in a pod's namespace and threads in the test, which so sees
//! what the app saw. Out of process, the program `app` serves and loads (see `src/bin/app.rs`).

mod client;
pub mod health;
pub mod lines;
mod load;
mod server;
mod stream;

pub use client::{connect, connect_from, expect_reset, read_all, read_exactly, reset};
pub use load::{Load, LoadReport, Shape, run as run_load};
pub use server::{Accepted, Behaviour, End, Server};
pub use stream::{Pattern, Tally};
