//! Carries out `adit_core::redirect`'s plans in a pod's network namespace, and keeps them in force.
//!
//! [`apply()`] and [`remove()`] run iptables and set routes and sysctls; [`verify()`] says what differs; [`Keeper`] watches
//! one pod. What is wanted, and the text of the rules, is the core's. Listeners and certificates are others': rules
//! are applied after the listeners exist.

mod apply;
mod backend;
mod command;
mod error;
mod generation;
mod routes;
mod sysctls;
mod watch;

pub use apply::{Applied, Condition, apply, apply_rules, apply_sysctls, remove, restore_sysctls, verify};
pub use backend::Backend;
pub use command::LOCK;
pub use error::RedirectError;
pub use watch::{Finding, Keeper, ROUND_EVERY};
