//! adit-ca: the certificate authority of an Adit mesh.
//!
//! The line of a request: [`server`] takes the connection, [`service`] the request, [`caller`] says who asks, [`csr`]
//! reads the public key, [`attest`] says whether they may, [`issue`] signs. Beside it: [`root`] and [`state`] are what
//! signs, [`lifecycle`] decides what comes next, [`store`] keeps it, [`bundle`] and [`publish`] tell the agents, and
//! [`keeper`] drives these; `page` shows to Prometheus. [`app`] joins all.
//!
//! What it never does: copy anything but the public key out of a certificate request; make a new root where a store was
//! begun; sign or publish with a state that is not on disk.

pub mod app;
mod around;
pub mod attest;
pub mod bundle;
pub mod caller;
pub mod cluster;
pub mod config;
pub mod counts;
pub mod csr;
pub mod disk;
mod fresh;
mod home;
pub mod issue;
pub mod keeper;
pub mod lifecycle;
mod page;
mod placement;
mod places;
pub mod publish;
pub mod refusal;
pub mod root;
pub mod serial;
pub mod server;
pub mod service;
mod signing;
pub mod stamp;
pub mod state;
pub mod status;
pub mod store;

/// The generated gRPC types and stubs of `proto/protos/ca.proto`.
#[rustfmt::skip]
#[path = "gen/istio.v1.auth.rs"]
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    reason = "generated"
)]
pub mod wire;

pub use app::{App, RunError, StartError};
pub use config::{Config, ConfigErrors};

/// Where and why a text is no YAML of the wanted form: the line (0 where there is none), and what is wrong.
///
/// Without what stands there, which may be a token, and without the parser's hints to programmers.
pub(crate) fn yaml_mistake(error: &serde_saphyr::Error) -> (u64, String) {
    let line = error.location().map_or(0, |location| location.line());
    let text = error.without_snippet().to_string();
    let text = text.lines().next().unwrap_or_default();
    let said = text.rsplit_once(" at line ").map_or(text, |(said, _)| said);
    (line, said.split_once(", set DuplicateKeyPolicy").map_or(said, |(said, _)| said).to_owned())
}

/// An error with its causes, in one line.
pub fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // A transparent error says what its cause says.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
