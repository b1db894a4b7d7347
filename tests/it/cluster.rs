//! On a real Kubernetes cluster. `cargo xtask test --part cluster` runs these alone.

use std::process::Output;

use anyhow::Result;

#[expect(dead_code, reason = "tried by whoever has a cluster")]
mod crds;
#[expect(dead_code, reason = "tried by whoever has a cluster")]
mod fence;
mod kept;
mod machine;

/// Runs kubectl with arguments and a standard input.
type Kubectl<'a> = &'a dyn Fn(&[&str], &str) -> Result<Output>;
