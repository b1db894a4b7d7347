//! What two of Adit's processes must agree on. No IO, no async, no certificates, no Kubernetes.
//!
//! | wire | speaks | listens | when it fails | versioning |
//! |---|---|---|---|---|
//! | [`cni`] on `/run/adit/cni.sock` | `adit-cni` | agent | the plugin answers the runtime with CNI code 11 | `version` in every frame |
//! | [`hbone`] on port 15008 | agent, outbound | agent, inbound | one closed [`Reason`] on either side | HTTP/2 CONNECT; unknown headers are ignored |
//! | [`admin`] on port 15000 and `admin.sock` | `adit` | agent | the tool names the agent that did not answer | fields are only ever added |
//! | `protos/ca.proto` on port 15012 | agent | CA | the old certificate serves to its expiry | gRPC field numbers, Istio's |
//!
//! [`spiffe`] is the identity that all of them carry and [`reason`] the closed set of words for what went wrong.

pub mod admin;
pub mod cni;
pub mod hbone;
pub mod reason;
pub mod spiffe;
pub mod status;

pub use reason::Reason;
pub use spiffe::{SpiffeId, TrustDomain};
