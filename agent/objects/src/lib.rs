//! Kubernetes objects, read and judged: from YAML or JSON to the core's models. Pure: no client, file or clock.
//!
//! Both sources of truth, the CA's pod watch and the tool read objects here and nowhere else. [`yaml::read`] gives
//! documents with their places, [`Object::read`] tells what one is, and `translate` of its module what it means:
//! a [`Translated`] change with the problems that were found, or a [`Rejected`] object of which nothing can be used.

pub mod accepted;
pub mod crd;
pub mod durations;
mod meta;
pub mod namespaces;
pub mod nodes;
mod object;
pub mod pods;
pub mod policies;
pub mod problem;
pub mod services;
pub mod skip;
pub mod slices;
pub mod trust;
pub mod watch;
pub mod yaml;

pub use meta::{Translated, word};
pub use object::{Key, Object, POLICY_API};
pub use problem::{FieldPath, ObjectRef, Problem, Rejected, Unreadable, Wrong};
