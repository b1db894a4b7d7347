//! Which sandbox is a running pod's when no CNI ADD named it: what proves it, and when it is looked for again.
//!
//! [`cgroup`] reads where a process belongs, [`judge()`] decides from what a look at the node has shown, [`Searches`] is the
//! machine of those who are looked for. The looking is `agent::pods::discover`'s.

pub mod cgroup;
mod judge;
mod searches;

pub use judge::{By, Cached, CachedNetns, Evidence, NotFound, Process, Proof, Sought, judge};
pub use searches::{Limits, Searches, Seen};

#[cfg(test)]
mod tests;
